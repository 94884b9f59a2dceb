"""The data sets: LMDBs of the published ones, folders of images, and the embedded toy faces."""

import os

import torch
from PIL import Image

from datasets import toyfaces
from datasets.base import ImageDataset, check_split, cut, log_once
from datasets.images import BadImage, UnreadableImage, decode, fit, image_names, read_bytes
from datasets.labels import KINDS, LabelTable, Targets, class_folders, read_attributes, read_csv
from datasets.lmdb import LmdbStore, open_store
from datasets.sources import Source, source_split
from datasets.toyfaces.face import HAIR_COLOURS
from dbae.config import UserError

TOY_KEY = "toy-%06d"
TOY_SEED = 0  # of the one official set of toy faces
TOY_SPLITS = {"train": range(10_000), "valid": range(10_000, 11_000), "test": range(11_000, 12_000)}


class LmdbImages(ImageDataset):
    """One split of an LMDB. The environment is opened on first use in each process.

    ``whole`` is as in ``datasets.build``. Labels lie beside it: the file of the table's row, for own data a labels.csv.
    """

    def __init__(
        self, path: str, source: Source, split: str, size: int, split_range: str | None = None, whole: bool = False
    ) -> None:
        self.source, self.store = source, open_store(path)
        self.key_format = self.store.key_format(source.keys)
        self.length = self.store.length(self.key_format)
        indices = source_split(source, split, self.length, self.store.folder)
        super().__init__(path, size, cut(indices, split_range))
        self.kinds = ("binary", "real") if source.labels else KINDS
        self.labels_path = os.path.join(self.store.folder, source.labels.name if source.labels else "labels.csv")
        if whole:
            self._bytes(self.indices[-1])

    def name(self, index: int) -> str:
        return self.key_format % index

    def image(self, index: int) -> Image.Image:
        return fit(decode(self._bytes(index)), self.size, self.source.crop)

    @property
    def has_labels(self) -> bool:
        return os.path.isfile(self.labels_path)

    def table(self, kind: str | None) -> LabelTable:
        if not self.has_labels:
            raise UserError(f"{self.title} has no labels: expected {self.labels_path}")
        return (read_attributes if self.source.labels else read_csv)(self.labels_path)

    def row_name(self, index: int) -> str:
        return self.source.labels.row_name(index) if self.source.labels else self.name(index)

    def _bytes(self, index: int) -> bytes:
        data = self.store.get(self.name(index))
        if data is None:
            expected = f"{self.key_format % 0} to {self.key_format % (self.length - 1)} without gaps"
            inspect = f"python -m datasets.prepare inspect {self.title}"
            raise UnreadableImage(f"{self.title} has no image {self.name(index)}: expected {expected}, see `{inspect}`")
        return data


class FolderImages(ImageDataset):
    """All images under a folder, sorted by name; train and test are both the whole folder.

    Labels come from ``labels``, or from ``labels.csv`` in the folder: a header, then one row per image with its path
    below the folder and its labels. Where there is no such file, its folders may be classes. Raises UserError for an
    unusable folder or table.
    """

    kinds = KINDS

    def __init__(
        self, root: str, split: str, size: int, split_range: str | None = None, labels: str | None = None
    ) -> None:
        self.names = image_names(root)
        beside = os.path.join(root, "labels.csv")
        self.labels_path = labels or (beside if os.path.isfile(beside) else None)
        check_split(root, split)
        super().__init__(root, size, cut(range(len(self.names)), split_range))
        self._table = read_csv(self.labels_path) if self.labels_path else None
        if self._table:
            self.targets()  # a wrong table is an error now, not after hours of training

    def name(self, index: int) -> str:
        return self.names[index]

    def image(self, index: int) -> Image.Image:
        """Upright, and cut to its central square."""
        return fit(decode(read_bytes(os.path.join(self.title, self.names[index])), upright=True), self.size)

    def table(self, kind: str | None) -> LabelTable:
        if self._table is None and kind == "class":
            return class_folders(self.title, self.names)
        if self._table is None:
            raise UserError(f"{self.title} has no labels: expected {os.path.join(self.title, 'labels.csv')}")
        return self._table


class ToyFaces(ImageDataset):
    """One split of the embedded data set: drawn on the fly, or read from a prepared LMDB that holds the same pixels.

    Binary labels are the 40 attributes, real ones the drawing parameters, classes the colours of hair and brows. Stored
    faces of the same size save the drawing; those of another size are left aside, because resized pixels would differ.
    """

    kinds = KINDS
    has_labels = True

    def __init__(self, split: str, size: int, split_range: str | None = None, store: LmdbStore | None = None) -> None:
        check_split("toyfaces", split, tuple(TOY_SPLITS))
        super().__init__("toyfaces", size, cut(TOY_SPLITS[split], split_range))
        self.store = store

    def name(self, index: int) -> str:
        return f"toyfaces-{index:06d}"

    def image(self, index: int) -> Image.Image:
        """Raises UnreadableImage naming the key and the LMDB for a broken image in the store."""
        data = self.store.get(TOY_KEY % index) if self.store else None
        try:
            stored = decode(data) if data else None
        except BadImage as error:
            raise UnreadableImage(f"{self.store.path} has a bad image {TOY_KEY % index}: {error}") from error
        if stored and stored.size == (self.size, self.size):
            return stored
        if stored:
            log_once(f"{self.store.path}: expected faces of {self.size} pixels, others are drawn anew")
        return toyfaces.render(toyfaces.describe(index, TOY_SEED), self.size)

    def targets(self, kind: str | None = None) -> Targets:
        if kind == "class":
            colours = list(HAIR_COLOURS)
            found = [colours.index(toyfaces.describe(index, TOY_SEED).hair_colour) for index in self.indices]
            return Targets("class", tuple(colours), torch.tensor(found))
        if kind == "real":
            return Targets("real", toyfaces.PARAMETERS, torch.from_numpy(toyfaces.targets(self.indices, TOY_SEED)))
        values = torch.from_numpy(toyfaces.labels(self.indices, TOY_SEED)).float()
        return Targets("binary", toyfaces.ATTRIBUTES, values)
