"""Data sets: LMDBs of the published sets, LFW, folders of images, and the embedded toy faces and sprites.

``build`` is the one entrance to images, ``labelled_splits`` to those with labels.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets.base import CHOICES, SPLITS, ImageDataset, tenths
from datasets.images import log_once
from datasets.labels import KINDS, Targets
from datasets.lfw import Lfw
from datasets.lmdb import is_lmdb, open_store
from datasets.parts import TENTHS, shuffled_parts
from datasets.sets import DATASETS, OWN_LMDB, FolderImages, LmdbImages, Source, ToyFaces
from datasets.sprites import Sprites
from dbae.config import UserError

__all__ = ["CHOICES", "DATASETS", "KINDS", "ImageDataset", "Labelled", "Source", "Targets", "build", "labelled_splits"]

OFFICIAL = ("celeba", "toyfaces", "lfw", "cifar10", "cifar100", "tiny")  # sets that come with splits
# The splits that labels of each kind are used with, and their tenths where there is no official split
PARTS = {"binary": TENTHS, "class": TENTHS, "real": {"train": (0, 8), "test": (8, 10)}}


@dataclass(frozen=True)
class Labelled:
    """One split with its labels."""

    dataset: ImageDataset
    targets: Targets

    def part(self, positions: Sequence[int]) -> "Labelled":
        """The same with the images at some positions only."""
        targets = replace(self.targets, values=self.targets.values[list(positions)])
        return Labelled(self.dataset.part(positions), targets)

    def files(self) -> list[str]:
        """Paths of what is read: of the images and of the labels."""
        return [*self.dataset.files(), *filter(None, (self.dataset.labels_path,))]

    def identity(self) -> dict[str, Any]:
        """What results depend on, of the images and the labels, ready for JSON."""
        return {**self.dataset.identity(), "labels": self.dataset.labels_digest(self.targets.kind)}


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
    `prepare folder` made). ``split`` is train, valid or test, where there is such a one, or all. ``data_dir`` is the
    exact path of the LMDB or of LFW's folder, in place of the usual names under ``data_root``. ``split_range`` A:B cuts
    the split. ``labels`` is a CSV for a folder of images, or FILE.csv:COLUMN for one column of it. With ``whole`` an
    LMDB must hold the split's last image, so that one which is shorter than it says is noticed before any work. Raises
    UserError for what is unknown, missing or bad.
    """
    kind, _, path = name.partition(":")
    is_folder = kind == "folder" and bool(path)
    own_lmdb = is_folder and is_lmdb(path) and (os.path.isdir(path) or path.endswith(".lmdb"))
    if labels and (own_lmdb or not is_folder):
        raise UserError(f"labels: expected only with folder:PATH of images, got them with {name}")
    if data_dir and (is_folder or name == "sprites"):
        raise UserError(f"data_dir: expected none with {name}, got {data_dir!r}")
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
    data = LmdbImages(found, source, split, size, split_range, whole)
    if not given and data.stored_size and data.stored_size < size:
        problem = f"expected images of {size} pixels or more, they have {data.stored_size}"
        raise UserError(f"{found}: {problem}; make an LMDB of larger ones, or name it by --data_dir to enlarge them")
    return data


def labelled_splits(
    name: str, kind: str, size: int, data_root: str = "data", data_dir: str | None = None, labels: str | None = None
) -> dict[str, Labelled]:
    """The splits of a data set with labels of a kind: train, valid and test; for ``real`` ones train and test.

    The arguments are those of ``build``; lfw has real labels only. A folder has the parts that models are trained on
    (``own_parts``), or where it is too small for these others, by the same shuffle; published sets without an official
    split are split by index, classes each for itself. Of CIFAR and Tiny-ImageNet valid is the last tenth of train,
    which is without it here. No image is read. Raises UserError for labels that are missing or of another kind, for a
    binary one without positives, or a class without images, in train. Elsewhere scores leave such ones out.
    """
    if kind not in KINDS:
        raise UserError(f"labels: expected one of the kinds {', '.join(KINDS)}, got {kind!r}")
    options = {"size": size, "data_root": data_root, "data_dir": data_dir, "labels": labels}
    if name in OFFICIAL:
        parts = {s: Labelled(dataset := build(name, s, **options), dataset.targets(kind)) for s in PARTS[kind]}
        if name in DATASETS and DATASETS[name].held_out and "valid" in parts:
            parts["train"] = _without(parts["train"], parts["valid"])
    else:
        whole = build(name, "all", **options)
        parts = _own_split(whole, kind) if whole.parts else _split_by_index(whole, kind)
    if kind != "real" and (names := _missing(parts["train"].targets)):
        where = parts["train"].dataset.labels_path or parts["train"].dataset.title
        expected = "images of every class" if kind == "class" else "positives of every label"
        raise UserError(f"{where}: expected {expected} in train, there are none of {names}")
    return parts


def _own_split(whole: ImageDataset, kind: str) -> dict[str, Labelled]:
    """Valid and test are one part for real labels. Classes of a small folder are split each for itself."""
    for share in PARTS[kind].values():
        tenths(whole.title, len(whole), *share)  # before labels are looked at
    targets, indices = whole.targets(kind), whole.parts.indices
    if indices is None:
        log_once(f"{whole.title}: {len(whole)} images, shuffled and split for these labels alone")
        people = whole.parts.people
        people = people if people and len(set(people)) >= len(SPLITS) else None
        indices = shuffled_parts(len(whole), targets.values.tolist() if kind == "class" else None, people)
    else:
        log_once(f"{whole.title}: {whole.parts.about}")
    if "valid" not in PARTS[kind]:
        indices = {"train": indices["train"], "test": sorted(indices["valid"] + indices["test"])}
    return {split: Labelled(whole, targets).part(chosen) for split, chosen in indices.items()}


def _split_by_index(whole: ImageDataset, kind: str) -> dict[str, Labelled]:
    percent = ", ".join(f"{10 * (last - first)} % {split}" for split, (first, last) in PARTS[kind].items())
    log_once(f"{whole.title}: no official split, so by index, {percent}{' of each class' * (kind == 'class')}")
    for share in PARTS[kind].values():
        tenths(whole.title, len(whole), *share)  # before labels are looked at
    targets, groups = whole.targets(kind), [list(range(len(whole)))]
    if kind == "class":
        groups = [(targets.values == c).nonzero().flatten().tolist() for c in range(len(targets.names))]
    parts = {}
    for split, (first, last) in PARTS[kind].items():
        chosen = sorted(i for group in groups for i in group[len(group) * first // 10 : len(group) * last // 10])
        parts[split] = Labelled(whole, targets).part(chosen)
    return parts


def _without(part: Labelled, other: Labelled) -> Labelled:
    """A split without the images that another one has as well."""
    others = set(other.dataset.indices)
    return part.part([i for i, index in enumerate(part.dataset.indices) if index not in others])


def _missing(targets: Targets) -> str:
    """Names of the binary labels without positives, or of the classes without images."""
    if targets.kind == "class":
        there = targets.values.bincount(minlength=len(targets.names)) > 0
    else:
        there = targets.values.bool().any(0)
    return ", ".join(name for name, found in zip(targets.names, there.tolist(), strict=True) if not found)
