"""Label files that go with the originals into a prepared LMDB folder."""

import csv
import io
import os
import re
import sys
from collections.abc import Sequence

from datasets.labels import LabelTable, parse_csv
from datasets.lmdb_writer import Record
from datasets.originals import Originals
from dbae.config import UserError


def check_numbers(source: str, names: Sequence[str], first: int) -> None:
    """Raise UserError unless the file names are numbered first, first + 1, ...: labels are found by that number."""
    for number, name in enumerate(names, start=first):
        found = re.search(r"(\d+)\.\w+$", name)
        if not found or int(found[1]) != number:
            raise UserError(
                f"{source}: expected files numbered from {first} without gaps, found {name} in place of {number}; "
                "for other images use `python -m datasets.prepare folder`"
            )


def read_companions(originals: Originals, given: dict[str, str | None]) -> dict[str, bytes]:
    """Label files by their usual name: from the path given for one, else from in or beside the originals."""
    found = {}
    for name, path in given.items():
        data = _read(name, path) if path else originals.companion(name)
        if data is None:
            print(f"note: no {name} in or beside {originals.path}, so none is copied", file=sys.stderr)
        else:
            found[name] = data
    return found


def read_own_labels(originals: Originals, names: list[str]) -> LabelTable | None:
    """The originals' ``labels.csv``, if any. Raises UserError if it is wrong or an image has no row."""
    data = originals.companion("labels.csv")
    if data is None:
        return None
    table = parse_csv(f"labels.csv of {originals.path}", data.decode("utf-8-sig", errors="replace"))
    table.select(names)
    return table


def rekeyed_csv(table: LabelTable, names: list[str], record: Record, key_format: str) -> bytes:
    """The table with LMDB keys in place of file names, for the images that were not skipped."""
    skipped = {name for name, _ in record.skipped}
    kept = [name for name in names if name not in skipped]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["key", *table.names])
    writer.writerows([key_format % index, *table.rows[name]] for index, name in enumerate(kept))
    return text.getvalue().encode()


def write_new_files(folder: str, files: dict[str, bytes]) -> None:
    """Write files that are not there yet; existing ones stay as they are."""
    for name, data in files.items():
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            with open(path, "xb") as file:
                file.write(data)


def _read(name: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{name}: expected a readable file at {path}: {error.strerror}") from None
