"""The data sets: the table of the published LMDBs, folders of images, and the embedded toy faces."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from datasets import toyfaces
from datasets.base import CHOICES, SPLITS, ImageDataset, check_split, cut, tenths
from datasets.images import BadImage, CropBox, UnreadableImage, decode, fit, log_once, read_bytes
from datasets.label_files import find_beside, parse_partition, read_labels, read_text
from datasets.labels import KINDS, Factors, LabelTable, Targets, class_folders
from datasets.listing import image_names
from datasets.lmdb import LmdbStore, open_store
from datasets.parts import OWN_LABELS, TENTHS, own_parts
from datasets.toyfaces.face import HAIR_COLOURS
from dbae.config import UserError

TOY_KEY = "toy-%06d"
TOY_SEED = 0  # of the one official set of toy faces
TOY_SPLITS = {"train": range(10_000), "valid": range(10_000, 11_000), "test": range(11_000, 12_000)}


@dataclass(frozen=True)
class Source:
    """One LMDB data set: where it is looked for, how its keys are built, how it is cut and split."""

    name: str
    prepare: str  # arguments of `python -m datasets.prepare` that make it
    keys: tuple[str, ...]  # printf formats, tried in order; none: any format that is there
    folders: tuple[str, ...] = ()  # names looked for under the data root, in order
    complete: int | None = None  # number of images in the published set
    crop: CropBox | None = None
    labels: str = "labels.csv"  # file of labels beside the images
    row: str = ""  # printf format of the names in it; none: the keys
    first: int = 0  # number in the row's name of index 0
    partition: str | None = None  # file that says which split each image belongs to
    splits: dict[str, tuple[int, int]] | None = None  # official ranges; None: train and test are both the whole set
    held_out: bool = False  # no official valid: it is the last tenth of train, which stays in that, too

    def row_name(self, index: int) -> str:
        """Name of an image's row in the files of labels and of the partition, where ``row`` has its format."""
        return self.row % (self.first + index)


def _folders(name: str, *sizes: int) -> tuple[str, ...]:
    return (name, f"{name}.lmdb", *(f"{name}{size}.lmdb" for size in sizes), *(f"{name}{size}" for size in sizes))


SIZES = (256, 128, 64)  # that `prepare` writes for the sets whose keys begin with the size
_KEYS_5 = tuple(f"{size}-%05d" for size in SIZES)
_KEYS_7 = tuple(f"{size}-%07d" for size in SIZES)

