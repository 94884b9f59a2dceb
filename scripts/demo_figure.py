"""One picture of a run: inputs, x_T and reconstructions of test images, the loss curve, and the numbers.

example:
  python -m scripts.demo_figure --model_path RUN/ema_0.9999_001400.pt --sample_path RUN/sample_1400/... --out demo.png
"""

import csv
import os
from itertools import chain

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from dbae.checkpoint import load_model
from dbae.io import check_outputs, to_float, to_uint8
from eval import samples
from scripts.cli import Parser, run
from scripts.figures import Row, draw_rows, plain_text, save_figure

COLUMNS = 10


def main(args: list[str] | None = None) -> None:
    """Read the run and its samples, draw."""
    parser = Parser(__doc__)
    parser.add_argument("--model_path", required=True, metavar="PATH", help="weight file in a run's folder")
    parser.add_argument("--sample_path", required=True, metavar="DIR", help="folder of its reconstructions")
    parser.add_argument("--out", required=True, metavar="PNG", help="where to write the picture")
    options = parser.parse_args(args)

    with open(os.path.join(os.path.dirname(options.model_path), "progress.csv")) as file:
        log = list(csv.DictReader(file))
    check_outputs([options.out], [options.model_path, *chain(*samples.pairs(options.sample_path))])
    parts = (samples.read_part(path)[:COLUMNS] for path in samples.pairs(options.sample_path)[0])
    real, fake = (torch.from_numpy(part).permute(0, 3, 1, 2) for part in parts)
    model = load_model(options.model_path)
    with torch.no_grad():
        x = to_float(real)
        states = to_uint8(model.infer_xT(x, model.encode(x, sample=False)))
    report = samples.read_report(options.sample_path)
    settings = report.get("settings", {})
    lines = [
        *(f"{name.replace('_', ' ')}  {value:.4f}" for name, value in report.get("metrics", {}).items()),
        "",
        f"{report.get('images_evaluated', '?')} {settings.get('split', '')} images of "
        + plain_text(settings.get("dataset", "")),
        f"{x[0].numel():,} pixel values as a code of {model.config.latent_dim}",
        f"{settings.get('sampler', '?')}, {report.get('nfe', '?')} network calls",
        f"trained on {int(log[-1]['images']):,} images in {float(log[-1]['seconds']) / 60:.1f} min",
    ]

    # Rows of images above, the loss over images seen and the numbers below
    figure = Figure(figsize=(12, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.7, 1))
    draw_rows(top, [Row("input", real), Row("$x_T$", states), Row("reconstruction", fake)])
    left, right = bottom.subplots(1, 2, width_ratios=(2, 1))
    left.plot([int(row["images"]) for row in log], [float(row["loss"]) for row in log])
    left.set(xlabel="images seen", ylabel="training loss", yscale="log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.yaxis.set_minor_formatter("")
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.grid(alpha=0.3)
    left.spines[["top", "right"]].set_visible(False)
    right.axis("off")
    right.text(0, 0.95, "\n".join(lines), va="top", fontsize=11, linespacing=1.5)
    save_figure(options.out, figure, bbox_inches="tight")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run(main)
