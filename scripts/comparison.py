"""Tables of several models on the same data, made by the programs of this repository from one file of settings.

example:
  python -m scripts.comparison --settings docs/comparison.json --out workdir/comparison --table docs/comparison.md

Models that have no file are trained first; then every measure of a section is taken of every row that it is for. A
program that ended is not run again unless its command, the files that it is given or the weights have changed, an
interrupted training goes on, and a program that fails is reported at the end.

The settings are ``sections``, and ``measures`` and ``claims`` of all of them. A section has ``title``, ``dataset`` and
``rows``: name -> ``model``, a weight file or the name of a row above, or ``train``, options of scripts.train, with
``seeds``. A measure is ``run``, commands with places like {model}, {dataset} and {out}; ``report``, the JSON that they
write; ``table``; ``columns``, title -> where in the JSON a number stands, or where it and its error do; perhaps
``sections`` and ``rows`` that it is for; and perhaps ``lines``, title -> more places, sections and rows, each of which
makes it a measure of its own (the same commands run once). ``places`` of a section, and of a row, are more places,
e.g. {"features": "pixels"}.
"""

import csv
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from glob import glob
from typing import Any

import torch

from dbae.checkpoint import complete_sets, load_model, read_config, set_names
from dbae.config import UserError
from dbae.io import atomic_write, fingerprint, read_json, write_json
from scripts.cli import options_of, run
from scripts.comparison_results import MODEL, Entries, compared, entries_of, read_results, recall
from scripts.comparison_settings import CompareOptions, Row, read_settings, rows_of
from scripts.comparison_tables import HEAD, failed, section_text


class Failure(Exception):
    """A program that did not make what was asked for."""


def program(words: Sequence[str]) -> None:
    """Run one of our programs in a process of its own. Raises Failure with the end of what it printed."""
    print("+", shlex.join(words), flush=True)
    command = [sys.executable, *(("-m",) if not words[0].endswith(".py") else ()), *words]
    made = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if made.returncode:
        last = made.stderr.strip().splitlines()[-1:] or [f"status {made.returncode}"]
        raise Failure(f"{shlex.join(words)}: {last[0]}")


def train(row: Row, options: CompareOptions) -> str:
    """The average of a row's finished training, which goes on where it was interrupted."""
    how = ["scripts.train", f"--dataset={row.settings['dataset']}", *shlex.split(row.settings["train"])]
    how += [] if row.seed is None else [f"--seed={row.seed}"]
    note = os.path.join(row.folder, "train.json")
    if os.path.exists(row.folder) and not (os.path.exists(note) and read_json(note) == {"command": how}):
        raise Failure(f"{note}: expected the command {shlex.join(how)}; move the folder away, or give another --out")
    if not row.idle:
        write_json(note, {"command": how})
        program([*how, f"--workdir={row.folder}", f"--data_root={options.data_root}", "--quiet"])
    for run_dir in glob(os.path.join(row.folder, "*", "")):
        training = (read_config(run_dir) or {}).get("train", {})
        last, rate = training.get("total_steps", 0), training.get("ema_rate", 0.0)
        if (last, "") in complete_sets(run_dir, rate):
            return os.path.join(run_dir, set_names(last, rate)["ema"])
    raise Failure(f"{row.folder}: no finished training")


def about_model(row: Row) -> dict[str, Any]:
    """Parameters, dimension of the features, and training, of the row's weight file."""
    model = load_model(row.model)
    size = model.config.image_size
    with torch.no_grad():
        code = model.encode_arrays(torch.zeros(1, 3, size, size), None)
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "feature dimension": next(iter(code.values())).shape[1] if code else None,
    }
    log = os.path.join(os.path.dirname(row.model), "progress.csv")
    if os.path.exists(log):
        with open(log, encoding="utf-8") as file:
            logged = list(csv.DictReader(file))
        found["training images"] = int(logged[-1]["images"])
        if len(logged) > 1:  # the first steps alone have no rate
            found["minutes"] = round(float(logged[-1]["seconds"]) / 60)
            found["images/s"] = statistics.median(float(line["images_per_second"]) for line in logged)
    return found


def files_of(options: CompareOptions) -> dict[str, str]:
    """The files that were given, by their names in the settings."""
    return dict(entry.partition("=")[::2] for entry in options.files)


def places_of(row: Row, options: CompareOptions) -> dict[str, str]:
    """What stands at the places of the row's commands, but for its model and its folder."""
    known = {"dataset": row.settings["dataset"], "data_root": options.data_root}
    return known | row.settings["places"] | files_of(options)


def filled(line: str, row: Row, options: CompareOptions) -> list[str]:
    """The words of a command, its places filled in. A word with * in it stands for the one path that there is."""
    places = {"model": row.model, "out": row.folder} | places_of(row, options)
    try:
        words = [word.format_map(places) for word in shlex.split(line)]
    except KeyError as place:
        raise Failure(f"needs --files {place.args[0]}=PATH") from None
    except ValueError as error:
        raise Failure(f"{line}: {error}") from None
    return [only(word) if "*" in word else word for word in words]


def made_from(settings: Mapping[str, Any], row: Row, options: CompareOptions) -> dict[str, Any]:
    """What a measure's numbers depend on: its commands, what stands at their places, and the contents of files."""
    text, files = " ".join([*settings["run"], settings["report"]]), files_of(options)
    places = {name: value for name, value in places_of(row, options).items() if f"{{{name}}}" in text}
    places |= {name: fingerprint(path) for name, path in places.items() if name in files}
    return {name: settings[name] for name in ("run", "report")} | {"weights": fingerprint(row.model), "places": places}


