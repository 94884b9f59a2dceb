"""Quality of reconstructions against network calls: samplers, steps and time grids on held-out images.

Images are encoded once; a row of the table is one setting. "saves" is the official setting's number of calls over the
row's, where the row is at least as good: Euler 100 by MSE, Euler 333 with churn 0.33 by LPIPS (--official).

example:
  python -m benchmarks.quality_vs_nfe --model_path ckpt/toyfaces/det/ema_0.9999_016000.pt --limit 200 \\
      --lpips_backbone alexnet_features.pth --official --out quality
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scripts.inputs import Inputs, Speed, build_data, load, parse, print_dry_run

from dbae.config import SampleConfig, option, require_positive
from scripts.cli import Parser, run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from scripts.editing import Editor
    from torch import Tensor

OFFICIAL = {
    "MSE": SampleConfig("euler", 100),
    "LPIPS": SampleConfig("euler", 333, churn_step_ratio=0.33),
}
# Settings compared at every number of calls: (sampler, grid, eta)
SETTINGS = (
    ("euler", "karras", 0.0),
    ("heun", "karras", 0.0),
    ("dbim", "uniform", 0.0),
    ("dbim", "uniform", 0.5),
    ("dbim", "logsnr", 0.0),
    ("dbim2", "logsnr", 0.0),
    ("dbim3", "logsnr", 0.0),
    ("dbm2", "uniform", 0.0),
    ("dbm2", "logsnr", 0.0),
)


@dataclass(frozen=True)
class QualityOptions(Inputs, Speed):
    """What is compared, and where it is written."""

    dataset: str = option("toyfaces", "data set")
    split: str = option("test", "part of the data set", ("train", "valid", "test"))
    limit: int | None = option(200, "only the first N images")
    calls: tuple[int, ...] = option((1, 2, 3, 5, 10, 20), "network calls to compare at")
    official: bool = option(False, "also run the official settings of 100 and 666 calls")
    lpips_backbone: str | None = option(None, "file with AlexNet's features; without one LPIPS is left out")
    out: str = option("quality", "path of the table (.json) and the plot (.png) to write")

    def __post_init__(self) -> None:
        super().__post_init__()
        for calls in self.calls:
            require_positive("calls", calls)


def rows(options: QualityOptions) -> Iterator[SampleConfig]:
    """The settings to run, the official ones first."""
    if options.official:
        yield from OFFICIAL.values()
    yield SampleConfig("one-step")
    for calls in options.calls:
        for sampler, grid, eta in SETTINGS:
            two = sampler in ("heun", "dbm2")  # calls per step, one less in the last step
            if not two or (calls % 2 and calls > 1):
                yield SampleConfig(sampler, (calls + 1) // 2 if two else calls, grid=grid, eta=eta)


def measure(editor: "Editor", sampling: SampleConfig, images: "Tensor", z: "Tensor", options: QualityOptions) -> dict:
    """Metrics and seconds of one setting."""
    from dataclasses import replace

    from dbae.sampler import nfe

    from eval.reconstruction import ReconstructionMetrics

    names = ["MSE", "SSIM"] + ["LPIPS"] * bool(options.lpips_backbone)
    metrics = ReconstructionMetrics(names, editor.device, options.lpips_backbone)
    begin = time.monotonic()
    _, made = replace(editor, sampling=sampling).generate(z, noise=range(len(z)), desc=sampling.label)
    seconds = time.monotonic() - begin
    for real, fake in zip(images.split(64), made.split(64), strict=True):
        metrics.update(real.permute(0, 2, 3, 1), fake.permute(0, 2, 3, 1))
    calls = nfe(sampling.steps, sampling.sampler, sampling.churn_step_ratio)
    return {"setting": sampling.label, **asdict(sampling), "nfe": calls, "seconds": seconds, **metrics.means()}


def with_savings(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table with each row's saving against every official setting that was run and that it is as good as."""
    for row in table:
        for metric, sampling in OFFICIAL.items():
            reference = next((other for other in table if other["setting"] == sampling.label), None)
            if reference and metric in row and row[metric] <= reference[metric]:
                row[f"saves_{metric}"] = reference["nfe"] / row["nfe"]
                row[f"faster_{metric}"] = reference["seconds"] / row["seconds"]
    return table


