"""A fault of each kind that no other test inflicts; ``python -m benchmarks.faults`` inflicts hundreds."""

import random

import pytest
import torch

from benchmarks import faults


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return faults.Trials(tmp_path_factory.mktemp("faults"), random.Random(0))


@pytest.mark.parametrize("kind", sorted(faults.KINDS.keys() - {"kill -9", "SIGTERM", "file truncated"}))
def test_a_run_survives(trials, kind):
    assert trials.survives(kind)


def test_what_is_not_the_same_is_noticed(trials, tmp_path):
    """A run that differs in one number of its optimizer, and one whose table repeats a step, are lost."""
    expected, _ = trials.reference(1)
    name = next(name for name in expected if name.startswith("opt/optimizer/state"))
    changed = {**expected, name: torch.nextafter(expected[name].float(), torch.tensor(torch.inf))}
    assert faults.equal(expected, expected) and not faults.equal(expected, changed)
    assert not faults.equal(expected, {key: value for key, value in expected.items() if key != name})
    for table, in_order in (("step\n1\n2\n2\n6\n", False), ("step\n1\n2\n6\n", True)):
        (tmp_path / "progress.csv").write_text(table)
        assert faults.in_order(tmp_path) == in_order
    (tmp_path / "opt_000001.pt.01234567.tmp").touch()
    assert not faults.in_order(tmp_path)
