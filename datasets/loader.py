"""The order in which images are read: for training a pure function of (seed, position), for evaluation by index."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.tolerant import Tolerant, collate
from dbae.config import UserError

FEWEST_WORKERS, MOST_WORKERS = 2, 8  # of readers, for each process that computes

# What a signal that ended a worker process tells
KILLED = {
    "SIGKILL": "out of memory? Give fewer --num_workers (prepare: --workers)",
    "SIGBUS": "the data set's file was cut or its disk is gone, or the shared memory /dev/shm is full",
    "SIGSEGV": "a damaged LMDB or a broken installation",
}


class CachedImages:
    """A data set whose images [n, 3, s, s] uint8 are all in memory, the host's or the device's; see ``cached``."""

    def __init__(self, images: Tensor, positions: Tensor) -> None:
        """``positions`` [n] says which image of the data set each one is: another one, where it stands in for it."""
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return len(self.images)


def training_batches(
    dataset: Dataset | CachedImages,
    batch_size: int,
    microbatch: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    targets: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Endless micro-batches of this rank on ``device``, from global image position ``start`` on.

    Each is images, uint8 [m, 3, s, s], and those rows of ``targets`` [n, ...] that belong to them, or None without.

    Step k covers the positions start + [k B, (k+1) B) of the endless order, B = ``batch_size`` over all ranks. Each
    rank takes its contiguous share, in pieces of ``microbatch`` (0 or less: the whole share), the last of which may
    be shorter. So the images of a step do not depend on the number of processes. What a ``Tolerant`` data set puts in
    place of a bad image has its own target. Raises UserError for an uneven share, a bad image or a killed worker.
    """
    if batch_size < 1 or batch_size % world:
        raise UserError(f"batch size: expected a positive multiple of the {world} processes, got {batch_size}")
    device, order, share = torch.device(device), Order(len(dataset), seed), batch_size // world
    piece = microbatch if microbatch > 0 else share
    steps = (
        order.indices(first, min(first + piece, begin + share))
        for begin in count(start + rank * share, batch_size)
        for first in range(begin, begin + share, piece)
    )
    if isinstance(dataset, CachedImages):
        batches = ((gather(dataset.images, indices, device), dataset.positions[indices]) for indices in steps)
    else:
        batches = _load(dataset, steps, num_workers, device.type == "cuda")
    return (
        (images.to(device, non_blocking=True), None if targets is None else gather(targets, shown.tolist(), device))
        for images, shown in batches
    )


def ordered_batches(
    dataset: Dataset,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    num_workers: int | None = 0,
    skip: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images [n, 3, s, s] uint8 and positions [n] int64 of this rank, each once: rank, rank + world, ... below limit.

    The last batch may be shorter, and bad images of a ``Tolerant`` data set are left out of theirs. ``skip`` leaves out
    the first batches. None for ``num_workers`` means what the machine has, and one batch is read without. Raises
    UserError like ``training_batches``.
    """
    mine = range(rank, len(dataset) if limit is None else min(len(dataset), limit), world)
    batches = [list(mine[first : first + batch_size]) for first in range(0, len(mine), batch_size)][skip:]
    if num_workers is None:
        num_workers = min(auto_workers(), max(len(batches) - 1, 0))
    return _load(dataset, batches, num_workers, torch.cuda.is_available())


def auto_workers() -> int:
    """Worker processes that suit the machine: the cores of each process but one, from 2 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(max(cores - 1, FEWEST_WORKERS), MOST_WORKERS)


def first_images(dataset: Dataset, count: int) -> Tensor:
    """The first ``count`` images of a data set as uint8 [n, 3, s, s]; bad ones are as in its batches."""
    reader = dataset if isinstance(dataset, Tolerant) else Tolerant(dataset)
    images, _, faults = collate([reader[i] for i in range(min(count, len(reader)))])
    reader.settle(faults)
    return images


class Order:
    """The endless order of training images: position p is element p % n of the permutation of epoch p // n."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self._permutation = lru_cache(2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(n))

    def indices(self, first: int, last: int) -> list[int]:
        """Images at the positions first..last-1."""
        return [int(self._permutation(p // self.n)[p % self.n]) for p in range(first, last)]


def gather(rows: Tensor, indices: list[int], device: torch.device) -> Tensor:
    """A copy of some rows [n, ...] on ``device``; the host does not wait for a GPU, as what moves there is pinned."""
    memory = rows.device
    index = torch.tensor(indices, dtype=torch.long, pin_memory=memory.type == "cuda").to(memory, non_blocking=True)
    moves = memory.type == "cpu" and device.type == "cuda"
    batch = rows.new_empty((len(indices), *rows.shape[1:]), pin_memory=moves)
    torch.index_select(rows, 0, index, out=batch)
    return batch.to(device, non_blocking=True)


def _load(
    dataset: Dataset, batches: Iterable[list[int]], num_workers: int, pin_memory: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    reader = dataset if isinstance(dataset, Tolerant) else Tolerant(dataset)
    loader = DataLoader(
        reader,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        prefetch_factor=(4 if num_workers < 4 else 2) if num_workers else None,  # they lie in /dev/shm
        pin_memory=pin_memory,
        generator=torch.Generator(),  # or the loader would draw a seed from the global one, and change what follows
    )
    with closing(watched(loader)) as items:
        for images, positions, faults in items:
            reader.settle(faults)
            yield images, positions


def watched(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader. Raises UserError where a worker process of it dies; close it after an error."""
    items, problem = _start(loader), None
    try:
        while (batch := next(items, None)) is not None:
            yield batch
    except RuntimeError:
        problem = _death(items)
        if problem is None:
            raise
    finally:
        del items  # now: as part of an exception it would outlive its queues, and wait for the workers in vain
    if problem:
        raise UserError(problem)


def _start(loader: DataLoader) -> Iterator[Any]:
    """The loader's iterator, without torch's handler, which raises wherever the program is when a worker dies."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before, items = signal.getsignal(signal.SIGCHLD), iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return items


def _death(items: Iterator[Any]) -> str | None:
    """How a worker process of a loader's iterator died, and why perhaps; None where none did."""
    code = next((worker.exitcode for worker in getattr(items, "_workers", ()) if worker.exitcode), None)
    if code is None:
        return None
    name = signal.Signals(-code).name if code < 0 else f"status {code}"
    return f"a worker process that reads images ended with {name}: {KILLED.get(name, 'see above')}"
