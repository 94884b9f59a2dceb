"""Several processes: the same run as one, an end where one dies, and a restart that goes on."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from benchmarks.faults import CONTEXT, equal, results, start, statuses
from dbae import runtime

SCRIPT = Path(__file__).parent / "one_rank_fails.py"


def test_a_run_does_not_depend_on_the_number_of_processes(tmp_path):
    """BatchNorm sees a micro-batch at a time, so micro-batches of the smallest share make the runs comparable.

    Running statistics are not: they are the first process's, which sees its share of the images only.
    """
    settings = {"total_steps": 3, "microbatch": 2, "batch_size": 8}
    folders = {world: tmp_path / str(world) for world in (1, 4)}
    for world, folder in folders.items():
        assert not any(statuses(start(folder, world, **settings)))
    one, several = (results(folder, 3) for folder in folders.values())
    tables = [(folder / "progress.csv").read_text().splitlines() for folder in folders.values()]
    losses = [[float(row.split(",")[2]) for row in rows[1:]] for rows in tables]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # means over the images of all processes
    assert one.keys() == several.keys()
    for name in one:
        if "running_" not in name and "num_batches" not in name and "fingerprints" not in name:
            scale = one[name].double().abs().max().clamp(min=1e-4)
            assert torch.allclose(one[name] / scale, several[name] / scale, atol=2e-4), name


def test_torchrun_starts_again_and_goes_on(tmp_path):
    """The failing process's own error is shown, the other one does not hang, and the second attempt resumes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = subprocess.run([*command, str(SCRIPT), str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "RuntimeError: rank 1 lost its disk" in done.stderr
    assert "going on after step 0" in done.stdout and "going on after step 3" in done.stdout
    assert not any(statuses(start(tmp_path / "undisturbed", 2)))
    assert equal(results(tmp_path / "run"), results(tmp_path / "undisturbed"))


def full_disk(batches):
    """A sabotage: from the first step on no file can be written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    yield from batches


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_one_process_has_the_error_and_the_others_end_with_it(tmp_path, number):
    """The first process writes, so that it alone can fail to; the others neither wait for it nor repeat its error."""
    processes = start(tmp_path, 2, full_disk, total_steps=2 if number is None else 10_000)
    if number:
        while not (tmp_path / "progress.csv").exists() and processes[0].exitcode is None:
            time.sleep(0.05)
        time.sleep(2)
        os.kill(processes[1].pid, number)
    assert statuses(processes) == [1, 2]
    assert not list(tmp_path.glob("*.pt")) and not list(tmp_path.glob("*.tmp"))


def wait_for_nobody(rank, port):
    """One of two processes: the second never comes to the barrier of the first."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    runtime.setup("cpu", timeout=0.05)
    if rank:
        time.sleep(60)
    try:
        runtime.barrier()
    except RuntimeError as error:
        raise SystemExit(7 if "imed out" in str(error) else 8) from None


def test_a_process_that_hangs_ends_the_run_after_the_timeout():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, second = (CONTEXT.Process(target=wait_for_nobody, args=(rank, port)) for rank in (0, 1))
    first.start()
    second.start()
    first.join(timeout=50)
    second.kill()
    assert first.exitcode == 7
