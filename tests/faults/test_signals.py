"""SIGTERM and SIGINT: the step is finished and saved, the status says why, and a second signal does not wait."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import tiny
from conftest import ROOT

from benchmarks.faults import MICRO_BATCHES, equal, results, run_here, start, statuses
from dbae.checkpoint import complete_sets
from dbae.runtime import Stop, blocking_signals


def strike(step, numbers, pause, batches):
    """A sabotage: this process gets signals, with a pause between them, in the middle of a step, counted from 0."""
    for i, images in enumerate(batches):
        if i == step * MICRO_BATCHES + 1:
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(pause)
        yield images


def signal_at(step, *numbers, pause=0.0):
    return partial(strike, step, numbers, pause)


def test_the_step_is_finished_saved_and_gone_on_with(tmp_path):
    _, zero = run_here(tmp_path / "whole", total_steps=5)
    folder = tmp_path / "stopped"
    settings = {"total_steps": 5, "save_interval_for_preemption": 100}
    state, signum = run_here(folder, sabotage=signal_at(2, signal.SIGTERM), **settings)
    assert (state.step, signum, zero) == (3, signal.SIGTERM, 0)
    assert complete_sets(str(folder), 0.9) == [(3, "freq_")]
    run_here(folder, **settings)
    assert equal(results(folder, 5), results(tmp_path / "whole", 5))


def test_a_set_that_is_being_written_is_finished_first(tmp_path, monkeypatch):
    works, times = os.replace, []

    def replace(source, target):
        time.sleep(0.2)
        works(source, target)
        times.append(os.path.basename(target))

    monkeypatch.setattr(os, "replace", replace)
    state, _ = run_here(tmp_path, sabotage=signal_at(2, signal.SIGTERM))
    assert state.step == 3 and complete_sets(str(tmp_path), 0.9) == [(2, "freq_"), (3, "freq_")]
    assert [name for name in times if "opt" in name] == [f"freq_opt_00000{step}.pt" for step in (1, 2, 3)]


def test_signals_in_the_same_moment_are_one(tmp_path):
    """A scheduler signals every process, and torchrun passes on what it got itself."""
    state, signum = run_here(tmp_path, sabotage=signal_at(1, signal.SIGTERM, signal.SIGINT, signal.SIGTERM))
    assert (state.step, signum) == (2, signal.SIGTERM)


def test_a_signal_in_the_last_step_is_the_end_of_a_whole_run(tmp_path):
    assert run_here(tmp_path, sabotage=signal_at(1, signal.SIGTERM), total_steps=2)[1] == 0


def test_statuses(tmp_path):
    """130 for SIGINT; the second signal's own effect, without a checkpoint of the step."""
    assert statuses(start(tmp_path / "once", sabotage=signal_at(2, signal.SIGINT))) == [130]
    twice = signal_at(2, signal.SIGTERM, signal.SIGINT, pause=1.1)
    assert statuses(start(tmp_path / "twice", sabotage=twice)) == [-signal.SIGINT]
    assert complete_sets(str(tmp_path / "once"), 0.9)[-1][0] == 3
    assert complete_sets(str(tmp_path / "twice"), 0.9)[-1][0] == 2


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stop():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_processes_started_for_the_first_item_never_get_signals():
    def items():
        for _ in range(2):
            code = "import signal; print(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
            yield int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    assert list(blocking_signals(items())) == [2, 0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


TWO = ["scripts.launch", "--standalone", "--nproc-per-node=2", "-m"]


@pytest.mark.parametrize(
    ("through", "number"), [([], signal.SIGTERM), pytest.param(TWO, signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_whole_job_of_the_training_script(tmp_path, through, number):
    """Data workers get it too, and must live until the step is finished; nothing stays behind."""
    words = [
        "--dataset=toyfaces", *tiny.FLAGS, f"--workdir={tmp_path}", "--batch_size=4", "--num_workers=2",
        "--device=cpu", "--quiet", "--log_interval=1", "--save_interval_for_preemption=1000",
    ]  # fmt: skip
    command = [sys.executable, "-m", *through, "scripts.train", *words]
    job = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    line = job.stdout.readline()
    os.killpg(job.pid, number)
    rest, error = job.communicate(timeout=60)
    assert job.returncode == 128 + number and line.startswith("step 1, 4 images: loss ")
    assert "Traceback" not in error and "train:" not in error, error
    (folder,) = tmp_path.iterdir()
    ((step, prefix),) = complete_sets(str(folder), 0.9999)
    assert prefix == "freq_" and rest.count("step ") == step - 1
    with pytest.raises(ProcessLookupError):
        os.killpg(job.pid, 0)
