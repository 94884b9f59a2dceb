"""Tables of several models on the same data, made by the programs of this repository from one file of settings.

example:
  python -m scripts.comparison --settings docs/comparison.json --out workdir/comparison --table docs/comparison.md

Models that have no file are trained first; then every measure of a section is taken of every row that it is for. A
program that ended is not run again unless its command or the weights have changed, an interrupted training goes on,
and a program that fails is reported at the end.

The settings are sections, each with ``title``, ``dataset``, ``rows`` (name -> ``model``, a weight file, or ``train``,
words for scripts.train, with ``seeds``) and ``measures`` (name -> ``run``, commands with places like {model}, {dataset}
and {out}; ``report``, the JSON that they write; ``columns``, title -> where in it a number stands; ``table``).
"""

import csv
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob
from typing import Any

import torch

from dbae.checkpoint import complete_sets, load_model, read_config, set_names
from dbae.config import UserError, option
from dbae.io import atomic_write, fingerprint, read_json, write_json
from scripts.cli import options_of, run
from scripts.comparison_tables import HEAD, failed, section_text

# Names of entries -> whether they are needed
SECTION = {"title": True, "dataset": True, "rows": True, "measures": True, "note": False, "claims": False}
ROW = dict.fromkeys(("model", "train", "seeds", "fields"), False)
MEASURE = {"table": True, "run": True, "report": True, "columns": True, "line": False, "rows": False}


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and where it is written."""

    settings: str = option("docs/comparison.json", "file that names data, models and measures")
    out: str = option("workdir/comparison", "folder of trained models and of all results")
    table: str | None = option(None, "Markdown file of the tables (default: print them)")
    sections: tuple[str, ...] = option((), "these sections of the settings alone")
    files: tuple[str, ...] = option((), "files that measures ask for, as NAME=PATH, e.g. alexnet=weights.pth")
    data_root: str = option("data", "folder of the data sets")
    collect: bool = option(False, "run nothing: tables of what is there")


@dataclass
class Row:
    """A model under a name: its weight file, and what was found out about it, one entry per seed."""

    name: str
    folder: str
    settings: Mapping[str, Any]
    seed: int | None = None
    model: str | None = None
    values: dict[str, dict[str, Any]] = field(default_factory=dict)  # measure -> column -> value

    @property
    def done(self) -> str:
        """File of the commands that ended, with what they gave."""
        return os.path.join(self.folder, "measures.json")


class Failure(Exception):
    """A program that did not make what was asked for."""


def checked(content: Any, known: Mapping[str, bool], where: str) -> dict[str, Any]:
    """An object of the settings. Raises UserError where it is none, lacks an entry, or has one of another name."""
    needed = {name for name, must in known.items() if must}
    if not isinstance(content, dict) or not needed <= content.keys() <= known.keys():
        got = ", ".join(content) if isinstance(content, dict) else repr(content)
        raise UserError(f"{where}: expected an object with {', '.join(known)}, got {got}")
    return content


def read_settings(options: CompareOptions) -> dict[str, dict[str, Any]]:
    """The sections that are asked for. Raises UserError for a file that says something else."""
    sections = read_json(options.settings)
    if unknown := set(options.sections) - set(sections):
        raise UserError(f"sections: expected some of {' '.join(sections)}, got {min(unknown)!r}")
    chosen = {name: sections[name] for name in options.sections or sections}
    for name, section in chosen.items():
        checked(section, SECTION, f"{options.settings}: {name}")
        for part in ("rows", "measures"):
            if not isinstance(section[part], dict):
                raise UserError(f"{options.settings}: {name}: {part}: expected an object, got {section[part]!r}")
        for row, settings in section["rows"].items():
            where = f"{options.settings}: {name}: {row}"
            if ("model" in checked(settings, ROW, where)) == ("train" in settings):
                raise UserError(f"{where}: expected a model or how to train one")
        for measure, settings in section["measures"].items():
            where = f"{options.settings}: {name}: {measure}"
            checked(settings, MEASURE, where)
            if unknown := set(settings.get("rows", ())) - set(section["rows"]):
                raise UserError(f"{where}: expected names of rows, got {min(unknown)!r}")
    return chosen


def rows_of(name: str, section: Mapping[str, Any], options: CompareOptions) -> Iterator[Row]:
    """The rows of a section, one for each seed."""
    for row, settings in section["rows"].items():
        for seed in settings.get("seeds", [None]):
            stem = row.replace(" ", "_") + ("" if seed is None else f"_seed{seed}")
            yield Row(row, os.path.join(options.out, name, stem), settings, seed, settings.get("model"))


def program(words: Sequence[str]) -> None:
    """Run one of our programs in a process of its own. Raises Failure with the end of what it printed."""
    print("+", shlex.join(words), flush=True)
    command = [sys.executable, *(("-m",) if not words[0].endswith(".py") else ()), *words]
    made = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if made.returncode:
        last = made.stderr.strip().splitlines()[-1:] or [f"status {made.returncode}"]
        raise Failure(f"{shlex.join(words)}: {last[0]}")


def train(row: Row, section: Mapping[str, Any], options: CompareOptions) -> str:
    """The average of a row's finished training, which goes on where it was interrupted."""
    seed = [] if row.seed is None else [f"--seed={row.seed}"]
    where = [f"--workdir={row.folder}", f"--data_root={options.data_root}", "--quiet"]
    if not options.collect:
        program(["scripts.train", f"--dataset={section['dataset']}", *row.settings["train"], *seed, *where])
    for run_dir in glob(os.path.join(row.folder, "*", "")):
        training = (read_config(run_dir) or {}).get("train", {})
        last, rate = training.get("total_steps", 0), training.get("ema_rate", 0.0)
        if (last, "") in complete_sets(run_dir, rate):
            return os.path.join(run_dir, set_names(last, rate)["ema"])
    raise Failure(f"{row.folder}: no finished training")


