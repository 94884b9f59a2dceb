"""Codes of a frozen encoder: computed once, kept on disk, and drawn from as often as needed.

An ``Encode`` takes images [n, 3, H, W] in [-1, 1] and their numbers [n], and returns named arrays [n, d]: ``z`` of a
deterministic encoder, ``mu`` and ``log_sigma`` of a stochastic one, whose code is ``mu + (exp(log_sigma) + 0.01) eps``.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import blobfile as bf
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dbae.config import UserError
from dbae.io import atomic_write, seed_for, to_float
from eval.arrays import Column, read_arrays, write_arrays

Arrays = dict[str, np.ndarray]
Encode = Callable[[Tensor, Tensor], dict[str, Tensor]]
Batches = Iterable[tuple[Tensor, Tensor]]


def encode_dataset(
    encode: Encode,
    dataset: Dataset,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    flip: bool = False,
    desc: str = "",
) -> Arrays:
    """All codes of a data set, in its order, and ``index``: the one call to use in a notebook.

    ``dataset[i]`` is a uint8 image [3, H, W] and its number; ``flip`` encodes the mirrored images; ``desc`` names a
    progress bar, without it there is none.
    """
    batches = tqdm(DataLoader(dataset, batch_size), desc=desc, unit="batch", disable=not desc, mininterval=1)
    parts = list(encode_batches(encode, batches, device, flip))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def encode_batches(
    encode: Encode, batches: Batches, device: torch.device | str = "cpu", flip: bool = False
) -> Iterator[Arrays]:
    """Codes of each batch of uint8 images [n, 3, H, W] and numbers [n]; the numbers stand under ``index``.

    Of a batch without images they are all there is.
    """
    for images, index in batches:
        x = to_float(images.to(device))
        codes = encode(x.flip(3) if flip else x, index) if len(index) else {}
        yield {name: value.float().cpu().numpy() for name, value in codes.items()} | {"index": index.numpy()}


@dataclass(frozen=True)
class Store:
    """A file of codes in the making: its settings, and the batches that processes have finished.

    Process r of W encodes the images r, r + W, ..., of which some may be left out; batches lie in a folder beside the
    file, named by the settings, so that an interrupted run goes on and another one never mixes in.
    """

    path: str
    settings: dict[str, Any]
    processes: int
    batch_size: int = 64

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that stand for the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def parts(self) -> str:
        """Folder of the finished batches."""
        return f"{self.path}.{self.key}-{self.processes}x{self.batch_size}.parts"

    @property
    def finished(self) -> bool:
        """Whether the file is there. Raises UserError where it was made with other settings."""
        if not bf.exists(self.path):
            return False
        _, about = read_arrays(self.path)
        check_settings(self.path, about, self.settings)
        return True

    def done(self, rank: int) -> int:
        """Number of a process's batches that are on disk, from the first on."""
        return next(i for i in count() if not bf.exists(self._part(rank, i)))

    def add(self, rank: int, i: int, arrays: Arrays) -> None:
        """Keep the codes of batch ``i`` of a process."""
        with atomic_write(self._part(rank, i)) as file:
            np.savez(file, **arrays)

    def kept(self) -> np.ndarray:
        """Numbers [n] int64, ascending, of the images whose codes are in the batches on disk."""
        return np.concatenate([np.empty(0, np.int64), *self._pieces("index")])

    def combine(self, extra: dict[str, np.ndarray], about: dict[str, str]) -> None:
        """Write the file from all processes' batches, in the order of the images, and remove the batches.

        ``extra`` are arrays that are at hand, such as labels; ``about`` is text beside the settings. Both are of the
        ``kept`` images, of which there must be one.
        """
        images, first = len(self.kept()), next(self._blocks())
        columns = {
            name: Column((images, *value.shape[1:]), value.dtype.name, self._pieces(name))
            for name, value in first.items()
        } | {name: Column(value.shape, value.dtype.name, [value]) for name, value in extra.items()}
        write_arrays(self.path, columns, {"settings": json.dumps(self.settings), **about})
        self.discard()

    def discard(self) -> None:
        """Remove the batches."""
        bf.rmtree(self.parts)

    def _part(self, rank: int, i: int) -> str:
        return bf.join(self.parts, f"{rank}_{i}.npz")

    def _read(self, rank: int, i: int) -> Arrays:
        return read_arrays(self._part(rank, i))[0]

    def _pieces(self, name: str) -> Iterator[np.ndarray]:
        return (block[name] for block in self._blocks())

    def _blocks(self) -> Iterator[Arrays]:
        """All processes' i-th batches as one, in the order of the images; without those that hold none."""
        for i in range(self.done(0)):
            parts = [self._read(rank, i) for rank in range(self.processes) if bf.exists(self._part(rank, i))]
            parts = [part for part in parts if len(part["index"])]
            if parts:
                order = np.concatenate([part["index"] for part in parts]).argsort()
                yield {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def check_settings(path: str, about: dict[str, str], expected: dict[str, Any]) -> None:
    """Raise UserError where a file of codes was made with other settings than ``expected``."""
    try:
        found = json.loads(about["settings"])
    except (KeyError, ValueError):
        raise UserError(f"{path}: expected a file of codes, it has no settings") from None
    for name, value in expected.items():
        if found.get(name) != value:
            raise UserError(f"{path} holds codes with {name} {found.get(name)}, expected {value}; move it away")


class Codes:
    """Codes of one split, drawn per epoch: from either orientation, and from the stochastic encoder's distribution."""

    def __init__(self, plain: Arrays, flipped: Arrays | None = None, sample: bool = True, seed: int = 0) -> None:
        self.plain, self.flipped = (_tensors(arrays) for arrays in (plain, flipped))
        self.sample, self.seed = sample, seed

    def draw(self, epoch: int) -> Tensor:
        """Codes [n, d] of an epoch: a function of the seed and the epoch."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, epoch))
        codes = self.plain
        if self.flipped:
            n = len(next(iter(codes.values())))
            mirrored = torch.rand(n, 1, generator=generator) < 0.5
            codes = {name: torch.where(mirrored, self.flipped[name], value) for name, value in codes.items()}
        if "z" in codes:
            return codes["z"]
        if not self.sample:
            return codes["mu"]
        eps = torch.randn(codes["mu"].shape, generator=generator)
        return codes["mu"] + (codes["log_sigma"].exp() + 0.01) * eps


def _tensors(arrays: Arrays | None) -> dict[str, Tensor] | None:
    names = ("z",) if arrays and "mu" not in arrays else ("mu", "log_sigma")
    return arrays and {name: torch.from_numpy(arrays[name]) for name in names}
