"""One picture of a run: inputs, x_T and reconstructions of test images, the loss curve, and the numbers.

example:
  python -m scripts.demo_figure --model_path RUN/ema_0.9999_001400.pt --sample_path RUN/sample_1400/... --out demo.png
"""

import csv
import os
from itertools import chain
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter
from torch import Tensor

from dbae.checkpoint import load_model
from dbae.io import check_outputs, to_float, to_uint8
from eval import samples
from eval.reconstruction import describe
from scripts.cli import Parser, run
from scripts.figures import Row, draw_rows, plain_text, save_figure

COLUMNS = 10


def read_log(model_path: str) -> list[dict[str, str]]:
    """Rows of the run's progress.csv."""
    with open(os.path.join(os.path.dirname(model_path), "progress.csv")) as file:
        return list(csv.DictReader(file))


def read_images(sample_path: str) -> tuple[Tensor, Tensor]:
    """The first real and reconstructed images, uint8 [n, 3, H, W]."""
    parts = (samples.read_part(path)[:COLUMNS] for path in samples.pairs(sample_path)[0])
    return tuple(torch.from_numpy(part).permute(0, 3, 1, 2) for part in parts)


def facts(model: Any, sample_path: str, log: list[dict[str, str]]) -> list[str]:
    """Lines on a model and its reconstructions."""
    report = samples.read_report(sample_path)
    settings = report.get("settings", {})
    images = f"{report.get('images_evaluated', '?')} {settings.get('split', '')} images"
    return [
        f"{type(model).__name__}: a code of {model.config.latent_dim} numbers",
        f"for {3 * model.config.image_size**2:,} pixel values",
        describe(report.get("metrics", {})),
        f"{settings.get('sampler', '?')}, {report.get('nfe', '?')} network calls, {images} of "
        + plain_text(settings.get("dataset", "")),
        f"trained on {int(log[-1]['images']):,} images in {float(log[-1]['seconds']) / 60:.1f} min",
    ]


def main(args: list[str] | None = None) -> None:
    """Read the run and its samples, draw."""
    parser = Parser(__doc__)
    parser.add_argument("--model_path", required=True, metavar="PATH", help="weight file in its run's folder")
    parser.add_argument("--sample_path", required=True, metavar="DIR", help="folder of reconstructions")
    parser.add_argument("--out", required=True, metavar="PNG", help="where to write the picture")
    options = parser.parse_args(args)
    check_outputs([options.out], [options.model_path, *chain(*samples.pairs(options.sample_path))])
    model, log = load_model(options.model_path), read_log(options.model_path)
    real, fake = read_images(options.sample_path)
    with torch.no_grad():
        x = to_float(real)
        states = to_uint8(model.infer_xT(x, model.encode(x, sample=False)))

    # Rows of images above, the loss over images seen and the numbers below
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3.8, 2.6))
    draw_rows(top, [Row("input", real), Row("$x_T$", states), Row("reconstruction", fake)])
    left, right = bottom.subplots(1, 2, width_ratios=(1.6, 1))
    left.plot([int(row["images"]) for row in log], [float(row["loss"]) for row in log])
    left.set(xlabel="images seen", ylabel="training loss", yscale="log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.yaxis.set_minor_formatter("")
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.grid(alpha=0.3)
    left.spines[["top", "right"]].set_visible(False)
    right.axis("off")
    text = right.text(0, 1, "\n".join(facts(model, options.sample_path, log)), va="top", fontsize=9.5, linespacing=1.4)
    text.set_in_layout(False)  # or long lines would press on the curve
    save_figure(options.out, figure, bbox_inches="tight")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run(main)
