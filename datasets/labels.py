"""Labels of images, of three kinds in one container, and the text files that hold them.

A label is binary (attributes that an image has or has not), a class (one of several, by name) or real (numbers).
"""

import codecs
import csv
import io
import math
import os
import posixpath
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.images import is_image_name
from datasets.toyfaces.face import ATTRIBUTES  # CelebA's
from dbae.config import UserError

KINDS = ("binary", "class", "real")
PARTITIONS = (("partition",), ("split",))  # headers of files that are none of labels
SPLIT_NUMBERS = ("0", "1", "2")


@dataclass(frozen=True)
class Targets:
    """The labels of n images, all of one kind."""

    kind: str
    names: tuple[str, ...]  # of the k labels, or of the classes that the values count
    values: Tensor  # binary: 0 or 1, and real: both float32 [n, k]; class: int64 [n]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class LabelTable:
    """Rows of text by image name, as a file has them, of labels with different names."""

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
        return bool(cells) and not any(_is_number(cell, math.inf) or cell.lower() in ("", "nan") for cell in cells)

    @cached_property
    def numbers(self) -> np.ndarray:
        """All cells as float64 [rows, k]. Raises UserError naming line and column of one that is no number."""
        for line, cells in self.rows.values():
            for name, cell in zip(self.names, cells, strict=True):
                if not _is_number(cell):
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
        numeric = all(map(_is_number, self._column))
        for line, (cell,) in self.rows.values():
            if not cell or (numeric and not float(cell).is_integer()):
                raise UserError(f"{self.path}: expected a class, text or a whole number, on line {line}, got {cell!r}")
        found = [int(float(cell)) if numeric else cell for cell in self._column]
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


def read_labels(path: str) -> LabelTable:
    """The table in a file, or with FILE:COLUMN one column of it; see ``parse_labels``."""
    file, colon, column = path.rpartition(":")
    if colon and os.path.isfile(file) and not os.path.isfile(path):
        return parse_labels(file, read_text(file)).column(column)
    return parse_labels(path, read_text(path))


def parse_labels(path: str, text: str) -> LabelTable:
    """Labels by image, in any of the usual forms, which are told apart by what is in the file.

    A CSV has a header, and the image's name in the first column. CelebA's lists have a count, a line of names, and rows
    of the image's name and values by white space. Without any names 40 columns are CelebA's attributes. Raises
    UserError for all else, also for a partition and for fewer rows than the count.
    """
    count, names, rows = _parse(path, text)
    if names is None and rows and len(rows[0][1]) == 1 + len(ATTRIBUTES):
        names = ATTRIBUTES
    unnamed = names is None and rows and all(len(cells) == 2 and cells[1] in SPLIT_NUMBERS for _, cells in rows)
    if unnamed or names in PARTITIONS:
        raise UserError(f"{path}: expected labels, this is a partition of images into splits")
    if not names or all(map(_is_number, names)):
        expected = "a header line such as file,label_1,label_2 separated by commas, or a count and a line of names"
        raise UserError(f"{path}: expected {expected}, as CelebA's list has")
    table = LabelTable(path, tuple(names))
    for line, cells in rows:
        table.add(line, cells[0], cells[1:])
    if len(rows) < (count or 0):
        raise UserError(f"{path}: expected {count} rows, as it says on line 1, there are {len(rows)}: the file is cut")
    return table


def parse_partition(path: str, text: str) -> LabelTable:
    """Rows like ``000001.jpg 0``, of the split (0 train, 1 valid, 2 test) that each image belongs to.

    They may have commas and a header. Raises UserError for all else, also for labels.
    """
    count, names, rows = _parse(path, text)
    if count is not None or names not in (None, *PARTITIONS):
        raise UserError(
            f"{path}: expected a partition, a file name and 0, 1 or 2 on every line; this is a list of labels"
        )
    table = LabelTable(path, ("partition",))
    for line, cells in rows:
        if len(cells) != 2 or cells[1] not in SPLIT_NUMBERS:
            raise UserError(f"{path}: expected a file name and 0, 1 or 2 on line {line}, got {' '.join(cells)[:60]!r}")
        table.add(line, cells[0], cells[1:])
    return table


def _parse(path: str, text: str) -> tuple[int | None, tuple[str, ...] | None, list[tuple[int, list[str]]]]:
    """A count on the first line, label names, and the other lines with their cells; None for what is not there."""
    rows, commas = [], "," in next(filter(str.strip, text.splitlines()), "")
    reader = csv.reader(io.StringIO(text, newline="")) if commas else map(str.split, text.splitlines())
    try:
        for line, cells in enumerate(reader, start=1):
            if any(map(str.strip, cells)):
                rows.append((reader.line_num if commas else line, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise UserError(f"{path}: expected comma-separated values, line {reader.line_num} has none ({error})") from None
    if not rows:
        return None, None, []
    if not commas and re.fullmatch("[0-9]{1,18}", " ".join(rows[0][1])):
        return int(rows[0][1][0]), tuple(rows[1][1]) if rows[1:] else None, rows[2:]
    if commas and not is_image_name(image_key(rows[0][1][0])):
        return None, tuple(rows[0][1][1:]), rows[1:]
    return None, None, rows


def image_key(name: str) -> str:
    """The name under which an image and its row find each other, however path and accents are written."""
    return posixpath.normpath(unicodedata.normalize("NFC", name.replace("\\", "/")))


def find_beside(folder: str, name: str | None) -> str | None:
    """The label file of that name in a folder, or the one that Kaggle calls the same but .csv; None without both."""
    paths = (os.path.join(folder, found) for found in (label_names(name) if name else ()))
    return next(filter(os.path.isfile, paths), None)


def label_names(name: str) -> tuple[str, ...]:
    """The official name of a label file, and Kaggle's."""
    return tuple(dict.fromkeys([name, f"{os.path.splitext(name)[0]}.csv"]))


def read_text(path: str) -> str:
    """The whole file. Raises UserError if it cannot be read or is no text."""
    return decode_text(path, read_file(path))


def read_file(path: str) -> bytes:
    """The whole file. Raises UserError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected a readable text file of labels: {error.strerror}") from None


def decode_text(path: str, data: bytes) -> str:
    """UTF-8, or UTF-16 with its mark. Raises UserError for what is no text."""
    try:
        text = data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected text in UTF-8, or in UTF-16 with its mark: {error}") from None
    if "\0" in text:
        raise UserError(f"{path}: expected text in UTF-8, or in UTF-16 with its mark, got zero bytes")
    return text


def _is_number(cell: str, limit: float = torch.finfo(torch.float32).max) -> bool:
    """Whether a cell is a number that is finite in 32 bits."""
    try:
        return abs(float(cell)) <= limit
    except ValueError:
        return False
