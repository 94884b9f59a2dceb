"""Quality of reconstructions against network calls: samplers, steps and time grids on held-out images.

A row of the table is one setting; its calls are those of the inversion, too, where x_T is inferred by one. "saves" is
the number of calls of the method's official setting over the row's, where the row is at least as good (--official); of
several the one that is best by the metric. DBAE's are Euler 100 and Euler 333 with churn 0.33, DiffAE's DDIM 100 both
ways and DDIM 100 from a random x_T.

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
from datasets import CHOICES
from dbae import runtime
from dbae.config import RuntimeConfig, SampleConfig, UserError, option, require_positive
from dbae.io import atomic_write
from dbae.methods import METHODS, DiffusionModel
from eval.reconstruction import ReconstructionMetrics
from scripts.cli import Parser, run
from scripts.common import build_data, load_autoencoder, parse, print_dry_run
from scripts.options import DataOptions
from scripts.trained import TrainedModel

# What is compared at every number of calls
SETTINGS = [
    SampleConfig("euler"),
    SampleConfig("heun"),
    *(SampleConfig("dbim", grid=grid, eta=eta) for grid, eta in (("uniform", 0.0), ("uniform", 0.5), ("logsnr", 0.0))),
    SampleConfig("dbim2", grid="logsnr"),
    SampleConfig("dbim3", grid="logsnr"),
    *(SampleConfig("dbm2", grid=grid) for grid in ("uniform", "logsnr")),
]
INVERSIONS = [  # the same of methods that infer x_T by inversion, both ways alike
    SampleConfig(sampler, grid=grid, xT=xT)
    for sampler, grid, xT in itertools.product(
        ("ddim", "dbim2", "dbim3"), ("uniform", "logsnr", "karras"), ("inferred", "retraced")
    )
]
MARKERS, DASHES = "o*s^vD<>Phd", ("-", "--", ":", "-.")  # of lines; their numbers and that of colours share no factor
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
    split: str = option("test", "part of the data set; all: the whole", CHOICES)
    limit: int | None = option(200, "only the first N images")
    calls: tuple[int, ...] = option((1, 2, 3, 5, 10, 20), "network calls to compare at")
    official: bool = option(False, "also run the method's official settings")
    lpips_backbone: str | None = option(None, "file with AlexNet's features; without one LPIPS is left out")
    out: str = option("quality", "path of the table (.json) and the plot (.png) to write")

    def __post_init__(self) -> None:
        super().__post_init__()
        for calls in self.calls:
            require_positive("calls", calls)


def settings(options: QualityOptions, method: type[DiffusionModel] | DiffusionModel) -> Iterator[SampleConfig]:
    """What is run, the official settings first; of a model, without those that it does not have."""
    if options.official:
        yield from method.OFFICIAL_SAMPLING
    rows = [SampleConfig("one-step")]
    for calls, row in itertools.product(options.calls, INVERSIONS if method.INVERTS else SETTINGS):
        steps = next((n for n in range(1, calls + 1) if method.nfe(replace(row, steps=n)) == calls), None)
        # In one step, samplers of two calls are no others
        if steps and (steps > 1 or method.nfe(replace(row, steps=2)) == 2 * calls):
            rows.append(replace(row, steps=steps))
    yield from (row for row in rows if isinstance(method, type) or has(method, row))


def has(model: DiffusionModel, sampling: SampleConfig) -> bool:
    """Whether the model can be sampled so."""
    try:
        model.check_sampling(sampling)
    except UserError:
        return False
    return True


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
    name += "".join(f", {setting} {row[setting]}" for setting in ("eta", "churn") if row.get(setting))
    return name + f", {row['xT']}" * (row["xT"] != "inferred")


def plot(table: list[dict[str, Any]], path: str) -> None:
    """Write the figure as PNG."""
    from matplotlib.figure import Figure

    names = [name for name in ("MSE", "LPIPS", "SSIM") if name in table[0]]
    figure = Figure(figsize=(4.6 * len(names), 4.8), layout="constrained")
    draw(figure, table, names)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def draw(figure: Any, table: list[dict[str, Any]], metrics: list[str]) -> None:
    """Each metric against network calls; a line per sampler and grid, no two alike. Smaller is better everywhere.

    All axes are logarithmic, so that the worst settings are seen, too. Settings of equal values are drawn as markers
    that lie within each other.
    """
    series = list(dict.fromkeys(map(series_of, table)))
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for i, name in enumerate(series):
            rows = sorted((row for row in table if series_of(row) == name), key=lambda row: row["nfe"])
            values = [1 - row[metric] if metric == "SSIM" else row[metric] for row in rows]
            look = {"color": f"C{i % 10}", "marker": MARKERS[i % len(MARKERS)], "ls": DASHES[i // 10 % len(DASHES)]}
            size = 11 - 7 * i / len(series)
            axis.plot([row["nfe"] for row in rows], values, **look, ms=size, mfc="none", lw=1.2, label=name)
        axis.set(xscale="log", yscale="log", xlabel="network calls", title="1 - SSIM" if metric == "SSIM" else metric)
        axis.set_xticks(sorted({row["nfe"] for row in table}), minor=False)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.xaxis.set_minor_formatter("")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)


def main(args: list[str] | None = None) -> None:
    """Encode, sample with every setting, print, write."""
    options, about, _ = parse(Parser(__doc__), QualityOptions, "comparison", args)
    if options.dry_run:
        return print_dry_run(
            options, about, settings=[each.as_dict() for each in settings(options, METHODS[options.method])]
        )

    files = [f"{options.out}.{ending}" for ending in ("json", "png")]
    there = [path for path in files if os.path.exists(path)]
    if there and not options.overwrite:
        raise UserError(f"out: {there[0]} is there already; give another --out, or --overwrite true to replace it")
    device = runtime.setup(options.device)
    trained = TrainedModel.of(load_autoencoder(options, about, device), options)
    data = build_data(options, trained.model.config.image_size)
    if options.check:
        return None
    images = torch.stack([data[i][0] for i in range(min(options.limit or len(data), len(data)))])
    first = replace(trained.model.SAMPLING, steps=2)
    measure(trained, first, images[: options.batch_size], None)  # the first calls of a process are slow
    table = [
        measure(trained, sampling, images, options.lpips_backbone) for sampling in settings(options, trained.model)
    ]
    official = {}
    if options.official:
        rows = table[: len(trained.model.OFFICIAL_SAMPLING)]
        metrics = [metric for metric in ("MSE", "LPIPS") if metric in table[0]]
        official = {metric: min(rows, key=lambda row, by=metric: row[by])["setting"] for metric in metrics}
    weights = os.path.basename(options.model_path)
    title = f"{weights}: {len(images)} {options.split} images of {options.dataset}, seed {options.seed}"
    facts = {"checkpoint": weights, "images": len(images)}
    report(title, device, with_savings(table, official), files[0], COLUMNS, **facts)
    plot(table, files[1])
    return None


if __name__ == "__main__":
    run(main)
