"""All numbers of a comparison in one file: taken from it where nothing is run, and compared with it elsewhere."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from math import hypot
from typing import Any

from dbae.config import UserError
from dbae.io import read_json
from scripts.comparison_settings import Row
from scripts.comparison_tables import cell

MODEL: dict[str, Any] = {"run": []}  # the measure of the model itself
Entries = dict[str, Any]  # row -> its settings, and by measure the commands and the values


def read_results(path: str | None) -> dict[str, Any]:
    """Entries by section; none where there is no file yet. Raises UserError for what this module did not write."""
    results = read_json(path) if path and os.path.exists(path) else {}
    for section, entries in results.items():
        try:
            for measures in (entry["measures"] for entry in entries.values()):
                for each in measures.values():
                    each["values"].items()
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"{path}: {section}: expected rows with measures, as a comparison writes them") from None
    return results


def recall(row: Row, measure: str, settings: Mapping[str, Any], entries: Entries) -> bool:
    """Give the row what a measure found earlier in the same way, and say whether it found anything."""
    known = measures_of(row, entries).get(measure, {})
    if not known or any(known.get(part) != value for part, value in way(settings).items()):
        return False
    row.values[measure] = known["values"]
    row.recalled.add(measure)
    return True


def way(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How a measure's values are found: by which commands, and a digest of what is read where in which report."""
    read = json.dumps([settings.get("report"), settings.get("columns")])
    return {"run": settings["run"], "read": hashlib.sha256(read.encode()).hexdigest()[:16]}


def measures_of(row: Row, entries: Entries) -> dict[str, Any]:
    """What is known of the same model and places."""
    entry = entries.get(row.key, {})
    return entry["measures"] if entry.get("row") == row.model_settings else {}


def compared(rows: Sequence[Row], entries: Entries) -> tuple[int, list[str]]:
    """How many numbers with standard errors, taken now, were known, and which moved by more than two errors."""
    count, moved = 0, []
    for row in rows:
        for measure, known in measures_of(row, entries).items():
            taken = {} if measure in row.recalled else row.values.get(measure, {})
            for title, before in known["values"].items():
                now = taken.get(title)
                if not (isinstance(before, list) and isinstance(now, list)):
                    continue
                count += 1
                if abs(now[0] - before[0]) > 2 * hypot(now[1] or 0, before[1] or 0):
                    moved.append(f"{row.key}: {measure}: {title}: {cell(now)}, was {cell(before)}")
    return count, moved


def entries_of(rows: Sequence[Row], measures: Mapping[str, Any], earlier: Entries) -> Entries:
    """What the file is to say of these rows; what failed now stays as it was."""
    ways, entries = {name: way(settings) for name, settings in {"": MODEL, **measures}.items()}, {}
    for row in rows:
        found = {name: {**ways[name], "values": values} for name, values in row.values.items()}
        known = {name: each for name, each in measures_of(row, earlier).items() if name in ways}
        if known | found:
            entries[row.key] = {"row": row.model_settings, "measures": known | found}
    return earlier | entries