DATASETS = {
    source.name: source
    for source in (
        Source("ffhq", "ffhq", _KEYS_5, _folders("ffhq", *SIZES), complete=70_000),
        Source("ffhq64", "ffhq", _KEYS_5, _folders("ffhq", *SIZES), complete=70_000),
        Source("ffhq256", "ffhq", ("256-%05d",), _folders("ffhq", 256), complete=70_000),
        Source(
            *("celebahq", "celebahq", ("128-%05d", "256-%05d", "64-%05d"), _folders("celebahq", *SIZES), 30_000),
            labels="CelebAMask-HQ-attribute-anno.txt",
            row="%d.jpg",
        ),
        Source(
            *("celeba", "celeba", ("None-%07d",), _folders("celeba"), 202_599),
            crop=CropBox(top=57, left=25, side=128, full=(178, 218)),
            labels="list_attr_celeba.txt",
            row="%06d.jpg",
            first=1,
            partition="list_eval_partition.txt",
            splits={"train": (0, 162_770), "valid": (162_770, 182_637), "test": (182_637, 202_599)},
        ),
        *(
            Source(
                *(name, name, ("image-%06d",), _folders(name), images),
                partition="partition.csv",
                held_out=True,
                splits={"train": (0, train), "valid": (train - train // 10, train), "test": (train, images)},
            )
            for name, train, images in (
                ("cifar10", 50_000, 60_000),
                ("cifar100", 50_000, 60_000),
                ("tiny", 100_000, 110_000),
            )
        ),
        Source("horse", "lsun --category horse", _KEYS_7, _folders("horse", *SIZES), complete=2_000_340),
        Source("bedroom", "lsun --category bedroom", _KEYS_7, _folders("bedroom", *SIZES), complete=3_033_042),
    )
}
OWN_LMDB = Source("folder", "folder", keys=())  # an LMDB that `prepare folder` made, read as folder:PATH


class OwnImages(ImageDataset):
    """What folders and LMDBs of own images have in common."""

    def _own_split(self, folder: str, names: Sequence[str], split: str) -> Sequence[int]:
        """Indices of a split of the named images, whose labels lie in the folder; ``parts`` are noted."""
        check_split(folder, split, CHOICES)
        self.parts = own_parts(folder, names)
        if split != "all":
            log_once(f"{folder}: {self.parts.about}")
        return self.parts.of(split, len(names))


class LmdbImages(OwnImages):
    """One split of an LMDB, with the labels of a file beside it; ``whole`` is as in ``datasets.build``."""

    def __init__(
        self, path: str, source: Source, split: str, size: int, split_range: str | None = None, whole: bool = False
    ) -> None:
        self.source, self.store = source, open_store(path)
        self.key_format = self.store.key_format(source.keys)
        self.length, stated = self.store.length(self.key_format), self.store.stated_length()
        if stated is not None and stated < self.length:
            log_once(f"{path}: the key length says {stated}, all {self.length} images that are there are used")
        if source is OWN_LMDB:
            indices = self._own_split(path, [self.name(i) for i in range(self.length)], split)
        else:
            indices = source_split(source, split, self.length, self.store.folder, self.row_name)
        super().__init__(path, size, cut(indices, split_range))
        self.kinds = ("binary", "real") if source.row else KINDS
        folder = path if source is OWN_LMDB else self.store.folder  # of a single file, not the labels of its parent
        self.labels_path = find_beside(folder, source.labels) or os.path.join(folder, source.labels)
        if whole:
            complete = self.store.image_entries() >= self.length
            for index in self.indices[-1:] if complete else self.indices:
                self._check_key(index)

    def name(self, index: int) -> str:
        return self.key_format % index

    def image(self, index: int) -> Image.Image:
        return fit(decode(self._bytes(index)), self.size, self.source.crop)

    def files(self) -> list[str]:
        return [self.store.file]

    @property
    def stored_size(self) -> int | None:
        """Pixels on a side, where the keys begin with them."""
        begin = self.key_format.partition("-")[0]
        return int(begin) if begin.isdecimal() else None

    @property
    def has_labels(self) -> bool:
        return os.path.isfile(self.labels_path)

    def table(self, kind: str | None) -> LabelTable:
        if not self.has_labels:
            raise UserError(f"{self.title} has no labels: expected {self.labels_path}")
        return read_labels(self.labels_path)

    def row_name(self, index: int) -> str:
        return self.source.row_name(index) if self.source.row else self.name(index)

    def _bytes(self, index: int) -> bytes:
        self._check_key(index)
        return self.store.get(self.name(index))

    def _check_key(self, index: int) -> None:
        """Raise UnreadableImage for an image that is not there."""
        if not self.store.has(self.name(index)):
            expected = f"{self.key_format % 0} to {self.key_format % (self.length - 1)} without gaps"
            inspect = f"python -m datasets.prepare inspect {self.title}"
            raise UnreadableImage(f"{self.title} has no image {self.name(index)}: expected {expected}, see `{inspect}`")


def source_split(source: Source, split: str, length: int, folder: str, row_name: Callable[[int], str]) -> Sequence[int]:
    """Indices of a split of ``length`` images: by the partition file in ``folder``, official range, or 80/10/10 %.

    ``row_name`` is the name of an image's row in the partition.
    """
    if split == "all":
        return range(length)
    if source.splits is None:
        if length != (source.complete or length):
            log_once(f"{folder}: {length} images, the published {source.name} has {source.complete}")
        check_split(source.name, split)
        return range(length)
    check_split(source.name, split, SPLITS)
    path = find_beside(folder, source.partition)
    if path:
        rows = map(row_name, range(length))
        numbers = parse_partition(path, read_text(path)).targets(rows).values[:, 0]
        held_out = split == "valid" and source.held_out
        indices = (numbers == SPLITS.index("train" if held_out else split)).nonzero().flatten().tolist()
        indices = indices[len(indices) - len(indices) // 10 :] if held_out else indices
        if not indices:
            raise UserError(f"{path} puts none of the {length} images in {split}; without it they split 80/10/10 %")
        return indices
    if length == source.complete:
        return range(*source.splits[split])
    found = f"{length} of {source.complete} images and no {source.partition}"
    log_once(f"{folder}: {found}: split by index, 80 % train, 10 % valid, 10 % test")
    return tenths(folder, length, *TENTHS[split])


class FolderImages(OwnImages):
    """One split of the images under a folder, which are sorted by name; see ``own_parts``.

    Labels come from ``labels``, or from ``labels.csv`` in the folder: a header, then one row per image with its path
    below the folder and its labels. Where there is no such file, its folders may be classes.
    """

    kinds = KINDS

    def __init__(
        self, root: str, split: str, size: int, split_range: str | None = None, labels: str | None = None
    ) -> None:
        self.names = image_names(root)
        self.labels_path = labels or find_beside(root, OWN_LABELS)
        super().__init__(root, size, cut(self._own_split(root, self.names, split), split_range))

    def name(self, index: int) -> str:
        return self.names[index]

    def image(self, index: int) -> Image.Image:
        """Upright, and cut to its central square."""
        return fit(decode(read_bytes(os.path.join(self.title, self.names[index]))), self.size)

    def files(self) -> Iterator[str]:
        return (os.path.join(self.title, self.names[index]) for index in self.indices)

    def table(self, kind: str | None) -> LabelTable:
        if self.labels_path is None and kind == "class":
            return class_folders(self.title, self.names)
        if self.labels_path is None:
            raise UserError(f"{self.title} has no labels: expected {os.path.join(self.title, 'labels.csv')}")
        table = read_labels(self.labels_path)
        if others := table.others(self.names):
            log_once(f"{self.labels_path}: {others} of {len(table.rows)} rows are for images that are not there")
        return table


class ToyFaces(ImageDataset):
    """One split of the embedded data set: drawn on the fly, or read from an LMDB that holds the same pixels.

    Binary labels are the 40 attributes, real ones the drawing parameters, classes the colours of hair and brows.
    """

    kinds = KINDS
    has_labels = True

    def __init__(self, split: str, size: int, split_range: str | None = None, store: LmdbStore | None = None) -> None:
        check_split("toyfaces", split, CHOICES)
        indices = range(TOY_SPLITS["test"].stop) if split == "all" else TOY_SPLITS[split]
        super().__init__("toyfaces", size, cut(indices, split_range))
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

    def files(self) -> list[str]:
        return [self.store.file] if self.store else []

    @property
    def place(self) -> str:
        return os.path.realpath(self.store.path) if self.store else self.title

    @property
    def factors(self) -> Factors:
        """The independent drawing parameters; of real numbers, which fifth of the split's images a value is in."""
        return Factors(tuple(toyfaces.FACTORS), toyfaces.factors(self.indices, TOY_SEED))

    def targets(self, kind: str | None = None) -> Targets:
        if kind == "class":
            colours = list(HAIR_COLOURS)
            found = [colours.index(toyfaces.describe(index, TOY_SEED).hair_colour) for index in self.indices]
            return Targets("class", tuple(colours), torch.tensor(found))
        if kind == "real":
            return Targets("real", toyfaces.PARAMETERS, torch.from_numpy(toyfaces.targets(self.indices, TOY_SEED)))
        values = torch.from_numpy(toyfaces.labels(self.indices, TOY_SEED)).float()
        return Targets("binary", toyfaces.ATTRIBUTES, values)
