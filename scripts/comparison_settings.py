"""What is compared: the settings of a comparison, read and checked, and their rows."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dbae.config import UserError, option
from dbae.io import read_json

# Names of entries -> whether they are needed
SETTINGS = {"measures": True, "sections": True, "claims": False}
SECTION = dict.fromkeys(("title", "dataset", "rows"), True) | dict.fromkeys(("note", "places"), False)
ROW = dict.fromkeys(("model", "train", "seeds", "places"), False)
MEASURE = {
    "table": True,
    "run": True,
    "report": True,
    "columns": True,
    "lines": False,
    "rows": False,
    "sections": False,
}


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and where it is written."""

    settings: str = option("docs/comparison.json", "file that names data, models and measures")
    out: str = option("workdir/comparison", "folder of trained models and of all results")
    table: str | None = option(None, "Markdown file of the tables (default: print them)")
    results: str | None = option(
        None,
        "JSON file of all numbers: those not taken here come from it, the others are compared with it and replaced",
    )
    sections: tuple[str, ...] = option((), "run for these sections alone; tables have what is known of the others")
    rows: tuple[str, ...] = option((), "run for these rows alone; tables have what is known of the others")
    files: tuple[str, ...] = option((), "files that measures ask for, as NAME=PATH, e.g. alexnet=weights.pth")
    data_root: str = option("data", "folder of the data sets")
    collect: bool = option(False, "run nothing: tables of what is known")


@dataclass
class Row:
    """A model under a name: its weight file, and what was found out about it, one entry per seed."""

    name: str
    folder: str
    settings: dict[str, Any]
    seed: int | None = None
    idle: bool = False  # no program is to run for it
    model: str | None = None
    values: dict[str, dict[str, Any]] = field(default_factory=dict)  # measure -> column -> value
    recalled: set[str] = field(default_factory=set)  # measures whose values are of an earlier comparison

    @property
    def key(self) -> str:
        """Its name in files."""
        return os.path.basename(self.folder)

    @property
    def model_settings(self) -> dict[str, Any]:
        """What its data set, its model and its places are, whatever other seeds there may be."""
        return {name: value for name, value in self.settings.items() if name != "seeds"}

    @property
    def done(self) -> str:
        """File of the commands that ended, with what they gave."""
        return os.path.join(self.folder, "measures.json")


def checked(content: Any, known: Mapping[str, bool], where: str) -> dict[str, Any]:
    """An object of the settings. Raises UserError where it is none, lacks an entry, or has one of another name."""
    needed = {name for name, must in known.items() if must}
    if not isinstance(content, dict) or not needed <= content.keys() <= known.keys():
        got = ", ".join(content) if isinstance(content, dict) else repr(content)
        raise UserError(f"{where}: expected an object with {', '.join(known)}, got {got}")
    return content


def read_settings(options: CompareOptions) -> dict[str, dict[str, Any]]:
    """The sections, each with its measures and claims. Raises UserError for a file that says something else."""
    settings = checked(read_json(options.settings), SETTINGS, options.settings)
    measures, sections = (objects(settings, part, options.settings) for part in ("measures", "sections"))
    if unknown := set(options.sections) - set(sections):
        raise UserError(f"sections: expected some of {' '.join(sections)}, got {min(unknown)!r}")
    known: dict[str, None] = {}
    for name, section in sections.items():
        where = f"{options.settings}: {name}"
        for row, content in objects(checked(section, SECTION, where), "rows", where).items():
            if ("model" in checked(content, ROW, f"{where}: {row}")) == ("train" in content):
                raise UserError(f"{where}: {row}: expected a model or how to train one")
            if not isinstance(content.get("seeds", []), list):
                raise UserError(f"{where}: {row}: seeds: expected a list of numbers, got {content['seeds']!r}")
        known |= dict.fromkeys(section["rows"])
    measures = dict(lines_of(measures, options.settings))
    for name, measure in measures.items():
        for part, names in (("rows", known), ("sections", sections)):
            if unknown := set(measure.get(part, ())) - set(names):
                raise UserError(f"{options.settings}: {name}: expected names of {part}, got {min(unknown)!r}")
    if unknown := set(options.rows) - set(known):
        raise UserError(f"rows: expected some of {', '.join(known)}, got {min(unknown)!r}")
    for name, section in sections.items():
        section["measures"] = {title: m for title, m in measures.items() if name in m.get("sections", [name])}
        section["claims"] = settings.get("claims", [])
    return sections


def lines_of(measures: Mapping[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The measures; of one with lines, a measure for each, named after both, with the line's places filled in."""
    for name, measure in measures.items():
        checked(measure, MEASURE, f"{where}: {name}")
        if "lines" not in measure:
            yield name, measure
            continue
        whole = {part: content for part, content in measure.items() if part != "lines"}
        for line, places in objects(measure, "lines", f"{where}: {name}").items():
            if not isinstance(places, dict):
                raise UserError(f"{where}: {name}: {line}: expected an object, got {places!r}")
            text = json.dumps(whole)
            for place, value in places.items():
                text = text.replace(f"{{{place}}}", str(value))
            own = {part: places[part] for part in ("rows", "sections") if part in places}
            yield f"{name}: {line}", json.loads(text) | own | {"line": line}


def objects(content: Mapping[str, Any], part: str, where: str) -> dict[str, Any]:
    """A part of the settings that is objects by name. Raises UserError where it is not."""
    if not isinstance(content[part], dict):
        raise UserError(f"{where}: {part}: expected an object, got {content[part]!r}")
    return content[part]


def rows_of(name: str, section: Mapping[str, Any], options: CompareOptions) -> Iterator[Row]:
    """The rows of a section, one for each seed."""
    wanted = not options.collect and name in (options.sections or [name])
    for row, settings in section["rows"].items():
        places = section.get("places", {}) | settings.get("places", {})
        settings = {**settings, "dataset": section["dataset"], "places": places}
        idle = not wanted or row not in (options.rows or [row])
        for seed in settings.get("seeds", [None]):
            stem = row.replace(" ", "_") + ("" if seed is None else f"_seed{seed}")
            yield Row(row, os.path.join(options.out, name, stem), settings, seed, idle, settings.get("model"))
