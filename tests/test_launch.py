"""Several processes: how torchrun ends."""

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from scripts import launch


def failed(status):
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=status, error_file="none")
    return ChildFailedError("train", {1: failure})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SignalException("stopped", sigval=2), 130),
        (SignalException("stopped", sigval=15), 143),
        (failed(2), 2),
        (failed(1), 1),
        (failed(-9), 137),
    ],
)
def test_it_has_the_status_of_its_processes(monkeypatch, error, status):
    def stopped(args):
        raise error

    monkeypatch.setattr(launch.torchrun, "main", stopped)
    with pytest.raises(SystemExit) as end:
        launch.main(["--standalone"])
    assert end.value.code == status and end.value.__suppress_context__


def test_it_ends_without_one_where_all_is_well(monkeypatch):
    seen = []
    monkeypatch.setattr(launch.torchrun, "main", seen.append)
    launch.main(["-m", "x"])
    assert seen == [["-m", "x"]]
