"""Data sets: LMDBs of the published sets, LFW, folders of images, and the embedded toy faces and sprites.

``build`` is the one entrance to images, ``labelled_splits`` to those with labels.
"""

import os
from dataclasses import dataclass

import numpy as np

from datasets.base import ImageDataset, tenths
from datasets.images import log_once
from datasets.labels import KINDS, Targets
from datasets.lfw import Lfw
from datasets.lmdb import is_lmdb, open_store
from datasets.sets import DATASETS, OWN_LMDB, TENTHS, FolderImages, LmdbImages, Source, ToyFaces
from datasets.sprites import Sprites
from dbae.config import UserError

__all__ = ["DATASETS", "KINDS", "ImageDataset", "Labelled", "Source", "Targets", "build", "labelled_splits"]

OFFICIAL = ("celeba", "toyfaces", "lfw", "cifar10", "cifar100", "tiny")  # sets that come with splits
SPLIT_SEED = 2  # of the shuffle of folders: a small one with two labels in turn has both in every split
# The splits that labels of each kind are used with, and their tenths where there is no official split
PARTS = {"binary": TENTHS, "class": TENTHS, "real": {"train": (0, 8), "test": (8, 10)}}


@dataclass(frozen=True)
class Labelled:
    """One split with its labels."""

    dataset: ImageDataset
    targets: Targets


def build(
    name: str,
    split: str,
    size: int,
    data_root: str = "data",
    data_dir: str | None = None,
    split_range: str | None = None,
    labels: str | None = None,
    whole: bool = False,
) -> ImageDataset:
    """One split of a data set, whose images are uint8 [3, size, size].

    ``name`` is a row of DATASETS, ``toyfaces``, ``sprites``, ``lfw`` or ``folder:PATH`` (images, or an LMDB that
    `prepare folder` made). ``data_dir`` is the exact path of the LMDB or of LFW's folder, in place of the usual names
    under ``data_root``. ``split_range`` A:B cuts the split. ``labels`` is a CSV for a folder of images, or
    FILE.csv:COLUMN for one column of it. With ``whole`` an LMDB must hold the split's last image, so that one which is
    shorter than it says is noticed before any work. Raises UserError for what is unknown, missing or bad.
    """
    kind, _, path = name.partition(":")
    is_folder = kind == "folder" and bool(path)
    own_lmdb = is_folder and is_lmdb(path) and (os.path.isdir(path) or path.endswith(".lmdb"))
    if labels and (own_lmdb or not is_folder):
        raise UserError(f"labels: expected only with folder:PATH of images, got them with {name}")
    if is_folder and not own_lmdb:
        return FolderImages(path, split, size, split_range, labels)
    place = data_dir or os.path.join(data_root, name)
    if name == "lfw":
        return Lfw(place, split, size, split_range)
    if name == "toyfaces":
        if data_dir and not is_lmdb(data_dir):
            raise UserError(f"no LMDB of toyfaces at {data_dir}: make one with `python -m datasets.prepare toyfaces`")
        return ToyFaces(split, size, split_range, open_store(place) if is_lmdb(place) else None)
    if name == "sprites":
        return Sprites(split, size, split_range)
    if not own_lmdb and name not in DATASETS:
        known = ", ".join((*DATASETS, "toyfaces", "sprites", "lfw"))
        raise UserError(f"data set: expected {known} or folder:PATH, got {name!r}")
    source = OWN_LMDB if own_lmdb else DATASETS[name]
    # An LMDB's path is given exactly, or it is the first usual name under the data root that exists
    given = path if own_lmdb else data_dir
    tried = [given] if given else [os.path.join(data_root, folder) for folder in source.folders]
    found = next(filter(is_lmdb, tried), None)
    if found is None:
        command = f"python -m datasets.prepare {source.prepare} --source ORIGINALS --out {tried[0]}"
        raise UserError(f"no LMDB of {name} at {', '.join(tried)}: make one with `{command}`")
    return LmdbImages(found, source, split, size, split_range, whole)


def labelled_splits(
    name: str, kind: str, size: int, data_root: str = "data", data_dir: str | None = None, labels: str | None = None
) -> dict[str, Labelled]:
    """The splits of a data set with labels of a kind: train, valid and test; for ``real`` ones train and test.

    The arguments are those of ``build``; lfw has real labels only. A folder, which may be sorted by what its labels
    say, is shuffled with a fixed seed and split; published sets without an official split are split by index. Classes
    are split each for itself. Of CIFAR and Tiny-ImageNet valid is the last tenth of train, which is without it here.
    No image is read. Raises UserError for labels that are missing or of another kind, for a
    binary one without positives in a split, and for a class without images in train.
    """
    if kind not in KINDS:
        raise UserError(f"labels: expected one of the kinds {', '.join(KINDS)}, got {kind!r}")
    options = {"size": size, "data_root": data_root, "data_dir": data_dir, "labels": labels}
    if name in OFFICIAL:
        parts = {s: Labelled(dataset := build(name, s, **options), dataset.targets(kind)) for s in PARTS[kind]}
        if name in DATASETS and DATASETS[name].held_out and "valid" in parts:
            parts["train"] = _without(parts["train"], parts["valid"])
    else:
        parts = _split(build(name, "train", **options), kind, shuffled=name.startswith("folder:"))
    needed = {"binary": parts, "class": {"train": parts["train"]}, "real": {}}[kind]
    lacking = [f"{names} in {split}" for split, part in needed.items() if (names := _missing(part.targets))]
    if lacking:
        where = parts["train"].dataset.labels_path or parts["train"].dataset.title
        expected = "images of every class in train" if kind == "class" else "positives of every label in every split"
        raise UserError(f"{where}: expected {expected}, there are none of {'; '.join(lacking)}")
    return parts


def _split(whole: ImageDataset, kind: str, shuffled: bool) -> dict[str, Labelled]:
    percent = ", ".join(f"{10 * (last - first)} % {split}" for split, (first, last) in PARTS[kind].items())
    order = f"shuffled with seed {SPLIT_SEED}" if shuffled else "by index"
    log_once(f"{whole.title}: no official split, so {order}, {percent}{' of each class' * (kind == 'class')}")
    for share in PARTS[kind].values():
        tenths(whole.title, len(whole), *share)  # before labels are looked at
    targets, parts, groups = whole.targets(kind), {}, [range(len(whole))]
    if kind == "class":
        groups = [(targets.values == c).nonzero().flatten().tolist() for c in range(len(targets.names))]
    if shuffled:
        rng = np.random.default_rng(SPLIT_SEED)
        groups = [rng.permutation(group).tolist() for group in groups]
    for split, (first, last) in PARTS[kind].items():
        chosen = sorted(i for group in groups for i in group[len(group) * first // 10 : len(group) * last // 10])
        parts[split] = Labelled(whole.part(chosen), Targets(kind, targets.names, targets.values[chosen]))
    return parts


def _without(part: Labelled, other: Labelled) -> Labelled:
    """A split without the images that another one has as well."""
    others, targets = set(other.dataset.indices), part.targets
    kept = [i for i, index in enumerate(part.dataset.indices) if index not in others]
    return Labelled(part.dataset.part(kept), Targets(targets.kind, targets.names, targets.values[kept]))


def _missing(targets: Targets) -> str:
    """Names of the binary labels without positives, or of the classes without images."""
    if targets.kind == "class":
        there = targets.values.bincount(minlength=len(targets.names)) > 0
    else:
        there = targets.values.bool().any(0)
    return ", ".join(name for name, found in zip(targets.names, there.tolist(), strict=True) if not found)
