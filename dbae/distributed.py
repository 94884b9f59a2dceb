"""Process groups that also work without one. ``torchrun`` sets the environment; a plain ``python`` is one process."""

import gc
import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: its functions' defaults would keep that alive
from torch import Tensor
from tqdm import tqdm

from dbae.allocator import keep_freed_memory
from dbae.config import UserError


def setup(device: str = "auto", timeout: float | None = None) -> torch.device:
    """Choose this process's device and join the group that ``torchrun`` describes, if any.

    ``device`` is auto (a GPU where there is one), cpu, cuda or cuda:N. ``timeout`` is how many minutes a process waits
    for the others before it fails (default: torch's own). Raises UserError for a device that is not there.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", local)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {device!r} cannot be used here ({str(error).splitlines()[0]})") from None
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        keep_freed_memory()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        _join("nccl" if chosen.type == "cuda" else "gloo", timedelta(minutes=timeout) if timeout else None)
    return chosen


def _join(backend: str, timeout: timedelta | None) -> None:
    """Join torchrun's group.

    When torchrun restarts a job, its store still holds the addresses of the processes that ended, so each attempt gets
    keys of its own. On several nodes the attempts are not counted alike, and the store is left as it is.
    """
    store, number, size = next(dist.rendezvous("env://"))
    if timeout:
        store.set_timeout(timeout)
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(f"attempt{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)


def rank() -> int:
    """This process's number in the group, 0 without one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes in the group, 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def mean(values: Tensor) -> Tensor:
    """The average of a tensor over all processes, each of which must call this. It replaces the values."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= world()
    return values


def all_gather(value: Any) -> list[Any]:
    """Every process's picklable ``value``, in rank order."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * world()
    dist.all_gather_object(gathered, value)
    return gathered


def cleanup() -> None:
    """Leave the group, and end its threads: those that meet the end of the interpreter can crash it."""
    if dist.is_initialized():
        gc.collect()  # DistributedDataParallel holds the group, and is in a cycle with itself
        dist.destroy_process_group()


def print0(*values: Any) -> None:
    """Print on the first process only."""
    if rank() == 0:
        print(*values, flush=True)


def warn0(message: str) -> None:
    """Print a warning on the first process only, above a progress bar where there is one."""
    if rank() == 0:
        tqdm.write(f"warning: {message}", file=sys.stderr)
