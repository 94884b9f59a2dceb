"""The table of LMDB data sets: everything in which they differ, and which of their images make a split."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from datasets.base import check_split, log_once, tenths
from datasets.images import CropBox
from datasets.labels import read_partition
from dbae.config import UserError

SPLITS = ("train", "valid", "test")
TENTHS = {"train": (0, 8), "valid": (8, 9), "test": (9, 10)}  # of the images, where there is no official split


@dataclass(frozen=True)
class LabelFile:
    """A text file of attributes beside the images."""

    name: str
    row: str  # printf format of the row's first word
    first: int  # number in the name of index 0

    def row_name(self, index: int) -> str:
        return self.row % (self.first + index)


@dataclass(frozen=True)
class Source:
    """One LMDB data set: where it is looked for, how its keys are built, how it is cut and split."""

    name: str
    prepare: str  # arguments of `python -m datasets.prepare` that make it
    keys: tuple[str, ...]  # printf formats, tried in order; none: any format that is there
    folders: tuple[str, ...] = ()  # names looked for under the data root, in order
    complete: int | None = None  # number of images in the published set
    crop: CropBox | None = None
    labels: LabelFile | None = None
    partition: str | None = None  # file that says which split each image belongs to
    splits: dict[str, tuple[int, int]] | None = None  # official ranges; None: train and test are both the whole set


def _folders(name: str, *sizes: int) -> tuple[str, ...]:
    return (name, f"{name}.lmdb", *(f"{name}{size}.lmdb" for size in sizes), *(f"{name}{size}" for size in sizes))


SIZES = (256, 128, 64)  # that `prepare` writes for the sets whose keys begin with the size
_KEYS_5 = tuple(f"{size}-%05d" for size in SIZES)
_KEYS_7 = tuple(f"{size}-%07d" for size in SIZES)

DATASETS = {
    source.name: source
    for source in (
        Source("ffhq", "ffhq", _KEYS_5, _folders("ffhq", *SIZES), complete=70_000),
        Source("ffhq256", "ffhq", ("256-%05d",), _folders("ffhq", 256), complete=70_000),
        Source(
            *("celebahq", "celebahq", ("128-%05d", "256-%05d", "64-%05d"), _folders("celebahq", *SIZES), 30_000),
            labels=LabelFile("CelebAMask-HQ-attribute-anno.txt", "%d.jpg", 0),
        ),
        Source(
            *("celeba", "celeba", ("None-%07d",), _folders("celeba"), 202_599),
            crop=CropBox(top=57, left=25, side=128, full=(178, 218)),
            labels=LabelFile("list_attr_celeba.txt", "%06d.jpg", 1),
            partition="list_eval_partition.txt",
            splits={"train": (0, 162_770), "valid": (162_770, 182_637), "test": (182_637, 202_599)},
        ),
        Source("horse", "lsun --category horse", _KEYS_7, _folders("horse", *SIZES), complete=2_000_340),
        Source("bedroom", "lsun --category bedroom", _KEYS_7, _folders("bedroom", *SIZES), complete=3_033_042),
    )
}
OWN_LMDB = Source("folder", "folder", keys=())  # an LMDB that `prepare folder` made, read as folder:PATH


def source_split(source: Source, split: str, length: int, folder: str) -> Sequence[int]:
    """Indices of a split of ``length`` images: by the partition file in ``folder``, official range, or 80/10/10 %."""
    if source.splits is None:
        if length != (source.complete or length):
            log_once(f"{folder}: {length} images, the published {source.name} has {source.complete}")
        check_split(source.name, split)
        return range(length)
    check_split(source.name, split, SPLITS)
    path = os.path.join(folder, source.partition or "")
    if os.path.isfile(path):
        partition, number = read_partition(path), SPLITS.index(split)
        indices = [index for index in range(length) if partition.get(source.labels.row_name(index)) == number]
        if not indices:
            raise UserError(f"{path} puts none of the {length} images in {split}; without it they split 80/10/10 %")
        return indices
    if length == source.complete:
        return range(*source.splits[split])
    found = f"{length} of {source.complete} images and no {source.partition}"
    log_once(f"{folder}: {found}: split by index, 80 % train, 10 % valid, 10 % test")
    return tenths(folder, length, *TENTHS[split])
