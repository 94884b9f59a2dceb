"""What every data set of images has in common."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dbae.config import UserError


class ImageDataset(Dataset):
    """A map-style data set of one split: ``ds[i]`` is a uint8 image [3, size, size] and its position ``i``.

    Subclasses say what stands behind an index of the whole set: ``image``, ``name`` and, with labels, ``read_labels``.
    """

    has_labels = False

    def __init__(self, title: str, size: int, indices: Sequence[int]) -> None:
        """``title`` names the set in messages; ``indices`` are the split's, into the whole set: at least one."""
        if size < 1:
            raise UserError(f"image size: expected a positive number, got {size}")
        if not len(indices):
            raise UserError(f"{title}: expected images, there are none")
        self.title, self.size, self.indices = title, size, indices

    def image(self, index: int) -> Image.Image:
        """RGB image of size x size pixels. Raises UnreadableImage naming one that cannot be had."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What a person finds the image by: key or file name."""
        raise NotImplementedError

    def read_labels(self) -> tuple[tuple[str, ...], Tensor]:
        """Names of the k labels and their values [n, k] float32 for this split; UserError where there are none."""
        raise UserError(f"{self.title} has no labels")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        pixels = np.asarray(self.image(self.indices[i])).transpose(2, 0, 1)
        return torch.from_numpy(np.array(pixels, order="C")), range(len(self))[i]

    def name_of(self, i: int) -> str:
        """Name of the image at position ``i`` of the split."""
        return self.name(self.indices[i])

    @cached_property
    def _labels(self) -> tuple[tuple[str, ...], Tensor]:
        return self.read_labels()

    @property
    def label_names(self) -> tuple[str, ...]:
        return self._labels[0]

    @property
    def labels(self) -> Tensor:
        return self._labels[1]
