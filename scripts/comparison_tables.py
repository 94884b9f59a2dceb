"""The text of a comparison: a table of the models, tables of the measures by name, and what papers claim."""

from collections.abc import Iterable, Mapping, Sequence
from math import hypot
from typing import Any

from scripts.tables import markdown

Values = Mapping[str, Mapping[str, Mapping[str, Any]]]  # row -> measure -> column -> value
MODELS = ("parameters", "feature dimension", "training images", "minutes", "images/s")
CAUTION = (
    "Less than two standard errors, taken as independent though the images are the same, are inconclusive; a number "
    "without an error counts as exact. Errors are over test images: each model was trained once, and another training "
    "may differ by more."
)
HEAD = "# Comparison\n\nMade by `python -m scripts.comparison`; the commands of every number stand below its table.\n\n"


def section_text(section: Mapping[str, Any], found: Values) -> str:
    """A section in Markdown."""
    trained = [row["train"] for row in section["rows"].values() if "train" in row]
    trainings = commands(f"scripts.train --dataset={section['dataset']} {how}" for how in trained) if trained else ""
    parts = [f"## {section['title']}", section.get("note", ""), models(found), trainings]
    for title in dict.fromkeys(each["table"] for each in section["measures"].values()):
        measures = {name: each for name, each in section["measures"].items() if each["table"] == title}
        if not any(name in values for values in found.values() for name in measures):
            continue
        parts.append(f"### {title}")
        lined = any("line" in each for each in measures.values())
        lines = (line for each in measures.values() for line in each["run"])
        parts += [(by_line if lined else by_row)(found, measures), commands(lines)]
    if section["claims"]:
        parts += ["### What the papers say", CAUTION, claims(section["claims"], found)]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def models(found: Values) -> str:
    """The models: their size, and what they were trained on."""
    rows = [
        [name, *(cell(values[""].get(title)) for title in MODELS)] for name, values in found.items() if values.get("")
    ]
    return markdown(("", *MODELS), rows)


def by_row(found: Values, measures: Mapping[str, Any]) -> str:
    """A line per model, with the columns of all measures beside each other."""
    columns = [(name, title) for name, each in measures.items() for title in each["columns"]]
    rows = [
        [row, *(cell(values.get(name, {}).get(title)) for name, title in columns)]
        for row, values in found.items()
        if any(name in values for name in measures)
    ]
    return markdown(("", *(title for _, title in columns)), rows)


def by_line(found: Values, measures: Mapping[str, Any]) -> str:
    """A line per model and measure, of measures with the same columns."""
    titles = list(dict.fromkeys(title for each in measures.values() for title in each["columns"]))
    rows = [
        [row, measures[name].get("line", name), *(cell(values[name].get(title)) for title in titles)]
        for row, values in found.items()
        for name in measures
        if name in values
    ]
    return markdown(("", "by", *titles), rows)


def commands(given: Iterable[str]) -> str:
    """What was run, with places for what differs between models."""
    lines = dict.fromkeys(given)
    shown = ("python " + ("" if line.split()[0].endswith(".py") else "-m ") + line for line in lines)
    return "<details><summary>commands</summary>\n\n```\n" + "\n".join(shown) + "\n```\n\n</details>"


def claims(given: Iterable[Mapping[str, Any]], found: Values) -> str:
    """A line per claim, ``left`` above ``right`` (each a model, a measure, and a column), and whether it holds here.

    A difference of less than two standard errors is inconclusive.
    """
    lines = []
    for claim in given:
        left, right = (value_at(found, claim[side]) for side in ("left", "right"))
        if left is None or right is None:
            verdict = "not measured here"
        else:
            (left_mean, left_error), (right_mean, right_error) = with_error(left), with_error(right)
            above, error = left_mean - right_mean, hypot(left_error, right_error)
            known = "inconclusive" if abs(above) < 2 * error else "holds" if above > 0 else "does not hold"
            of = (f"{claim[side][0]} {cell(value)}" for side, value in (("left", left), ("right", right)))
            verdict = f"{known} here ({', '.join(of)})"
        lines.append(f"- {claim['text']}: **{verdict}**.")
    return "\n".join(lines)


def value_at(found: Values, place: Sequence[str]) -> Any:
    """A value by its model, measure and column; None where it was not measured."""
    row, measure, column = place
    return found.get(row, {}).get(measure, {}).get(column)


def with_error(value: Any) -> tuple[float, float]:
    """A number, and its error as far as one is known."""
    mean, error = value if isinstance(value, list) else (value, None)
    return mean, error or 0.0


def failed(failures: Sequence[str]) -> str:
    """What was not measured, and why."""
    return "\n## Not measured\n\n" + "".join(f"- {each}\n" for each in failures) if failures else ""


def cell(value: Any) -> str:
    """A number as a table shows it: whole ones with commas, others with four digits, those of several seeds with ±."""
    if value is None:
        return ""
    if isinstance(value, list):
        return f"{cell(value[0])} ± {value[1]:.2g}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
