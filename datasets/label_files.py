"""The text files that hold labels of images, or a partition of images into splits."""

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from datasets.images import EXTENSIONS
from datasets.labels import LabelTable, is_number
from datasets.toyfaces.face import ATTRIBUTES  # CelebA's
from dbae.config import UserError

PARTITIONS = (("partition",), ("split",))  # headers of files that are none of labels
SPLIT_NUMBERS = ("0", "1", "2")


def read_labels(path: str) -> LabelTable:
    """The labels in a file, or with FILE:COLUMN one column of it; see ``parse_labels``.

    Columns that say which images belong together, of a person or a group, are labels only where they are asked for.
    """
    file, colon, column = path.rpartition(":")
    if colon and os.path.isfile(file) and not os.path.isfile(path):
        return parse_labels(file, read_text(file)).column(column)
    return parse_labels(path, read_text(path)).without_people()


def parse_labels(path: str, text: str) -> LabelTable:
    """Labels by image, in any of the usual forms, which are told apart by what is in the file.

    A CSV has a header, and the image's name in the first column. CelebA's lists have a count, a line of names, and rows
    of the image's name and values by white space. Without any names 40 columns are CelebA's attributes. Raises
    UserError for all else, also for a partition and for fewer rows than the count.
    """
    count, names, rows = _parse(path, text)
    unnamed = False
    if names is None:
        rows = list(rows)
        widths = {len(cells) for _, cells in rows}
        names = ATTRIBUTES if widths == {1 + len(ATTRIBUTES)} else ()
        unnamed = widths == {2} and all(cells[1] in SPLIT_NUMBERS for _, cells in rows)
    if unnamed or names in PARTITIONS:
        raise UserError(f"{path}: expected a header line and labels, this looks like a partition into splits")
    if not names or all(map(is_number, names)):
        expected = "a header line such as file,label_1,label_2 separated by commas, or a count and a line of names"
        raise UserError(f"{path}: expected {expected}, as CelebA's list has")
    table = LabelTable(path, names)
    for line, cells in rows:
        table.add(line, cells[0], cells[1:])
    if (found := len(table.rows)) < (count or 0):
        raise UserError(f"{path}: expected {count} rows, as it says on line 1, there are {found}: the file is cut")
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


def _parse(path: str, text: str) -> tuple[int | None, tuple[str, ...] | None, Iterator[tuple[int, list[str]]]]:
    """A count on the first line, label names, and the other rows as in ``_rows``; None for what is not there."""
    commas = "," in next(filter(str.strip, text.splitlines()), "")
    rows = _rows(path, text, commas)
    line, first = next(rows, (0, [""]))
    if not commas and re.fullmatch("[0-9]{1,18}", " ".join(first)):
        _, names = next(rows, (0, []))
        return int(first[0]), tuple(names), rows
    if commas and os.path.splitext(first[0])[1].lower() not in EXTENSIONS:
        return None, tuple(first[1:]), rows
    return None, None, chain([(line, first)] if line else [], rows)


def _rows(path: str, text: str, commas: bool) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every line that is not empty, between commas or else white space."""
    if not commas:
        yield from ((line, cells) for line, cells in enumerate(map(str.split, text.splitlines()), start=1) if cells)
        return
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for cells in reader:
            if any(cells := [cell.strip() for cell in cells]):
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{path}: expected comma-separated values, line {reader.line_num} has none ({error})") from None


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
        raise UserError(f"{path}: expected a readable text file, UTF-8 or UTF-16 with its mark: {error}") from None
    if "\0" in text:
        raise UserError(f"{path}: expected a readable text file, UTF-8 or UTF-16 with its mark, got zero bytes")
    return text
