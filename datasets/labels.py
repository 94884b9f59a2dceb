"""Label files: the attribute lists of CelebA and CelebA-HQ, the CelebA partition, and CSV tables of own data."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dbae.config import UserError


@dataclass(frozen=True)
class LabelTable:
    """Numeric labels by image name. Raises UserError if two labels have the same name."""

    path: str
    names: tuple[str, ...]  # of the k labels
    rows: dict[str, list[float]] = field(default_factory=dict)  # image name -> k values

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise UserError(f"{self.path}: expected different label names in the header, got {', '.join(self.names)}")

    def add(self, line: int, image: str, cells: list[str]) -> None:
        """Add an image's row from a line of the file. Raises UserError if it has one, or for what is no number."""
        if image in self.rows:
            raise UserError(f"{self.path}: expected one row for {image!r}, line {line} is another")
        self.rows[image] = _numbers(self.path, line, self.names, cells)

    def select(self, images: Iterable[str]) -> np.ndarray:
        """Labels [n, k] float32 of the named images, in that order. Raises UserError naming an image without a row."""
        try:
            return np.array([self.rows[image] for image in images], np.float32)
        except KeyError as error:
            raise UserError(f"{self.path}: expected a row for every image, there is none for {error}") from None


def read_attributes(path: str) -> LabelTable:
    """CelebA's format: a line with the count, a line of names, then rows of a file name and values, by white space."""
    lines = read_text(path).splitlines()
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    if not names or not lines[0].strip().isdigit():
        raise UserError(f"{path}: expected a count on line 1 and the attribute names on line 2")
    table = LabelTable(path, names)
    for number, line in enumerate(lines[2:], start=3):
        if line.strip():
            image, *values = line.split()
            table.add(number, image, values)
    return table


def read_csv(path: str) -> LabelTable:
    """The table in a CSV file; see ``parse_csv``."""
    return parse_csv(path, read_text(path))


def parse_csv(path: str, text: str) -> LabelTable:
    """A CSV with a header, whose first column names the file and whose others are numbers.

    Raises UserError naming ``path``, and the line and column, where it is not.
    """
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        names = tuple(cell.strip() for cell in next(reader, [])[1:])
        if not names or all(map(_is_number, names)):
            raise UserError(f"{path}: expected a header line such as file,label_1,label_2 separated by commas")
        table = LabelTable(path, names)
        for cells in filter(any, reader):
            table.add(reader.line_num, cells[0].strip(), cells[1:])
    except csv.Error as error:
        raise UserError(f"{path}: expected comma-separated values, line {reader.line_num} has none ({error})") from None
    return table


def read_partition(path: str) -> dict[str, int]:
    """Rows like ``000001.jpg 0``: which split (0 train, 1 valid, 2 test) each image belongs to."""
    partition = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        match line.split():
            case []:
                continue
            case [image, ("0" | "1" | "2") as split]:
                partition[image] = int(split)
            case _:
                raise UserError(f"{path}: expected a file name and 0, 1 or 2 on line {number}, got {line.strip()!r}")
    return partition


def read_text(path: str) -> str:
    """The whole file. Raises UserError if it cannot be read or is no text."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: expected a readable text file of labels: {reason}") from None


def _numbers(path: str, line: int, names: tuple[str, ...], cells: list[str]) -> list[float]:
    if len(cells) != len(names):
        raise UserError(f"{path}: expected {len(names)} labels on line {line}, got {len(cells)}")
    for name, cell in zip(names, cells, strict=True):
        if not _is_number(cell):
            raise UserError(f"{path}: expected a number on line {line}, column {name!r}, got {cell!r}")
    return [float(cell) for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
