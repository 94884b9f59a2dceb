"""What a linear probe reports: which cell is chosen, the table, and the picture of the grid."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dbae.io import write_json
from scripts.figures import plain_text, save_figure
from scripts.linear_cached import Row
from scripts.linear_options import Cell, LinearOptions
from scripts.tables import markdown

Rows = Mapping[Cell, Row]
Names = Mapping[float | None, str]  # of the times
SCORES = {"class": "accuracy", "binary": "average precision"}
LABELS = {"pixels": "pixels", "pca": "principal components", "untrained": "untrained network", "chance": "chance"}


def best(rows: Rows, split: str) -> Cell:
    """The cell with the highest score on a split: of equal ones the deepest block at the first time."""
    return max(rows, key=lambda cell: rows[cell][split])


def key_of(cell: Cell, names: Names) -> str:
    """The official name of a cell, ``11/out_6``; of a code its own."""
    return cell.block if cell.time is None else f"{names[cell.time]}/{cell.block}"


def results(names: Names, rows: Rows, refits: Mapping[Cell, float]) -> dict[str, Any]:
    """The cells as JSON has them, and of several the one chosen on validation images, and the best on test.

    This is how it is chosen officially; ``test_refit`` is the test score of a head that was fitted again.
    """
    cells = {
        cell: {"key": key_of(cell, names), "block": cell.block, "time": cell.time, **row}
        | ({"test_refit": refits[cell]} if cell in refits else {})
        for cell, row in rows.items()
    }
    choices = ("valid", "test") if len(rows) > 1 else ()
    shown = ("key", "valid", "test", "test_refit")
    selected = {split: cells[best(rows, split)] for split in choices}
    return {"cells": list(cells.values())} | {
        f"selected_on_{split}": {name: row[name] for name in shown if name in row} for split, row in selected.items()
    }


def baseline(results: Mapping[str, Any]) -> Row:
    """The results of another model as one row: its choice on validation images, and all its cells."""
    return results.get("selected_on_valid", results["cells"][0]) | {"cells": results["cells"]}


def protocol(options: LinearOptions, cells: int) -> str:
    """What was fitted on what, in words."""
    if cells == 1 and options.how == "official" and options.whole:
        return "the head is trained on training and validation images together, the official training images"
    fitted = "heads are fitted on training images without the validation images"
    penalty = ", their penalties chosen on these" * (options.how in ("exact", "ridge"))
    choice = "; the cell is chosen on validation images, and officially on test images" * (cells > 1)
    again = "; test_refit is of the chosen heads, fitted again on both" * bool(options.whole)
    return fitted + penalty + choice + again


def table(report: Mapping[str, Any]) -> str:
    """The report as text: one line for one cell, as officially; else a table of all, and the choices. Baselines."""
    cells = report["cells"]
    if len(cells) == 1:
        score = "acc" if report["kind"] == "class" else "AP"
        lines = [f"[key {cells[0]['key']}]: Test {score}: {_percent(_final(cells[0]))}"]
    else:
        times, name_of = _times(cells), report["time_names"]
        body = []
        for block in dict.fromkeys(row["block"] for row in cells):
            rows = {row["time"]: row for row in cells if row["block"] == block}
            shown = {time: f"{_percent(row['valid'])} / {_percent(row['test'])}" for time, row in rows.items()}
            width = str(next(iter(rows.values()))["width"])
            body.append([block, width, *(shown.get(time, shown.get(None, "")) for time in times)])
        heads = ("block", "width", *("" if time is None else name_of[f"{time:g}"] for time in times))
        lines = [f"{report['score']} in percent on validation / test images, by {report['time_axis']}"]
        lines += [
            markdown(heads, body).rstrip(),
            "chosen on validation images: " + _chosen(report["selected_on_valid"]),
            "best on test images, the official choice, so it is optimistic: " + _chosen(report["selected_on_test"]),
        ]
    for name, row in report.get("baselines", {}).items():
        about = (
            f", {row['width']} numbers" if name in ("pixels", "pca") else f" at {row['key']}" if "key" in row else ""
        )
        lines.append(f"{LABELS[name]}{about}: test {_percent(_final(row))}")
    return "\n".join(lines)


def _final(row: Row) -> float:
    """The test score of the head that was fitted on most images."""
    return row.get("test_refit", row["test"])


def _chosen(row: Row) -> str:
    again = f", fitted again on both {_percent(row['test_refit'])}" if "test_refit" in row else ""
    return f"{row['key']}, validation {_percent(row['valid'])}, test {_percent(row['test'])}{again}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _times(cells: Sequence[Row]) -> list[float | None]:
    """The columns of the grid."""
    return list(dict.fromkeys(row["time"] for row in cells if row["time"] is not None)) or [None]


def write(stem: str, report: Mapping[str, Any]) -> None:
    """Write the report, and of several cells their picture."""
    write_json(f"{stem}.json", report)
    if len(report["cells"]) > 1:
        draw(f"{stem}.png", report)


def draw(path: str, report: Mapping[str, Any]) -> None:
    """The grid as two maps of numbers, on validation and on test images: blocks downwards, the noise to the right.

    A frame marks what was chosen on validation images, a dashed one what is best on test. A code, which has no noise,
    takes the whole width.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    cells = report["cells"]
    blocks, times = list(dict.fromkeys(row["block"] for row in cells)), _times(cells)
    values = [100 * row[split] for row in cells for split in ("valid", "test")]
    middle = (min(values) + max(values)) / 2
    figure = Figure(figsize=(max(6.4, 2.4 + 1.5 * len(times)), 1.8 + 0.34 * len(blocks)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, split in zip(axes, ("valid", "test"), strict=True):
        spans = {}  # of a cell: its first column, its row, and how many columns it has
        grid = np.full((len(blocks), len(times)), np.nan)
        for row in cells:
            y, x = blocks.index(row["block"]), 0 if row["time"] is None else times.index(row["time"])
            wide = len(times) if row["time"] is None else 1
            grid[y, x : x + wide], spans[row["key"]] = 100 * row[split], (x, y, wide)
        image = axis.imshow(grid, cmap="viridis", vmin=min(values), vmax=max(values), aspect="auto")
        for x, y, wide in spans.values():
            colour = "black" if grid[y, x] > middle else "white"
            axis.text(x + (wide - 1) / 2, y, f"{grid[y, x]:.1f}", ha="center", va="center", fontsize=8, color=colour)
        for which, line, colour in (("valid", "-", "crimson"), ("test", (0, (2, 2)), "black")):
            x, y, wide = spans[report[f"selected_on_{which}"]["key"]]
            frame = Rectangle((x - 0.5, y - 0.5), wide, 1, fill=False, lw=2.2, ls=line, ec=colour, clip_on=False)
            axis.add_patch(frame)
        axis.set_xticks(range(len(times)), [_label(report, time) for time in times], fontsize=8)
        axis.set_title({"valid": "validation images", "test": "test images"}[split], fontsize=9)
        axis.set_xlabel(report["time_axis"], fontsize=9)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    axes[0].set_yticks(range(len(blocks)), [plain_text(block) for block in blocks], fontsize=8)
    axes[0].set_ylabel("block, from the deepest", fontsize=9)
    figure.colorbar(image, ax=axes, label=f"{report['score']}, %", pad=0.01)
    figure.suptitle(plain_text(f"{report['data']}, {report['probe']} probe"), x=0.01, ha="left", fontsize=11)
    notes = [f"{LABELS[name]} {100 * row['test']:.1f}" for name, row in report.get("baselines", {}).items()]
    baselines = f"\non test: {', '.join(notes)}" if notes else ""
    figure.supxlabel(f"red: chosen on validation images; dashed: best on test images{baselines}", fontsize=8)
    save_figure(path, figure)


def _label(report: Mapping[str, Any], time: float | None) -> str:
    if time is None:
        return ""
    name = report["time_names"][f"{time:g}"]
    return name if name == f"{time:g}" else f"{name}\n({time:.3g})"
