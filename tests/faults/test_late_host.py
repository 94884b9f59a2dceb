"""A host that learns of a step when the next one is under way, as on a GPU: the same run, decided a step later."""

import csv
import signal

import pytest
import torch
from test_bad_steps import HARMS, faulty
from test_signals import signal_at

from benchmarks.small_runs import results, run_here
from dbae.checkpoint import complete_sets
from dbae.config import UserError
from dbae.outcomes import Outcomes

RARELY = {"log_interval": 4, "save_interval": 100, "save_interval_for_preemption": 100, "sample_interval": 100}


@pytest.fixture
def late(monkeypatch):
    class Late(Outcomes):
        def __init__(self, device):
            super().__init__(device)
            self.lag = 1

    return lambda: monkeypatch.setattr("dbae.training.Outcomes", Late)


def rows(folder):
    with (folder / "progress.csv").open() as file:
        return [{name: row[name] for name in ("step", "images", "loss", "skipped")} for row in csv.DictReader(file)]


def test_the_same_run_with_the_same_table(tmp_path, late):
    network = faulty(2, 4, HARMS["loss is NaN"])
    run_here(tmp_path / "at once", network=network, total_steps=7, **RARELY)
    late()
    run_here(tmp_path / "late", network=network, total_steps=7, **RARELY)
    found, expected = results(tmp_path / "late", 7), results(tmp_path / "at once", 7)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert rows(tmp_path / "late") == rows(tmp_path / "at once")
    assert [row["skipped"] for row in rows(tmp_path / "late")] == ["2", "0"]


def test_a_signal_ends_the_step_after_it(tmp_path, late):
    late()
    state, signum = run_here(tmp_path, sabotage=signal_at(1, signal.SIGTERM), total_steps=6, **RARELY)
    assert (state.step, signum) == (3, signal.SIGTERM)
    assert complete_sets(str(tmp_path), 0.9) == [(3, "freq_")]


def test_many_bad_steps_end_the_run_a_step_later(tmp_path, late):
    late()
    with pytest.raises(UserError, match=r"in 2 steps in a row up to step 3"):
        run_here(tmp_path, network=faulty(1, 9, HARMS["loss is NaN"]), total_steps=9, max_bad_steps=2, **RARELY)
    assert not complete_sets(str(tmp_path), 0.9)