def only(pattern: str) -> str:
    """The one path that fits, in a word like --sample_path=PATH, too. Raises Failure for none, or several."""
    flag, _, path = pattern.partition("=") if pattern.startswith("--") else ("", "", pattern)
    found = glob(path)
    if len(found) != 1:
        raise Failure(f"{path}: expected one such path, there are {len(found)}")
    return f"{flag}={found[0]}" if flag else found[0]


def at(content: Any, path: str) -> Any:
    """What stands at a dotted path of names and numbers in JSON."""
    for name in path.split("."):
        content = content[int(name)] if isinstance(content, list) else content[name]
    return content


def measure(name: str, settings: Mapping[str, Any], row: Row, options: CompareOptions) -> None:
    """Run the programs of a measure unless they were run on these weights, and keep what they found."""
    if row.model is None:
        raise Failure("not run")
    done = read_json(row.done) if os.path.exists(row.done) else {}
    key = made_from(settings, row, options)
    known = next((entry for entry in done.values() if entry["made_from"] == key), None)
    if known is None:
        if row.idle:
            raise Failure("not run")
        begin = time.monotonic()
        for line in settings["run"]:
            program(filled(line, row, options))
        seconds = round(time.monotonic() - begin, 1)
        content = read_json(filled(settings["report"], row, options)[0])
        done[name] = known = {"made_from": key, "seconds": seconds, "content": content}
        write_json(row.done, done)
    content = known["content"]
    try:
        row.values[name] = {
            title: at(content, path) if isinstance(path, str) else [at(content, each) for each in path]
            for title, path in settings["columns"].items()
        }
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise Failure(f"{settings['report']}: nothing stands at {error}") from None


def over_seeds(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Values of the rows of one name: of several seeds means, with their standard deviations."""
    if len(rows) == 1:
        return rows[0].values
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for row in rows for name in row.values):
        columns = [row.values[name] for row in rows if name in row.values]
        titles = dict.fromkeys(title for values in columns for title in values)
        found[name] = {title: spread([values[title] for values in columns if title in values]) for title in titles}
    return found


def spread(values: Sequence[Any]) -> Any:
    """Mean and standard deviation over seeds of numbers that differ; what is the same everywhere stays as it is."""
    if all(value == values[0] for value in values):
        return values[0]
    values = [value[0] if isinstance(value, list) else value for value in values]
    return [statistics.mean(values), statistics.stdev(values)]


def look(row: Row, section: Mapping[str, Any], options: CompareOptions, made: dict[str, str]) -> None:
    """Find the row's weight file, by training if need be, and what is to be known of it."""
    named = row.settings.get("model") in section["rows"]
    row.model = made.get(row.model) if named else row.model or train(row, options)
    if row.model is None:
        raise Failure(f"there is no model of {row.settings['model']}")
    made.setdefault(row.name, row.model)
    row.values[""] = {} if named else about_model(row)


def fill(name: str, section: Mapping[str, Any], options: CompareOptions, entries: Entries) -> tuple[list[Row], ...]:
    """The rows of a section, what failed, and what was not run and is not in the entries of an earlier comparison."""
    rows, made, failures, missing = list(rows_of(name, section, options)), {}, [], []
    for row in rows:
        for title, settings in {"": MODEL, **section["measures"]}.items():
            if row.name not in settings.get("rows", section["rows"]) or (title and "" not in row.values):
                continue
            try:
                if title:
                    measure(title, settings, row, options)
                else:
                    look(row, section, options, made)
            except (Failure, UserError, OSError) as error:
                problem = ": ".join(filter(None, (name, row.name, title, str(error))))
                if not row.idle:
                    failures.append(problem)
                elif not recall(row, title, settings, entries):
                    missing.append(problem)
    return rows, failures, missing


def main(args: list[str] | None = None) -> None:
    """Train what is to be trained, measure, and write the tables."""
    options = options_of(__doc__, "comparison", CompareOptions, args)
    sections, results = read_settings(options), read_results(options.results)
    if options.table and os.path.exists(options.table):
        with open(options.table, encoding="utf-8", errors="replace") as file:
            if file.read(len(HEAD)) != HEAD:
                raise UserError(f"table: {options.table} is there already, and no comparison; give another name")
    failures, missing, texts = [], [], []
    for name, section in sections.items():
        entries = results.get(name, {})
        rows, *problems = fill(name, section, options, entries)
        asked = name in (options.sections or [name])
        if any(title for row in rows for title in row.values):  # of models alone there is no table
            found = {row: over_seeds([each for each in rows if each.name == row]) for row in section["rows"]}
            texts.append(section_text(section, found))
        elif not asked:
            continue
        failures += problems[0]
        missing += problems[1]
        if options.results and asked:
            count, moved = compared(rows, entries)
            print(f"{name}: {count} of the numbers taken here were known, {len(moved)} moved by more than two errors")
            print("".join(f"  {line}\n" for line in moved), end="")
            results[name] = entries_of(rows, section["measures"], entries)
            write_json(options.results, results)
    text = HEAD + "\n".join(texts) + failed(failures + missing)
    if options.table:
        with atomic_write(options.table, "w") as file:
            file.write(text)
        print(f"wrote {options.table}")
    else:
        print(text)
    if failures:
        raise UserError(f"{len(failures)} measures were not taken, the first: {failures[0]}")


if __name__ == "__main__":
    run(main)
