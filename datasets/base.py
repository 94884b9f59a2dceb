"""What every data set of images has in common, and how a set is cut into splits."""

import copy
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.images import BadImage, UnreadableImage, reason_of
from datasets.labels import Factors, LabelTable, Targets
from dbae.config import UserError

SPLITS = ("train", "valid", "test")
CHOICES = (*SPLITS, "all")  # of an option: all is the whole set
CHEAP = 1 << 26  # bytes that are read to tell data sets apart


class ImageDataset(Dataset):
    """A map-style data set of one split: ``ds[i]`` is a uint8 image [3, size, size] and its position ``i``.

    An item raises UnreadableImage, with the image's name, where that one image is at fault. Subclasses say what stands
    behind an index of the whole set: ``image``, ``name`` and, with labels, ``table``.
    """

    labels_path: str | None = None  # file of the labels
    kinds: tuple[str, ...] = ()  # of labels that there can be
    parts: Any = None  # OwnParts of own images: how they are split

    def __init__(self, title: str, size: int, indices: Sequence[int]) -> None:
        """``title`` names the set in messages; ``indices`` are the split's, into the whole set: at least one."""
        if size < 1:
            raise UserError(f"image size: expected a positive number, got {size}")
        if not len(indices):
            raise UserError(f"{title}: expected images, there are none")
        self.title, self.size, self.indices = title, size, indices

    def image(self, index: int) -> Image.Image:
        """RGB image of size x size pixels. Raises BadImage, OSError or UnreadableImage for one that cannot be had."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What a person finds the image by: key or file name."""
        raise NotImplementedError

    def table(self, kind: str | None) -> LabelTable:
        """The file of labels of that kind, with a row under ``row_name`` for every image; UserError without one."""
        raise UserError(f"{self.title} has no labels")

    def row_name(self, index: int) -> str:
        return self.name(index)

    @property
    def has_labels(self) -> bool:
        """Whether there is something for ``targets`` to read, though it may be wrong."""
        return self.labels_path is not None

    def targets(self, kind: str | None = None) -> Targets:
        """Labels of the split's images: of a kind, or without one as they stand, so that -1 is no 0."""
        if not self.kinds:
            raise UserError(f"{self.title} has no labels")
        if kind and kind not in self.kinds:
            raise UserError(f"{self.title}: expected labels of the kind {' or '.join(self.kinds)}, got {kind}")
        return self.table(kind).targets(map(self.row_name, self.indices), kind)

    @property
    def factors(self) -> Factors | None:
        """Factors of variation of the split's images, where they are known: of drawn ones."""
        return None

    def files(self) -> Iterable[str]:
        """Paths of the files that hold the split's images: one for each, or one for all; none where they are drawn."""
        return ()

    def digest(self, times: bool = True) -> str:
        """16 hexadecimal digits of what the split holds: names of images, and sizes and times of change of files.

        Without ``times`` it is the same for a copy.
        """
        return digest_of(map(self.name_of, range(len(self))), self.files(), times)

    def labels_digest(self, kind: str | None = None) -> str:
        """16 hexadecimal digits of what ``targets`` has of a kind: names and values."""
        targets = self.targets(kind)
        digest = hashlib.sha256(repr((targets.kind, targets.names)).encode(errors="surrogateescape"))
        digest.update(targets.values.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def place(self) -> str:
        """Resolved path of the folder or file that holds the images."""
        return os.path.realpath(self.title)

    def identity(self) -> dict[str, Any]:
        """What results depend on, of the images: where they lie, how large they are read, and their ``digest``."""
        return {"data": self.place, "size": self.size, "images": len(self), "digest of images": self.digest()}

    def part(self, positions: Sequence[int]) -> "ImageDataset":
        """The same with the images at some positions only."""
        other = copy.copy(self)
        other.indices = [self.indices[i] for i in positions]
        return other

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        try:
            pixels = np.asarray(self.image(self.indices[i])).transpose(2, 0, 1)
        except (BadImage, OSError) as error:
            raise UnreadableImage(f"{self.title} has a bad image {self.name_of(i)}: {reason_of(error)}") from error
        return torch.from_numpy(np.array(pixels, order="C")), range(len(self))[i]

    def name_of(self, i: int) -> str:
        """Name of the image at position ``i`` of the split."""
        return self.name(self.indices[i])


def digest_of(names: Iterable[str], files: Iterable[str], times: bool = True) -> str:
    """16 hexadecimal digits of names of images and of sizes, and unless told otherwise times of change, of files.

    The contents of CHEAP bytes of files count, too: of small sets all, of large ones the first files.
    """
    digest, read = hashlib.sha256(), 0
    for name in names:
        digest.update(f"{name}\0".encode(errors="surrogateescape"))
    for path in files:
        try:
            stat = os.stat(path)
            digest.update(f"{stat.st_size} {stat.st_mtime_ns * times}\0".encode())
            if read < CHEAP:
                with open(path, "rb") as file:
                    digest.update(content := file.read(CHEAP - read))
                read += len(content)
        except OSError:  # as a bad image is the reader's business
            digest.update(b"unreadable\0")
    return digest.hexdigest()[:16]


def check_split(title: str, split: str, expected: Sequence[str] = ("train", "test")) -> None:
    """Raise UserError for another split. Sets without official splits are whole in train and in test, as officially."""
    if split not in expected:
        raise UserError(f"split of {title}: expected {' or '.join(expected)}, got {split!r}")


def cut(indices: Sequence[int], split_range: str | None) -> Sequence[int]:
    """The part A:B (B excluded, either may be left out) of a split. Raises UserError if it is empty or reaches out."""
    if split_range is None:
        return indices
    match = re.fullmatch(r"(\d*):(\d*)", split_range)
    begin = int(match[1] or 0) if match else 0
    end = int(match[2] or len(indices)) if match else 0
    if not begin < end <= len(indices):
        raise UserError(f"split range: expected A:B with 0 <= A < B <= {len(indices)}, got {split_range!r}")
    return indices[begin:end]


def tenths(title: str, length: int, first: int, last: int) -> range:
    """Indices in the tenths first..last of a set. Raises UserError if so small a set has none there."""
    part = range(length * first // 10, length * last // 10)
    if not part:
        raise UserError(f"{title}: expected 10 images or more to split, got {length}")
    return part