def about_model(row: Row) -> dict[str, Any]:
    """Parameters, numbers of a code, and training, of the row's weight file."""
    model = load_model(row.model, **row.settings.get("fields", {}))
    size = model.config.image_size
    with torch.no_grad():
        code = model.encode_arrays(torch.zeros(1, 3, size, size), None)
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "code": next(iter(code.values())).shape[1] if code else None,
    }
    log = os.path.join(os.path.dirname(row.model), "progress.csv")
    if os.path.exists(log):
        with open(log, encoding="utf-8") as file:
            *_, last = csv.DictReader(file)
        found["training images"] = int(last["images"])
    return found


def filled(words: Sequence[str], row: Row, section: Mapping[str, Any], options: CompareOptions) -> list[str]:
    """A command with its places filled in. A word with * in it stands for the one path that there is."""
    files = dict(entry.partition("=")[::2] for entry in options.files)
    places = {"model": row.model, "dataset": section["dataset"], "out": row.folder, "data_root": options.data_root}
    try:
        words = [word.format_map(places | files) for word in words]
    except KeyError as place:
        raise Failure(f"needs --files {place.args[0]}=PATH") from None
    return [only(word) if "*" in word else word for word in words]


def only(pattern: str) -> str:
    """The one path that fits. Raises Failure for none, or several."""
    flag, _, path = pattern.rpartition("=")
    found = glob(path)
    if len(found) != 1:
        raise Failure(f"{path}: expected one such path, there are {len(found)}")
    return f"{flag}={found[0]}" if flag else found[0]


def at(content: Any, path: str) -> Any:
    """What stands at a dotted path of names and numbers in JSON."""
    for name in path.split("."):
        content = content[int(name)] if isinstance(content, list) else content[name]
    return content


def measure(
    name: str, settings: Mapping[str, Any], row: Row, section: Mapping[str, Any], options: CompareOptions
) -> None:
    """Run the programs of a measure unless they were run on these weights, and keep what they found."""
    done = read_json(row.done) if os.path.exists(row.done) else {}
    key = {"run": settings["run"], "report": settings["report"], "weights": fingerprint(row.model)}
    if done.get(name, {}).get("made_from") != key:
        if options.collect:
            raise Failure("not run")
        begin = time.monotonic()
        for words in settings["run"]:
            program(filled(words, row, section, options))
        seconds = round(time.monotonic() - begin, 1)
        content = read_json(filled([settings["report"]], row, section, options)[0])
        done[name] = {"made_from": key, "seconds": seconds, "content": content}
        write_json(row.done, done)
    content = done[name]["content"]
    try:
        row.values[name] = {title: at(content, path) for title, path in settings["columns"].items()}
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise Failure(f"{settings['report']}: nothing stands at {error}") from None


def over_seeds(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Values of the rows of one name: of several seeds means, with their standard deviations."""
    if len(rows) == 1:
        return rows[0].values
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for row in rows for name in row.values):
        columns = [row.values[name] for row in rows if name in row.values]
        found[name] = {title: spread([values[title] for values in columns]) for title in columns[0]}
    return found


def spread(values: Sequence[Any]) -> Any:
    """Mean and standard deviation of numbers that differ; what is the same everywhere stays as it is."""
    if len(set(values)) == 1:
        return values[0]
    return statistics.mean(values), statistics.stdev(values)


def main(args: list[str] | None = None) -> None:
    """Train what is to be trained, measure, and write the tables."""
    options = options_of(__doc__, "comparison", CompareOptions, args)
    sections, failures, texts = read_settings(options), [], []
    for name, section in sections.items():
        rows = list(rows_of(name, section, options))
        for row in rows:
            try:
                row.model = row.model or train(row, section, options)
                row.values[""] = about_model(row)
            except (Failure, UserError, OSError) as problem:
                failures.append(f"{name}: {row.name}: {problem}")
                continue
            for title, settings in section["measures"].items():
                if row.name in settings.get("rows", section["rows"]):
                    try:
                        measure(title, settings, row, section, options)
                    except Failure as problem:
                        failures.append(f"{name}: {row.name}: {title}: {problem}")
        found = {row: over_seeds([each for each in rows if each.name == row]) for row in section["rows"]}
        texts.append(section_text(section, found))
    text = HEAD + "\n".join(texts) + failed(failures)
    if options.table:
        with atomic_write(options.table, "w") as file:
            file.write(text)
        print(f"wrote {options.table}")
    else:
        print(text)
    if failures and not options.collect:
        raise UserError(f"{len(failures)} measures were not taken, the first: {failures[0]}")


if __name__ == "__main__":
    run(main)
