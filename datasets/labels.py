"""Labels of images, of three kinds in one container.

A label is binary (attributes that an image has or has not), a class (one of several, by name) or real (numbers).
"""

import math
import os
import posixpath
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dbae.config import UserError

KINDS = ("binary", "class", "real")


@dataclass(frozen=True)
class Targets:
    """The labels of n images, all of one kind."""

    kind: str
    names: tuple[str, ...]  # of the k labels, or of the classes that the values count
    values: Tensor  # binary: 0 or 1, and real: both float32 [n, k]; class: int64 [n]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Factors:
    """The factors of variation of n drawn images: what each was drawn with, as whole numbers from 0."""

    names: tuple[str, ...]
    values: np.ndarray  # int64 [n, f]


@dataclass(frozen=True)
class LabelTable:
    """Rows of text by image name, as a file has them, of labels with different names."""

    PEOPLE: ClassVar[tuple[str, ...]] = ("person", "group")  # columns that say which images belong together: no labels

    path: str
    names: tuple[str, ...]  # of the k labels
    rows: dict[str, tuple[int, list[str]]] = field(default_factory=dict)  # image_key -> line of the file, k cells

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise UserError(f"{self.path}: expected different label names in the header, got {', '.join(self.names)}")

    def add(self, line: int, image: str, cells: Iterable[str]) -> None:
        """Add an image's row. Raises UserError for a second one, or another number of cells."""
        cells = [sys.intern(cell.strip()) for cell in cells]  # few are different, and a table may have millions
        key = image_key(image)
        if key in self.rows:
            raise UserError(f"{self.path}: expected one row for {image!r}, line {line} is another")
        if len(cells) != len(self.names):
            raise UserError(f"{self.path}: expected {len(self.names)} labels on line {line}, got {len(cells)}")
        self.rows[key] = line, cells

    def column(self, name: str) -> "LabelTable":
        """The table with one of its columns only."""
        if name not in self.names:
            raise UserError(f"{self.path}: expected one of the columns {', '.join(self.names)}, got {name!r}")
        k = self.names.index(name)
        return LabelTable(self.path, (name,), {image: (line, [row[k]]) for image, (line, row) in self.rows.items()})

    def without_people(self) -> "LabelTable":
        """The table without the columns of PEOPLE, where it has others."""
        kept = [k for k, name in enumerate(self.names) if name not in self.PEOPLE]
        if not kept or len(kept) == len(self.names):
            return self
        rows = {image: (line, [row[k] for k in kept]) for image, (line, row) in self.rows.items()}
        return LabelTable(self.path, tuple(self.names[k] for k in kept), rows)

    def targets(self, images: Iterable[str], kind: str | None = None) -> Targets:
        """Labels of the named images, in that order. Without ``kind`` a column of text is a class, all else real.

        The whole table is checked, so that classes have the same names in every split. Raises UserError naming an image
        without a row, or a value that does not suit the kind.
        """
        place, chosen = {key: i for i, key in enumerate(self.rows)}, []
        for image in images:
            if (row := place.get(image_key(image))) is None:
                there = f"its {len(place)} rows begin with {next(iter(place), None)!r}"
                raise UserError(f"{self.path}: expected a row for every image, there is none for {image!r} ({there})")
            chosen.append(row)
        if len(set(chosen)) < len(chosen):
            raise UserError(f"{self.path}: expected images with different names, some differ by the writing of accents")
        kind = kind or ("class" if self.holds_text() else "real")
        names, values = {"binary": self._binary, "class": self._classes, "real": self._real}[kind]()
        return Targets(kind, names, values[torch.tensor(chosen, dtype=torch.long)])

    def others(self, images: Iterable[str]) -> int:
        """How many rows are for images that are not among these."""
        return len(self.rows.keys() - set(map(image_key, images)))

    def holds_text(self) -> bool:
        """Whether there is a single column, and nothing in it could be meant as a number, be it a missing one."""
        cells = self._column if len(self.names) == 1 else []
        return bool(cells) and not any(is_number(cell, math.inf) or cell.lower() in ("", "nan") for cell in cells)

    @cached_property
    def numbers(self) -> np.ndarray:
        """All cells as float64 [rows, k]. Raises UserError naming line and column of one that is no number."""
        for line, cells in self.rows.values():
            for name, cell in zip(self.names, cells, strict=True):
                if not is_number(cell):
                    raise UserError(
                        f"{self.path}: expected a number on line {line}, column {name!r}, got {cell[:60]!r}"
                    )
        return np.array([cells for _, cells in self.rows.values()], float).reshape(len(self.rows), len(self.names))

    @property
    def _column(self) -> list[str]:
        return [cells[0] for _, cells in self.rows.values()]

    def _real(self) -> tuple[tuple[str, ...], Tensor]:
        return self.names, torch.from_numpy(self.numbers).float()

    def _binary(self) -> tuple[tuple[str, ...], Tensor]:
        """Numbers with -1 turned into 0. A column has 0 and 1, or -1 and 1, not all three."""
        names, values = self._real()
        for name, column in zip(names, values.T, strict=True):
            low = -1 if (column == -1).any() else 0
            if len(strange := column[(column != low) & (column != 1)]):
                got = f"{strange[0]:g}{' beside -1' if low else ''}"
                raise UserError(f"{self.path}, column {name!r}: expected 0 and 1, or -1 and 1, as binary, got {got}")
        return names, values.clamp(min=0)

    def _classes(self) -> tuple[tuple[str, ...], Tensor]:
        """Names in order, by number where all are whole numbers, and each row's place among them."""
        if len(self.names) != 1:
            expected = "expected one column for classes, --labels FILE.csv:COLUMN"
            raise UserError(f"{self.path}: {expected}, got {', '.join(self.names)}")
        numeric = all(map(is_number, self._column))
        for line, (cell,) in self.rows.values():
            if not cell or (numeric and not float(cell).is_integer()):
                raise UserError(f"{self.path}: expected a class, text or a whole number, on line {line}, got {cell!r}")
        found = [_whole(cell) if numeric else cell for cell in self._column]
        classes = sorted(set(found))
        place = {name: i for i, name in enumerate(classes)}
        return tuple(map(str, classes)), torch.tensor([place[name] for name in found], dtype=torch.long)


def class_folders(root: str, names: Sequence[str]) -> LabelTable:
    """The first folder in each image's path as its class. Raises UserError unless all lie in two folders or more."""
    table = LabelTable(root, ("class",))
    for name in names:
        folder, slash, _ = name.partition("/")
        table.add(0, name, [folder if slash else ""])
    folders = set(table._column)
    if len(folders) < 2 or "" in folders:
        beside = os.path.join(root, "labels.csv")
        raise UserError(f"{root} has no classes: expected {beside}, or all images in two or more folders, one a class")
    return table


def image_key(name: str) -> str:
    """The name under which an image and its row find each other, however path and accents are written."""
    return posixpath.normpath(unicodedata.normalize("NFC", name.replace("\\", "/")))


def _whole(cell: str) -> int:
    try:
        return int(cell)  # however long it is
    except ValueError:
        return int(float(cell))  # such as 1.0


def is_number(cell: str, limit: float = torch.finfo(torch.float32).max) -> bool:
    """Whether a cell is a number that is finite in 32 bits."""
    try:
        return "_" not in cell and abs(float(cell)) <= limit  # as 1_1 is 11 to Python alone
    except ValueError:
        return False
