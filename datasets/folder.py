"""Images in a folder, with labels from a CSV where there is one."""

import os

from PIL import Image
from torch import Tensor, from_numpy

from datasets.base import ImageDataset
from datasets.folder_names import image_names
from datasets.images import BadImage, UnreadableImage, decode, fit, read_bytes
from datasets.labels import read_csv
from datasets.splits import cut, whole_set
from dbae.config import UserError


class FolderImages(ImageDataset):
    """All images under a folder, sorted by name; train and test are both the whole folder.

    Labels come from ``labels``, or from ``labels.csv`` in the folder: a header, then one row per image with its path
    below the folder and its numbers. Raises UserError for an unusable folder or table.
    """

    def __init__(
        self, root: str, split: str, size: int, split_range: str | None = None, labels: str | None = None
    ) -> None:
        self.names = image_names(root)
        beside = os.path.join(root, "labels.csv")
        self.labels_path = labels or (beside if os.path.isfile(beside) else None)
        super().__init__(root, size, cut(whole_set(root, split, len(self.names)), split_range))
        self.has_labels = self.labels_path is not None
        if self.has_labels:
            self.labels  # noqa: B018  (a wrong table is an error now, not after hours of training)

    def name(self, index: int) -> str:
        return self.names[index]

    def image(self, index: int) -> Image.Image:
        """Upright image, cut to its central square. Raises UnreadableImage naming a broken file."""
        return fit(read_image(os.path.join(self.title, self.names[index]), upright=True), self.size)

    def read_labels(self) -> tuple[tuple[str, ...], Tensor]:
        if self.labels_path is None:
            raise UserError(f"{self.title} has no labels: expected {os.path.join(self.title, 'labels.csv')}")
        table = read_csv(self.labels_path)
        return table.names, from_numpy(table.select(map(self.name, self.indices)))


def read_image(path: str, upright: bool = False) -> Image.Image:
    """RGB image in a file. Raises UnreadableImage naming a broken or missing one."""
    try:
        return decode(read_bytes(path), upright)
    except (BadImage, OSError) as error:
        raise UnreadableImage(f"{path} is a bad image: {getattr(error, 'strerror', None) or error}") from error
