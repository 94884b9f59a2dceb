"""Features of images: computed once by a frozen model, kept on disk, drawn from as often as needed; and pixels.

An ``Encode`` takes uint8 images [n, 3, H, W] and their numbers, and returns named arrays [n, d] on any device: ``z``
where that is all there is to an image's code, or what its code is drawn from.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import blobfile as bf
import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dbae.config import UserError
from dbae.io import is_other, require_finite, seed_for, with_command
from eval.arrays import Arrays, read_arrays, write_arrays

Encode = Callable[[Tensor, Sequence[int]], dict[str, Tensor]]
Code = Callable[[dict[str, Tensor], Generator], Tensor]  # an epoch's arrays, and where random numbers come from -> z


def encode_dataset(
    encode: Encode, dataset: Dataset, batch_size: int = 64, flip: bool = False, desc: str = ""
) -> Arrays:
    """Features of a whole data set, in its order, and ``index``: the one call to use in a notebook.

    ``dataset[i]`` is a uint8 image [3, H, W] and its number; ``flip`` encodes the mirrored images; ``desc`` names a
    progress bar, without it there is none.
    """
    batches = tqdm(DataLoader(dataset, batch_size), desc=desc, unit="batch", disable=not desc, mininterval=1)
    return _joined(list(encode_batches(encode, batches, flip)))


@torch.no_grad()
def encode_batches(encode: Encode, batches: Iterable[tuple[Tensor, Tensor]], flip: bool = False) -> Iterator[Arrays]:
    """Features of each batch of uint8 images [n, 3, H, W] and numbers [n]; the numbers stand under ``index``.

    Of a batch without images they are all there is. Raises UserError for features that are not finite.
    """
    for images, index in batches:
        features = encode(images.flip(3) if flip else images, index.tolist()) if len(index) else {}
        features = {name: require_finite("codes", value.float().cpu()).numpy() for name, value in features.items()}
        yield features | {"index": index.numpy()}


@dataclass(frozen=True)
class FeatureCache:
    """A file of features in the making: its settings, and the batches that processes have finished.

    Batches of every process lie in a folder beside the file, named by the settings, so that an interrupted run goes on
    and another one never mixes in.
    """

    path: str
    settings: dict[str, Any]
    processes: int = 1
    batch_size: int = 64

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that stand for the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def finished(self) -> bool:
        """Whether the file is there. Raises UserError where it was made with other settings, or is none of ours."""
        if not bf.exists(self.path):
            return False
        text = read_arrays(self.path)[1].get("settings", "{}")
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        return not is_other(self.path, "codes", lambda: found, self.settings)

    def done(self, rank: int) -> int:
        """Number of a process's batches that are on disk, from the first on."""
        return next(i for i in count() if not bf.exists(self._batch(rank, i)))

    def add(self, rank: int, i: int, arrays: Arrays) -> None:
        """Keep the features of batch ``i`` of a process."""
        write_arrays(self._batch(rank, i), arrays)

    def blocks(self) -> Iterator[Arrays]:
        """Batches of the same number of all processes as one, in the order of the images, by and by."""
        for i in range(self.done(0)):
            paths = [self._batch(r, i) for r in range(self.processes)]
            parts = [read_arrays(path)[0] for path in paths if bf.exists(path)]
            if parts := [part for part in parts if len(part["index"])]:
                joined = _joined(parts)
                order = joined["index"].argsort()
                yield {name: values[order] for name, values in joined.items()}

    def collect(self) -> Arrays:
        """All processes' batches as one, in the order of the images; an empty ``index`` alone where no image is."""
        return _joined(list(self.blocks()) or [{"index": np.empty(0, np.int64)}])

    def write(self, arrays: Arrays, about: dict[str, str]) -> None:
        """Write the file, with ``about`` beside the settings, and remove the batches."""
        write_arrays(self.path, arrays, {"settings": json.dumps(with_command(self.settings)), **about})
        self.discard()

    def discard(self) -> None:
        """Remove the batches."""
        folder = bf.dirname(self._batch(0, 0))
        if bf.isdir(folder):  # or the same command has ended elsewhere
            bf.rmtree(folder)

    def _batch(self, rank: int, i: int) -> str:
        return f"{self.path}.{self.key}-{self.processes}x{self.batch_size}.parts/{rank}_{i}.npz"


@dataclass(frozen=True)
class CachedFeatures:
    """Features of one split, drawn anew for every epoch: from either orientation, and from a stochastic code.

    ``code`` turns an epoch's arrays into codes [n, d], with random numbers from the generator that it is given.
    """

    plain: Arrays
    flipped: Arrays | None = None
    code: Code = lambda arrays, generator: arrays["z"]
    seed: int = 0

    def draw(self, epoch: int) -> Tensor:
        """Codes [n, d] of an epoch: a function of the seed and the epoch."""
        generator = Generator().manual_seed(seed_for(self.seed, epoch))
        arrays = {name: torch.from_numpy(values) for name, values in self.plain.items() if name != "index"}
        if self.flipped:
            mirrored = torch.rand(len(next(iter(arrays.values()))), 1, generator=generator) < 0.5
            arrays = {n: torch.where(mirrored, torch.from_numpy(self.flipped[n]), x) for n, x in arrays.items()}
        return self.code(arrays, generator)


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def reduced(x: Tensor, size: int) -> Tensor:
    """Images [n, 3, s, s] -> [n, 3 size^2]: area averages over a grid of size x size. Raises UserError if s < size."""
    if min(x.shape[2:]) < size:
        raise UserError(f"pixels: expected images of at least {size}x{size}, got {list(x.shape)}")
    return F.interpolate(x, size=(size, size), mode="area").flatten(1)


def pca(rows: np.ndarray, dim: int, limit: int = 20_000, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Fit on ``rows`` [n, p]; the result maps rows [m, p] to their ``dim`` principal components [m, dim].

    Of more than ``limit`` rows a random choice is used. Randomised PCA, not whitened. Raises UserError for a dimension
    that the rows do not have.
    """
    from sklearn.decomposition import PCA

    chosen = rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit])]
    if not 1 <= dim <= min(chosen.shape):
        raise UserError(f"pca: expected a dimension of 1 to {min(chosen.shape)} (rows, values), got {dim}")
    model = PCA(dim, svd_solver="randomized", random_state=seed % 2**32).fit(chosen)
    return lambda x: torch.from_numpy(model.transform(x.cpu().numpy())).float()
