"""The order in which images are read: for training a pure function of (seed, position), for evaluation by index."""

from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dbae.errors import UserError


def training_batches(
    dataset: Dataset,
    batch_size: int,
    microbatch: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Endless uint8 micro-batches [m, 3, s, s] of this rank on ``device``, from global image position ``start`` on.

    Step k covers the positions start + [k B, (k+1) B) of the endless order, B = ``batch_size`` over all ranks. Each
    rank takes its contiguous share, in pieces of ``microbatch`` (0 or less: the whole share), the last of which may
    be shorter. So the images of a step do not depend on the number of processes. Raises UserError for an uneven share.
    """
    if batch_size < 1 or batch_size % world:
        raise UserError(f"batch size: expected a positive multiple of the {world} processes, got {batch_size}")
    steps = MicroBatches(Order(len(dataset), seed), batch_size, microbatch, start, rank, world)
    device = torch.device(device)
    batches = _load(dataset, steps, num_workers, pin_memory=device.type == "cuda")
    return (images.to(device, non_blocking=True) for images, _ in batches)


def ordered_batches(
    dataset: Dataset,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    num_workers: int = 0,
    skip: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images [n, 3, s, s] uint8 and positions [n] int64 of this rank, each once: rank, rank + world, ... below limit.

    The last batch may be shorter; nothing is padded or repeated. ``skip`` leaves out the first batches.
    """
    mine = range(rank, len(dataset) if limit is None else min(len(dataset), limit), world)
    batches = [list(mine[first : first + batch_size]) for first in range(0, len(mine), batch_size)]
    return _load(dataset, batches[skip:], num_workers, pin_memory=torch.cuda.is_available())


class Order:
    """The endless order of training images: position p is element p % n of the permutation of epoch p // n."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def indices(self, first: int, last: int) -> list[int]:
        """Images at the positions first..last-1."""
        found: list[int] = []
        while first < last:
            epoch, begin = divmod(first, self.n)
            end = min(self.n, begin + last - first)
            found += self._of_epoch(epoch)[begin:end].tolist()
            first += end - begin
        return found

    def _of_epoch(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.n)
            self._epoch = epoch
        return self._permutation


class MicroBatches:
    """Endless index lists of one rank; see ``training_batches``."""

    def __init__(self, order: Order, batch_size: int, microbatch: int, start: int, rank: int, world: int) -> None:
        self.order, self.batch_size, self.start = order, batch_size, start
        self.share = batch_size // world
        self.offset = rank * self.share
        self.microbatch = microbatch if microbatch > 0 else self.share

    def __iter__(self) -> Iterator[list[int]]:
        for begin in count(self.start + self.offset, self.batch_size):
            mine = self.order.indices(begin, begin + self.share)
            for first in range(0, self.share, self.microbatch):
                yield mine[first : first + self.microbatch]


def _load(
    dataset: Dataset, batches: Iterable[list[int]], num_workers: int, pin_memory: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # or the loader would draw a seed from the global one, and change what follows
    )
    try:
        yield from loader
        return
    except UserError as error:  # a worker's arrives with its whole traceback as the message
        message = str(error).strip().rpartition("UserError: ")[2]
        error.__traceback__ = None  # it is in a cycle with itself, and would hold the worker processes
    raise UserError(message)
