"""Images with classes, as classifiers are trained on: splits cut to a limit, in memory, and batches drawn of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import Labelled
from datasets.cache import cached
from datasets.loader import CachedImages, gather
from dbae import runtime
from dbae.io import to_float

Splits = Mapping[str, Sequence[Labelled]]  # each may be of several parts of a data set
Data = tuple[CachedImages, Tensor]  # images and their classes [n]


# Limits


def spread(parts: Sequence[Labelled], limit: int | None) -> list[Labelled]:
    """``limit`` images, evenly spread over the parts, as classes may stand one after another; all for None."""
    whole = sum(len(part.targets) for part in parts)
    n = min(whole, limit or whole)
    chosen, found, begin = [i * whole // n for i in range(n)], [], 0
    for part in parts:
        end = begin + len(part.targets)
        rows = [i - begin for i in chosen if begin <= i < end]
        found += [part.part(rows)] if rows else []
        begin = end
    return found


def drawn(part: Labelled, limit: int | None, seed: int) -> Labelled:
    """A random choice of ``limit`` images of a split by the seed, in their order; all for None."""
    if limit is None or limit >= len(part.targets):
        return part
    generator = torch.Generator().manual_seed(seed)
    return part.part(torch.randperm(len(part.targets), generator=generator)[:limit].sort().values.tolist())


# What results depend on


def about(splits: Splits) -> dict[str, list[Any]]:
    """What results depend on, of the images and labels of each split, ready for JSON: of its parts one by one."""
    found = {}
    for split, parts in splits.items():
        each = [part.identity() for part in parts]
        found |= {f"{split} {name}": [one[name] for one in each] for name in each[0]}
    return found


def files(splits: Splits) -> list[str]:
    """Paths of what is read, which nothing may overwrite."""
    return [path for parts in splits.values() for part in parts for path in part.files()]


# In memory, and in batches


def read(parts: Sequence[Labelled], device: torch.device, num_workers: int | None = 0, quiet: bool = False) -> Data:
    """All images of a split, in the memory of the host, with their classes."""
    how = ("host", device, num_workers, quiet or runtime.rank() > 0)
    return joined([(cached(part.dataset, *how), part.targets.values) for part in parts])


def joined(parts: Sequence[Data]) -> Data:
    """The images of several parts as one; of a single one as they are."""
    if len(parts) == 1:
        return parts[0]
    pixels, classes = torch.cat([images.images for images, _ in parts]), torch.cat([each for _, each in parts])
    return CachedImages(pixels, torch.arange(len(pixels))), classes


class Rows(Protocol):
    """What classifiers see in place of images, such as codes that were computed before."""

    def __len__(self) -> int: ...

    def rows(self, numbers: list[int], device: torch.device, training: bool) -> Tensor:
        """Those rows on ``device``, drawn anew for ``training``."""


def batch_of(
    data: CachedImages | Rows, numbers: list[int], device: torch.device, augment: tuple[int, bool] | None = None
) -> Tensor:
    """Images [n, 3, s, s] in [-1, 1], for training with the arguments of ``crop_and_flip``; or rows of what it is."""
    if not isinstance(data, CachedImages):
        return data.rows(numbers, device, augment is not None)
    images = gather(data.images, numbers, device)
    return to_float(crop_and_flip(images, *augment) if augment else images)


def crop_and_flip(images: Tensor, crop: int, flip: bool) -> Tensor:
    """Images uint8 [n, 3, s, s]: half of them mirrored, then cut out at random of themselves with a black margin."""
    if flip:
        images = torch.where(torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5, images.flip(3), images)
    if not crop:
        return images
    n, size = len(images), images.shape[-1]
    padded = F.pad(images, (crop,) * 4)
    top, left = torch.randint(2 * crop + 1, (2, n, 1), device=images.device)
    along = torch.arange(size, device=images.device)
    rows, columns = (top + along)[:, None, :, None], (left + along)[:, None, None, :]
    each, channel = torch.arange(n, device=images.device), torch.arange(3, device=images.device)
    return padded[each[:, None, None, None], channel[:, None, None], rows, columns]
