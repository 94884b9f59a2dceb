"""Quality of reconstructions against network calls: samplers, steps and time grids on held-out images.

A row of the table is one setting. "saves" is the official setting's number of calls over the
row's, where the row is at least as good: Euler 100 by MSE, Euler 333 with churn 0.33 by LPIPS (--official).

example:
  python -m benchmarks.quality_vs_nfe --model_path ckpt/toyfaces/det/ema_0.9999_016000.pt --limit 200 \\
      --lpips_backbone alexnet_features.pth --official --out quality
"""

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import report
from dbae import runtime
from dbae.config import RuntimeConfig, SampleConfig, option, require_positive
from dbae.diffusion import nfe
from dbae.io import atomic_write
from eval.reconstruction import ReconstructionMetrics
from scripts.cli import Parser, run
from scripts.common import DataOptions, TrainedModel, build_data, load_autoencoder, parse, print_dry_run

OFFICIAL = {"MSE": SampleConfig("euler", 100), "LPIPS": SampleConfig("euler", 333, churn=0.33)}
# Time grids and eta that each sampler is compared with, at every number of calls
SETTINGS = {
    "euler": [("karras", 0.0)],
    "heun": [("karras", 0.0)],
    "dbim": [("uniform", 0.0), ("uniform", 0.5), ("logsnr", 0.0)],
    "dbim2": [("logsnr", 0.0)],
    "dbim3": [("logsnr", 0.0)],
    "dbm2": [("uniform", 0.0), ("logsnr", 0.0)],
}
COLUMNS = {
    "setting": "{setting}",
    "calls": "{nfe}",
    "ms per image": "{ms:.1f}",
    "MSE": "{MSE:.2e}",
    "SSIM": "{SSIM:.4f}",
    "LPIPS": "{LPIPS:.4f}",
    "saves by MSE": "{saves_MSE:.0f}x",
    "saves by LPIPS": "{saves_LPIPS:.0f}x",
}


@dataclass(frozen=True)
class QualityOptions(DataOptions, RuntimeConfig):
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
    for calls, sampler in itertools.product(options.calls, SETTINGS):
        steps = next((n for n in range(1, calls + 1) if nfe(sampler, n) == calls), None)
        if steps and (calls > 1 or nfe(sampler, 2) == 2):  # with one call, two-call samplers are no others
            yield from (SampleConfig(sampler, steps, grid=grid, eta=eta) for grid, eta in SETTINGS[sampler])


def measure(
    trained: TrainedModel, sampling: SampleConfig, images: Tensor, lpips_backbone: str | None
) -> dict[str, Any]:
    """Metrics of one setting's reconstructions, and the seconds that they took."""
    names = ["MSE", "SSIM"] + ["LPIPS"] * bool(lpips_backbone)
    metrics = ReconstructionMetrics(names, trained.device, lpips_backbone)
    begin = time.monotonic()
    _, reconstructions = replace(trained, sampling=sampling).reconstruct(images)
    seconds = time.monotonic() - begin
    for real, fake in zip(images.split(trained.batch_size), reconstructions.split(trained.batch_size), strict=True):
        metrics.update(real.permute(0, 2, 3, 1), fake.permute(0, 2, 3, 1))
    cost = {"nfe": trained.model.nfe(sampling), "ms": 1000 * seconds / len(images)}
    return {"setting": trained.model.result_name(sampling), **sampling.as_dict(), **cost, **metrics.means()}


def with_savings(table: list[dict[str, Any]], official: dict[str, str]) -> list[dict[str, Any]]:
    """The table with each row's saving against the ``official`` setting of a metric, where it is as good by that."""
    for row in table:
        for metric, setting in official.items():
            reference = next((other for other in table if other["setting"] == setting), None)
            if reference and metric in row and row[metric] <= reference[metric]:
                row[f"saves_{metric}"] = reference["nfe"] / row["nfe"]
    return table


def series_of(row: dict[str, Any]) -> str:
    """Name of the line that a row is a point of."""
    name = row["sampler"] + f", {row['grid']}" * (row["sampler"] != "one-step")
    return name + "".join(f", {setting} {row[setting]}" for setting in ("eta", "churn") if row.get(setting))


def plot(table: list[dict[str, Any]], path: str) -> None:
    """Each metric against network calls; a line per sampler and grid."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    metrics = [name for name in ("MSE", "LPIPS", "SSIM") if name in table[0]]
    size = {"figsize": (4.6 * len(metrics), 4.4), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(1, len(metrics), **size)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for i, name in enumerate(dict.fromkeys(map(series_of, table))):
            points = sorted((row["nfe"], row[metric]) for row in table if series_of(row) == name)
            colour, marker = plt.get_cmap("tab10")(i % 10), "os"[i // 10]  # more series than colours
            axis.plot(*zip(*points, strict=True), marker + "-", color=colour, ms=3.5, lw=1.2, label=name)
        values = [row[metric] for row in table]
        axis.set_ylim(*((max(0, 4 * max(values) - 3), 1) if metric == "SSIM" else (0, 3 * min(values))))
        axis.set(xscale="log", xlabel="network calls", title=metric)
        axis.set_xticks(sorted({row["nfe"] for row in table}), minor=False)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.xaxis.set_minor_formatter("")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
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
    measure(trained, SampleConfig(steps=2), images[: options.batch_size], None)  # the first calls of a process are slow
    table = [measure(trained, sampling, images, options.lpips_backbone) for sampling in settings(options)]
    official = {metric: trained.model.result_name(sampling) for metric, sampling in OFFICIAL.items()}
    weights = os.path.basename(options.model_path)
    title = f"{weights}: {len(images)} {options.split} images of {options.dataset}, seed {options.seed}"
    facts = {"checkpoint": weights, "images": len(images)}
    report(title, device, with_savings(table, official), f"{options.out}.json", COLUMNS, **facts)
    plot(table, f"{options.out}.png")
    return None


if __name__ == "__main__":
    run(main)
