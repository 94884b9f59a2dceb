"""One picture of a run: inputs, endpoints and reconstructions of test images, the loss curve, and the numbers.

example:
  python -m scripts.demo_figure --model_path RUN/ema_0.9999_001400.pt --sample_path RUN/sample_1400/... --out demo.png
"""

import csv
import os
from typing import Any

from dbae.config import UserError
from dbae.io import atomic_write
from eval import samples
from scripts.cli import Parser, run

COLUMNS = 10


def pictures(model_path: str, sample_path: str) -> dict[str, Any]:
    """Rows of uint8 images [n, H, W, 3]: the first inputs and reconstructions on file, and their endpoints."""
    import torch

    from dbae.checkpoint import load_model
    from dbae.io import to_float, to_uint8

    real, fake = (samples.read_part(path)[:COLUMNS] for path in samples.pairs(sample_path)[0])
    model = load_model(model_path)
    with torch.no_grad():
        x_T = model.decode(model.encode(to_float(torch.from_numpy(real).permute(0, 3, 1, 2)), sample=False))
    return {"input": real, "endpoint  x_T = Dec(z)": to_uint8(x_T).permute(0, 2, 3, 1).numpy(), "reconstruction": fake}


def losses(run_dir: str) -> tuple[list[int], list[float]]:
    """Images seen and loss, from ``progress.csv``. Raises UserError where there is none."""
    path = os.path.join(run_dir, "progress.csv")
    if not os.path.exists(path):
        raise UserError(f"model_path: expected a run with progress.csv, there is no {path}")
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return [int(row["images"]) for row in rows], [float(row["loss"]) for row in rows]


def facts(run_dir: str, report: dict[str, Any], latent_dim: int, size: int) -> list[str]:
    """Lines of text under the numbers: what was measured, and on what."""
    with open(os.path.join(run_dir, "progress.csv")) as file:
        last = list(csv.DictReader(file))[-1]
    settings, metrics = report.get("settings", {}), report.get("metrics", {})
    lines = [f"{name.replace('_', ' ')}  {value:.4f}" for name, value in metrics.items()]
    return [
        *lines,
        "",
        f"{report.get('images_evaluated', '?')} {settings.get('split', '')} images of {settings.get('dataset', '')}",
        f"{3 * size * size:,} pixel values as a code of {latent_dim}",
        f"{settings.get('sampler', '?')}, {report.get('nfe', '?')} network calls",
        f"trained on {int(last['images']):,} images in {float(last['seconds']) / 60:.1f} min",
    ]


def draw(out: str, rows: dict[str, Any], curve: tuple[list[int], list[float]], lines: list[str]) -> None:
    """Compose and write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, ScalarFormatter

    figure = plt.figure(figsize=(12, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.7, 1))
    grid = top.subplots(len(rows), COLUMNS, squeeze=False)
    for axes, (label, images) in zip(grid, rows.items(), strict=True):
        for axis, image in zip(axes, images, strict=False):
            axis.imshow(image, interpolation="nearest")
        for axis in axes:
            axis.axis("off")
        axes[0].set_title(label, loc="left", fontsize=11)
    left, right = bottom.subplots(1, 2, width_ratios=(2, 1))
    left.plot(*curve, color="tab:blue")
    left.set(xlabel="images seen", ylabel="training loss", yscale="log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.yaxis.set_minor_formatter("")
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.grid(alpha=0.3)
    left.spines[["top", "right"]].set_visible(False)
    right.axis("off")
    right.text(0, 0.95, "\n".join(lines), va="top", fontsize=11, linespacing=1.5)
    with atomic_write(out) as file:
        figure.savefig(file, format="png", dpi=110)


def main() -> None:
    """Read the run and its samples, draw."""
    parser = Parser(__doc__)
    parser.add_argument("--model_path", required=True, metavar="PATH", help="weight file in a run's folder")
    parser.add_argument("--sample_path", required=True, metavar="DIR", help="folder of its reconstructions")
    parser.add_argument("--out", required=True, metavar="PNG", help="where to write the picture")
    options = parser.parse_args()

    run_dir = os.path.dirname(options.model_path)
    rows = pictures(options.model_path, options.sample_path)
    from dbae.checkpoint import read_config

    model = (read_config(run_dir) or {}).get("model", {})
    lines = facts(run_dir, samples.read_report(options.sample_path), model.get("latent_dim", 0), rows["input"].shape[1])
    draw(options.out, rows, losses(run_dir), lines)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run(main)
