"""Shared by all tests: the repository root and this folder are importable, and a run folder with a small model."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers with two threads each would wait for one another
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]


@pytest.fixture(autouse=True, scope="session")
def memory_that_goes_back():
    """Freed memory is the system's again, as one test's peak is no other's business."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dbae.runtime.keep_freed_memory", lambda: None)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The EMA file of a run folder with a small stochastic model of toy faces."""
    import tiny

    return tiny.written(tmp_path_factory.mktemp("run"), tiny.model(stochastic=True))


@pytest.fixture
def program(capsys):
    """Run a program in this process as its launcher would; returns (status, standard output, standard error)."""
    from scripts.cli import run

    def call(module, *words):
        status = 0
        try:
            run(lambda: module.main([str(word) for word in words]))
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call
