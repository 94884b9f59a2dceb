"""Collect probes of several checkpoints into one table in the layout of the paper's Table 1.

example:
  python -m scripts.probe_table --runs ckpt/celeba/sto,ckpt/celeba/det,ckpt/ffhq/sto --out table.md

A run is a folder below which results.json files lie. Rows of the paper stand above ours; a mean that
leaves labels out says over how many it is; a .csv name writes CSV.
"""

import json
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from dbae.checkpoint import stated_config
from dbae.config import UserError
from eval.probe import coverage
from scripts.cli import run
from scripts.tables import collect

HEADER = ("method", "trained on", "AP", "r", "MSE", "r (best epoch)", "probed on", "test images", "source")

# Table 1 of the paper: AP, r and MSE on celeba, then on ffhq; r and MSE are of the best epoch on the test split
PUBLISHED = {
    "SimCLR": ("0.597 0.474 0.603", "0.608 0.481 0.638"),
    "beta-TCVAE": ("0.450 0.378 0.573", "0.432 0.335 0.608"),
    "IB-GAN": ("0.442 0.307 0.597", "0.428 0.260 0.644"),
    "DiffAE": ("0.603 0.598 0.421", "0.605 0.606 0.410"),
    "PDAE": ("0.602 0.596 0.410", "0.597 0.603 0.416"),
    "DiTi": ("0.623 0.617 0.392", "0.614 0.622 0.384"),
    "DBAE-d": ("0.650 0.635 0.413", "0.656 0.638 0.404"),
    "DBAE": ("0.655 0.643 0.369", "0.664 0.675 0.332"),
}


def published_rows() -> Iterator[tuple[str, ...]]:
    """The paper's rows."""
    for i, data in enumerate(("celeba", "ffhq")):
        for method, numbers in PUBLISHED.items():
            ap, r, mse = numbers[i].split()
            yield (method, data, ap, "", mse, r, "celeba, lfw", "", "paper")


def rows_of(run_dir: str) -> Iterator[tuple[str, ...]]:
    """A row per kind of features and solver; only linear probes of attributes have a place in the table.

    Where there are several probes of a kind, on other data or at other settings, each has its row. Raises UserError
    where a folder holds none.
    """
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for root, _, names in sorted(os.walk(run_dir)):
        for name in sorted(names):
            if "downstream_inference" in root and name.startswith("results") and name.endswith(".json"):
                path = os.path.join(root, name)
                try:
                    with open(path, "rb") as file:
                        report = json.loads(file.read())
                    key = tuple(report[part] for part in ("checkpoint", "features", "solver")) + (report.get("time"),)
                    task = report["task"]
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path}: expected the results of a probe") from None
                if report["solver"] != "knn" and task in ("classification", "regression"):
                    rows = found.setdefault(key, [])
                    row = next((row for row in rows if task not in row), {})
                    rows += [] if row else [row]
                    row[task] = report
    if not found:
        expected = f"expected probes below {run_dir} (sample_*/downstream_inference/*/results.json)"
        raise UserError(f"runs: {expected}, none there")
    for (checkpoint, features, solver, time), rows in found.items():
        about = [os.path.basename(run_dir.rstrip("/")), features, *([] if time is None else [f"time {time:g}"]), solver]
        for tasks in rows:
            classes, real = tasks.get("classification"), tasks.get("regression")
            yield (
                " ".join(about),
                (stated_config(checkpoint) or {}).get("dataset", ""),
                f"{classes['test']['ap']:.3f}{coverage(classes)}" if classes else "",
                f"{real['last']['r']:.3f}{coverage(real)}" if real else "",
                f"{real['last']['mse']:.3f}" if real else "",
                f"{real['best']['r']:.3f}" if real and "best" in real else "",
                ", ".join(task["data"] for task in tasks.values()),
                ", ".join(f"{task['images']['test']:,}" for task in tasks.values()),
                "ours",
            )


main = partial(collect, __doc__, "probed checkpoints", HEADER, published_rows, rows_of)

if __name__ == "__main__":
    run(main)
