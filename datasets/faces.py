"""Toy faces as a data set: drawn on the fly, or read from a prepared LMDB that holds the same pixels."""

import logging

from PIL import Image
from torch import Tensor, from_numpy

from datasets import toyfaces
from datasets.base import ImageDataset
from datasets.images import BadImage, UnreadableImage, decode
from datasets.lmdb_store import LmdbStore
from datasets.splits import check_split, cut
from dbae.config import UserError

KEY = "toy-%06d"
SEED = 0  # of the one official set of toy faces
SPLITS = {"train": range(10_000), "valid": range(10_000, 11_000), "test": range(11_000, 12_000)}
logger = logging.getLogger(__name__)


class ToyFaces(ImageDataset):
    """One split of the embedded data set. Labels are the 40 attributes, targets the drawing parameters.

    A store made at the same size saves the drawing; one of another size is left aside, because resized pixels would
    differ from drawn ones.
    """

    has_labels = True
    label_names = toyfaces.ATTRIBUTES
    target_names = toyfaces.PARAMETERS

    def __init__(self, split: str, size: int, split_range: str | None = None, store: LmdbStore | None = None) -> None:
        check_split("toyfaces", split, tuple(SPLITS))
        super().__init__("toyfaces", size, cut(SPLITS[split], split_range))
        self.store = store if store and _has_size(store, size) else None

    def name(self, index: int) -> str:
        return f"toyfaces-{index:06d}"

    def image(self, index: int) -> Image.Image:
        data = self.store.get(KEY % index) if self.store else None
        return self._stored(KEY % index, data) if data else toyfaces.render(toyfaces.describe(index, SEED), self.size)

    def read_labels(self) -> tuple[tuple[str, ...], Tensor]:
        return toyfaces.ATTRIBUTES, from_numpy(toyfaces.labels(self.indices, SEED)).float()

    @property
    def targets(self) -> Tensor:
        """Drawing parameters [n, len(target_names)] float32."""
        return from_numpy(toyfaces.targets(self.indices, SEED))

    def _stored(self, key: str, data: bytes) -> Image.Image:
        try:
            image = decode(data)
        except BadImage as error:
            raise UnreadableImage(f"{self.store.path} has a bad image {key}: {error}") from error
        if image.size != (self.size, self.size):
            found = "{}x{}".format(*image.size)
            raise UnreadableImage(f"{self.store.path} has a bad image {key}: expected {self.size} pixels, got {found}")
        return image


def _has_size(store: LmdbStore, size: int) -> bool:
    first = store.get(KEY % 0)
    try:
        stored = decode(first).size if first else None
    except BadImage as error:
        raise UserError(f"{store.path} has a bad image {KEY % 0}: {error}") from error
    if stored != (size, size):
        logger.warning("%s: expected faces of %d pixels, found %s: they are drawn anew", store.path, size, stored)
    return stored == (size, size)
