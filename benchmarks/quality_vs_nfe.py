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
from typing import Any

import torch
from torch import Tensor

from dbae import runtime
from dbae.config import SampleConfig, option, require_positive
from dbae.diffusion import nfe
from dbae.io import atomic_write, image_generators, to_float, to_uint8
from dbae.methods import AutoEncoder
from dbae.progress import progress_bar
from eval.reconstruction import ReconstructionMetrics
from scripts.cli import Parser, run
from scripts.common import (
    DataOptions,
    RuntimeOptions,
    TrainedModel,
    build_data,
    load_autoencoder,
    parse,
    print_dry_run,
)

OFFICIAL = {
    "MSE": SampleConfig("euler", 100),
    "LPIPS": SampleConfig("euler", 333, churn=0.33),
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
class QualityOptions(DataOptions, RuntimeOptions):
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


def settings(options: QualityOptions) -> Iterator[SampleConfig]:
    """What is run, the official settings first."""
    if options.official:
        yield from OFFICIAL.values()
    yield SampleConfig("one-step")
    for calls in options.calls:
        for sampler, grid, eta in SETTINGS:
            steps = next((n for n in range(1, calls + 1) if nfe(sampler, n) == calls), None)
            if steps and (calls == 1) <= (nfe(sampler, 2) == 2):  # with one call, two-call samplers are no others
                yield SampleConfig(sampler, steps, grid=grid, eta=eta)


class Comparison:
    """Held-out images with their codes and the states that decoding starts from, which all settings share."""

    def __init__(self, trained: TrainedModel, images: Tensor, lpips_backbone: str | None) -> None:
        self.trained, self.images, self.lpips_backbone = trained, images, lpips_backbone
        self.model: AutoEncoder = trained.model
        self.z = trained.encode(images)
        parts = zip(images.split(trained.batch_size), self.z.split(trained.batch_size), strict=True)
        with torch.no_grad():
            self.x_T = torch.cat([self.model.infer_xT(to_float(x.to(trained.device)), z) for x, z in parts])

    def sample(self, sampling: SampleConfig, limit: int | None = None) -> Tensor:
        """Reconstructions, uint8; each image has random numbers of its own."""
        trained, made = self.trained, []
        count = len(self.z[:limit])
        with progress_bar(count, "image", self.label(sampling)) as bar:
            for first in range(0, count, trained.batch_size):
                batch = range(first, min(first + trained.batch_size, count))
                rows, generators = slice(batch.start, batch.stop), image_generators(trained.seed, batch, trained.device)
                x_0 = self.model.generate_from(self.z[rows], self.x_T[rows], generators, **asdict(sampling))
                made.append(to_uint8(x_0).cpu())
                bar.update(len(batch))
        return torch.cat(made)

    def measure(self, sampling: SampleConfig) -> dict[str, Any]:
        """Metrics and seconds of one setting."""
        names = ["MSE", "SSIM"] + ["LPIPS"] * bool(self.lpips_backbone)
        metrics = ReconstructionMetrics(names, self.trained.device, self.lpips_backbone)
        begin = time.monotonic()
        made = self.sample(sampling)
        seconds = time.monotonic() - begin
        for real, fake in zip(self.images.split(64), made.split(64), strict=True):
            metrics.update(real.permute(0, 2, 3, 1), fake.permute(0, 2, 3, 1))
        cost = {"nfe": nfe(sampling.sampler, sampling.steps, sampling.churn), "seconds": seconds}
        return {"setting": self.label(sampling), **sampling.as_dict(), **cost, **metrics.means()}

    def label(self, sampling: SampleConfig) -> str:
        """Name of a setting."""
        return self.model.result_name(sampling)


def with_savings(table: list[dict[str, Any]], official: dict[str, str]) -> list[dict[str, Any]]:
    """The table with each row's saving against the ``official`` setting of a metric, where it is as good by that."""
    for row in table:
        for metric, setting in official.items():
            reference = next((other for other in table if other["setting"] == setting), None)
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
    return name + "".join(f", {setting} {row[setting]}" for setting in ("eta", "churn") if row.get(setting))


def draw(axis: Any, table: list[dict[str, Any]], metric: str, against: str, label: str) -> None:
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


def main(args: list[str] | None = None) -> None:
    """Encode, sample with every setting, print, write."""
    options, about, _ = parse(Parser(__doc__), QualityOptions, "comparison", args)
    if options.dry_run:
        return print_dry_run(options, about, settings=[sampling.as_dict() for sampling in settings(options)])

    device = runtime.setup(options.device)
    trained = TrainedModel.of(load_autoencoder(options, about, device), options)
    data = build_data(options, trained.model.config.image_size)
    images = torch.stack([data[i][0] for i in range(min(options.limit or len(data), len(data)))])
    comparison = Comparison(trained, images, options.lpips_backbone)
    comparison.sample(SampleConfig(steps=10), options.batch_size)  # the first calls of a process are slow
    official = {metric: comparison.label(sampling) for metric, sampling in OFFICIAL.items()}
    table = with_savings([comparison.measure(sampling) for sampling in settings(options)], official)
    weights = os.path.basename(options.model_path)
    print(f"{weights}: {len(images)} {options.split} images of {options.dataset}, {device}, seed {options.seed}")
    print_table(table, len(images))
    plot(table, len(images), f"{options.out}.png")
    with atomic_write(f"{options.out}.json", "w") as file:
        json.dump({"checkpoint": weights, "images": len(images), "rows": table}, file, indent=1)
    return None


if __name__ == "__main__":
    run(main)
