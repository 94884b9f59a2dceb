"""Images in an LMDB, as described by a row of the table of data sets."""

import os
from collections.abc import Iterable

from PIL import Image
from torch import Tensor, from_numpy

from datasets.base import ImageDataset
from datasets.images import BadImage, UnreadableImage, decode, fit
from datasets.labels import LabelTable, read_attributes, read_csv
from datasets.lmdb_store import is_lmdb, open_store
from datasets.sources import Source
from datasets.splits import cut, source_split
from dbae.config import UserError


class LmdbImages(ImageDataset):
    """One split of an LMDB. The environment is opened on first use in each process.

    ``whole`` is as in ``datasets.build``.
    """

    def __init__(
        self, path: str, source: Source, split: str, size: int, split_range: str | None = None, whole: bool = False
    ) -> None:
        self.source, self.store = source, open_store(path)
        self.key_format = self.store.key_format(source.keys)
        self.length = self.store.length(self.key_format)
        indices = source_split(source, split, self.length, self.store.folder)
        super().__init__(path, size, cut(indices, split_range))
        if whole:
            self._bytes(self.indices[-1])

    def name(self, index: int) -> str:
        return self.key_format % index

    def image(self, index: int) -> Image.Image:
        """Raises UnreadableImage naming the key and the LMDB for a missing or broken image."""
        data = self._bytes(index)
        try:
            return fit(decode(data), self.size, self.source.crop)
        except BadImage as error:
            raise UnreadableImage(f"{self.title} has a bad image {self.name(index)}: {error}") from error

    @property
    def labels_path(self) -> str:
        """Where labels are expected: the table row's file, or ``labels.csv`` for own data."""
        return os.path.join(self.store.folder, self.source.labels.name if self.source.labels else "labels.csv")

    @property
    def has_labels(self) -> bool:
        return os.path.isfile(self.labels_path)

    def read_labels(self) -> tuple[tuple[str, ...], Tensor]:
        if not self.has_labels:
            raise UserError(f"{self.title} has no labels: expected {self.labels_path}")
        if self.source.labels is None:
            return _select(read_csv(self.labels_path), map(self.name, self.indices))
        return _select(read_attributes(self.labels_path), map(self.source.labels.row_name, self.indices))

    def _bytes(self, index: int) -> bytes:
        data = self.store.get(self.name(index))
        if data is None:
            raise UnreadableImage(self.store.missing(self.name(index), self.key_format, self.length))
        return data


def find_lmdb(source: Source, data_root: str, data_dir: str | None) -> str:
    """Path of a data set's LMDB: ``data_dir`` exactly, else the first usual name under ``data_root`` that exists.

    Raises UserError with the paths that were tried and the command that makes one.
    """
    tried = [data_dir] if data_dir else [os.path.join(data_root, folder) for folder in source.folders]
    found = next(filter(is_lmdb, tried), None)
    if found is None:
        command = f"python -m datasets.prepare {source.prepare} --source ORIGINALS --out {tried[0]}"
        raise UserError(f"no LMDB of {source.name} at {', '.join(tried)}: make one with `{command}`")
    return found


def _select(table: LabelTable, images: Iterable[str]) -> tuple[tuple[str, ...], Tensor]:
    return table.names, from_numpy(table.select(images))