def print_table(table: list[dict[str, Any]], images: int) -> None:
    """Markdown."""
    metrics = [name for name in ("MSE", "SSIM", "LPIPS") if name in table[0]]
    saved = [f"saves_{name}" for name in OFFICIAL if any(f"saves_{name}" in row for row in table)]
    print(
        "| setting | calls | ms per image |", " | ".join(metrics + [name.replace("_", " by ") for name in saved]), "|"
    )
    print("|---" * (3 + len(metrics) + len(saved)) + "|")
    for row in table:
        cells = [row["setting"], str(row["nfe"]), f"{1000 * row['seconds'] / images:.1f}"]
        cells += [f"{row[name]:.2e}" if name == "MSE" else f"{row[name]:.4f}" for name in metrics]
        cells += [f"{row[name]:.0f}x" if name in row else "" for name in saved]
        print("|", " | ".join(cells), "|")


def series_of(row: dict[str, Any]) -> str:
    """Name of the line that a row is a point of."""
    name = row["sampler"] + f", {row['grid']}" * (row["sampler"] != "one-step")
    return (
        name
        + f", eta {row['eta']}" * (row["eta"] > 0)
        + f", churn {row['churn_step_ratio']}" * (row["churn_step_ratio"] > 0)
    )


def draw(axis: "Axes", table: list[dict[str, Any]], metric: str, against: str, label: str) -> None:
    """Lines of a metric against a column of the table, on a logarithmic axis, cut to the useful part."""
    from matplotlib import pyplot as plt

    series: dict[str, list[tuple[float, float]]] = {}
    for row in table:
        series.setdefault(series_of(row), []).append((row[against], row[metric]))
    for i, (name, points) in enumerate(series.items()):
        colour, marker = plt.get_cmap("tab10")(i % 10), "os"[i // 10]  # more series than colours
        axis.plot(*zip(*sorted(points), strict=True), marker + "-", color=colour, ms=3.5, lw=1.2, label=name)
    best = max(row["SSIM"] for row in table) if metric == "SSIM" else min(row[metric] for row in table)
    axis.set_ylim(*((max(0, 1 - 4 * (1 - best)), 1) if metric == "SSIM" else (0, 3 * best)))
    axis.set(xscale="log", xlabel=label, title=metric)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def plot(table: list[dict[str, Any]], images: int, path: str) -> None:
    """Each metric against network calls, and against milliseconds per image; a line per sampler and grid."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from dbae.io import atomic_write

    metrics = [name for name in ("MSE", "LPIPS", "SSIM") if name in table[0]]
    size = {"figsize": (4.6 * len(metrics), 7.2), "layout": "constrained", "squeeze": False}
    figure, (by_calls, by_time) = plt.subplots(2, len(metrics), **size)
    timed = [row | {"ms": 1000 * row["seconds"] / images} for row in table]
    for metric, calls, time_ in zip(metrics, by_calls, by_time, strict=True):
        draw(calls, timed, metric, "nfe", "network calls")
        calls.set_xticks(sorted({row["nfe"] for row in table}))
        calls.xaxis.set_major_formatter("{x:.0f}")
        calls.xaxis.set_minor_formatter("")
        draw(time_, timed, metric, "ms", "milliseconds per image")
    figure.legend(*by_calls[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def main() -> None:
    """Encode, sample with every setting, print, write."""
    options, about, _ = parse(Parser(__doc__), QualityOptions, "comparison", None)
    if options.dry_run:
        return print_dry_run(options, about, settings=[sampling.label for sampling in rows(options)])

    import torch
    from scripts.editing import Editor

    from dbae import distributed
    from dbae.io import atomic_write

    device = distributed.setup(options.device)
    editor = Editor(load(options, about, device), SampleConfig(), options.latent, options.seed, options.batch_size)
    data = build_data(options, editor.model.config.image_size)
    images = torch.stack([data[i][0] for i in range(min(options.limit or len(data), len(data)))])
    z = editor.encode(images)
    editor.generate(z[: options.batch_size])  # the first calls of a process are slow
    table = with_savings([measure(editor, sampling, images, z, options) for sampling in rows(options)])
    weights = os.path.basename(options.model_path)
    print(f"{weights}: {len(images)} {options.split} images of {options.dataset}, {device}, seed {options.seed}")
    print_table(table, len(images))
    plot(table, len(images), f"{options.out}.png")
    with atomic_write(f"{options.out}.json", "w") as file:
        json.dump({"checkpoint": weights, "images": len(images), "rows": table}, file, indent=1)
    return None


if __name__ == "__main__":
    run(main)
