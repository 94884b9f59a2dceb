"""Collect probes of several checkpoints into one table in the layout of the paper's Table 1.

example:
  python -m scripts.probe_table --runs ckpt/celeba/sto,ckpt/celeba/det,ckpt/ffhq/sto --out table.md

A run is a folder below which results.json files lie. Rows of the paper stand above ours; a .csv name writes CSV.
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from typing import Any

from dbae.config import UserError
from dbae.io import atomic_write
from scripts.cli import Parser, run

# Table 1 of the paper: (method, training set) -> AP, r, MSE
PUBLISHED = {
    ("SimCLR", "celeba"): (0.597, 0.474, 0.603),
    ("beta-TCVAE", "celeba"): (0.450, 0.378, 0.573),
    ("IB-GAN", "celeba"): (0.442, 0.307, 0.597),
    ("DiffAE", "celeba"): (0.603, 0.598, 0.421),
    ("PDAE", "celeba"): (0.602, 0.596, 0.410),
    ("DiTi", "celeba"): (0.623, 0.617, 0.392),
    ("DBAE-d", "celeba"): (0.650, 0.635, 0.413),
    ("DBAE", "celeba"): (0.655, 0.643, 0.369),
    ("SimCLR", "ffhq"): (0.608, 0.481, 0.638),
    ("beta-TCVAE", "ffhq"): (0.432, 0.335, 0.608),
    ("IB-GAN", "ffhq"): (0.428, 0.260, 0.644),
    ("DiffAE", "ffhq"): (0.605, 0.606, 0.410),
    ("PDAE", "ffhq"): (0.597, 0.603, 0.416),
    ("DiTi", "ffhq"): (0.614, 0.622, 0.384),
    ("DBAE-d", "ffhq"): (0.656, 0.638, 0.404),
    ("DBAE", "ffhq"): (0.664, 0.675, 0.332),
}
HEADER = ("method", "trained on", "AP", "r", "MSE", "r (best epoch)", "probed on", "test images", "source")


def reports(folder: str) -> Iterator[dict[str, Any]]:
    """Every linear probe's report below a folder; nearest neighbours have no place in the table."""
    for root, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            if name.startswith("results") and name.endswith(".json") and "downstream_inference" in root:
                with open(os.path.join(root, name)) as file:
                    report = json.load(file)
                if report["solver"] != "knn":
                    yield report


def rows_of(run_dir: str) -> Iterator[tuple[str, ...]]:
    """A row per kind of features and solver. Raises UserError where a folder holds no probe."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for report in reports(run_dir):
        key = (report["checkpoint"], report["features"], report["solver"])
        found.setdefault(key, {})[report["task"]] = report
    if not found:
        raise UserError(
            f"runs: expected probes below {run_dir} (sample_*/downstream_inference/*/results.json), none there"
        )
    for (checkpoint, features, solver), tasks in found.items():
        yield _row(f"{os.path.basename(run_dir.rstrip('/'))} {features} {solver}", checkpoint, tasks)


def _row(method: str, checkpoint: str, tasks: dict[str, Any]) -> tuple[str, ...]:
    classes, real = tasks.get("classification"), tasks.get("regression")
    probed = [f"{task['data']}" for task in tasks.values()]
    images = [f"{task['images']['test']:,}" for task in tasks.values()]
    return (
        method,
        _trained_on(checkpoint),
        f"{classes['test']['ap']:.3f}" if classes else "",
        f"{real['last']['r']:.3f}" if real else "",
        f"{real['last']['mse']:.3f}" if real else "",
        f"{real['best']['r']:.3f}" if real and "best" in real else "",
        ", ".join(probed),
        ", ".join(images),
        "ours",
    )


def _trained_on(checkpoint: str) -> str:
    path = os.path.join(os.path.dirname(checkpoint), "config.json")
    if not os.path.exists(path):
        return ""
    with open(path) as file:
        return json.load(file).get("dataset", "")


def published_rows() -> list[tuple[str, ...]]:
    """The paper's rows; its r and MSE are of the best epoch on the test split."""
    return [
        (method, data, f"{ap:.3f}", "", f"{mse:.3f}", f"{r:.3f}", "celeba, lfw", "", "paper")
        for (method, data), (ap, r, mse) in PUBLISHED.items()
    ]


def markdown(rows: list[tuple[str, ...]]) -> str:
    """A Markdown table with the header."""
    lines = [HEADER, tuple("---" for _ in HEADER), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Collect and write."""
    parser = Parser(__doc__)
    parser.add_argument("--runs", required=True, metavar="DIR,DIR,...", help="folders with probed checkpoints")
    parser.add_argument("--out", default="", metavar="PATH", help="file to write, .md or .csv (default: print)")
    options = parser.parse_args()

    rows = published_rows() + [row for run_dir in options.runs.split(",") for row in rows_of(run_dir)]
    if options.out.endswith(".csv"):
        buffer = io.StringIO()
        csv.writer(buffer).writerows([HEADER, *rows])
        text = buffer.getvalue()
    else:
        text = markdown(rows)
    if not options.out:
        print(text, end="")
        return
    with atomic_write(options.out, "w") as file:
        file.write(text)
    print(f"wrote {len(rows)} rows to {options.out}")


if __name__ == "__main__":
    run(main)
