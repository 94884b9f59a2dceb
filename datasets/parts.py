"""Train, valid and test of own images: a shuffle with a fixed seed, the same on every machine."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.base import SPLITS
from datasets.label_files import find_beside, parse_labels, read_text
from datasets.labels import LabelTable, class_folders, image_key
from dbae.config import UserError

SPLIT_SEED = 2  # a small folder with two labels in turn has both in every part
TENTHS = {"train": (0, 8), "valid": (8, 9), "test": (9, 10)}
FEW = 30  # images below which a part would say nothing
FEW_OF_CLASS = 5  # images of a class below which it is not split for itself
OWN_LABELS = "labels.csv"
STATED = "parts.csv"  # column part: train, valid or test; of an LMDB the parts of the folder that it was made of


@dataclass(frozen=True)
class OwnParts:
    """The parts of own images by split, in order; or the reason why they are not split, as all are in each part."""

    about: str  # for the log and config.json
    indices: dict[str, list[int]] | None
    people: list[str] | None  # of every image, where the labels have a person or group column

    def of(self, split: str, n: int) -> Sequence[int]:
        """Indices of one of SPLITS, or of ``all``, of the n images."""
        return range(n) if split == "all" or self.indices is None else self.indices[split]


def own_parts(folder: str, names: Sequence[str]) -> OwnParts:
    """How the images of a folder, or of an LMDB of own images, are split.

    As ``parts.csv`` there states, which an LMDB has from its folder. Without it, no person is in two parts where
    ``labels.csv`` in the folder has a column ``person`` or ``group``. Else classes, which are sub-folders or the only
    column ``class``, are split each for itself. Labels that cannot be read do not count. Raises UserError for stated
    parts that leave an image out.
    """
    n, path = len(names), find_beside(folder, OWN_LABELS)
    whole = "train, valid and test are all of them"
    table = path and _readable(path)
    column = next((name for name in table.names if name in table.PEOPLE), None) if table else None
    people = _people(table.column(column), names) if column else None
    if parts := _stated(folder, names):
        return OwnParts(f"{n} images: {_sizes(parts)}, as {STATED} states", parts, people)
    if n < FEW:
        return OwnParts(f"{n} images, fewer than {FEW}: {whole}", None, people)
    if people and (count := len(set(people))) < len(SPLITS):
        return OwnParts(f"{n} images of {count} in column {column}, fewer than 3: {whole}", None, people)
    classes = None if people else _classes(folder, names, table)
    parts = shuffled_parts(n, classes, people)
    how = f", by {column}" if people else ", class by class" if classes else ""
    return OwnParts(f"{n} images: {_sizes(parts)}, shuffled with seed {SPLIT_SEED}{how}", parts, people)


def stated_parts(folder: str, names: Sequence[str]) -> LabelTable | None:
    """The parts of a folder as a table, to be kept beside an LMDB of its images; None where it is not split."""
    parts = own_parts(folder, names).indices
    table = LabelTable(STATED, ("part",))
    for split, indices in (parts or {}).items():
        for i in indices:
            table.add(0, names[i], [split])
    return table if parts else None


def _stated(folder: str, names: Sequence[str]) -> dict[str, list[int]] | None:
    path = find_beside(folder, STATED)
    if path is None:
        return None
    table = parse_labels(path, read_text(path)).column("part")
    found = [table.rows.get(image_key(name), (0, ["nothing"]))[1][0] for name in names]
    for name, part in zip(names, found, strict=True):
        if part not in SPLITS:
            raise UserError(f"{path}: expected {', '.join(SPLITS)} for every image, {name} has {part}")
    return {split: [i for i, part in enumerate(found) if part == split] for split in SPLITS}


def _sizes(parts: dict[str, list[int]]) -> str:
    return ", ".join(f"{len(parts[split])} {split}" for split in SPLITS)


def shuffled_parts(
    n: int, classes: Sequence[int] | None = None, people: Sequence[str] | None = None
) -> dict[str, list[int]]:
    """Indices 0..n-1 by split: 80, 10 and 10 % of all, of each of ``classes`` [n], or about so of ``people`` [n]."""
    rng = np.random.default_rng(SPLIT_SEED)
    if people is not None:
        return _by_person(people, rng)
    groups = [list(range(n))]
    if classes is not None:
        of_class: dict[int, list[int]] = {c: [] for c in sorted(set(classes))}
        for i, c in enumerate(classes):
            of_class[c].append(i)
        rest = [i for group in of_class.values() if len(group) < FEW_OF_CLASS for i in group]
        groups = [group for group in of_class.values() if len(group) >= FEW_OF_CLASS] + [rest] * bool(rest)
    groups = [rng.permutation(group).tolist() for group in groups]
    parts = {
        split: sorted(i for group in groups for i in group[len(group) * first // 10 : len(group) * last // 10])
        for split, (first, last) in TENTHS.items()
    }
    # Classes that are all as small as 5 images have none for valid
    return parts if classes is None or all(parts.values()) else shuffled_parts(n)


def _by_person(people: Sequence[str], rng: np.random.Generator) -> dict[str, list[int]]:
    """Three parts or more people in a shuffled order, cut where 80 and 90 % of the images are reached.

    Those with more than a tenth of the images come first, so that they are in train.
    """
    count, n = Counter(people), len(people)
    order = [list(count)[k] for k in rng.permutation(len(count))]
    order.sort(key=lambda person: count[person] * 10 <= n)
    middle = (np.cumsum([count[person] for person in order]) - [count[person] / 2 for person in order]) / n
    first = min(int((middle < 0.8).sum()), len(order) - 2)
    second = min(max(int((middle < 0.9).sum()), first + 1), len(order) - 1)
    part = {person: SPLITS[(k >= first) + (k >= second)] for k, person in enumerate(order)}
    return {split: [i for i, person in enumerate(people) if part[person] == split] for split in SPLITS}


def _readable(path: str) -> LabelTable | None:
    try:
        return parse_labels(path, read_text(path))
    except UserError:
        return None


def _people(table: LabelTable, names: Sequence[str]) -> list[str]:
    """Who is in every image; one that has no row, or nobody in it, is somebody else than all others."""
    found = [table.rows.get(image_key(name), (0, [""]))[1][0] for name in names]
    return [person or f"{os.sep}{i}" for i, person in enumerate(found)]


def _classes(folder: str, names: Sequence[str], table: LabelTable | None) -> list[int] | None:
    """The class of every image by its sub-folder, or as a prepared LMDB has it in its labels."""
    try:
        if table and table.names == ("class",):
            return table.targets(names, "class").values.tolist()
        return class_folders(folder, names).targets(names, "class").values.tolist()
    except UserError:
        return None
