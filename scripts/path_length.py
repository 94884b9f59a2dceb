"""Perceptual path length: how far images move, by LPIPS of VGG16, per step along the way between two codes.

``d(image(l), image(l + epsilon)) / epsilon^2`` of pairs of images of a data set, at a random fraction l of the way
(linear between codes; DiffAE's x_T on the arc), as in Eq. 10 of Preechakul et al. (CVPR 2022) and Karras et al. (2019).
The epsilon of the first is not known, and the value depends on it: some are computed, by default 1e-4 of StyleGAN and
two larger ones. Everything is float32 and both images share their noise, as differences are small.

example:
  python -m scripts.path_length --model_path CKPT --dataset toyfaces --split test --lpips_backbone vgg16_features.pth
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch

from datasets import CHOICES
from dbae import runtime
from dbae.config import RuntimeConfig, UserError, option
from dbae.io import fingerprint, image_generators, require_finite, to_float, with_command, write_json
from dbae.progress import progress_bar
from eval.reconstruction import load_lpips
from eval.scores import json_safe
from scripts.cli import Parser, run
from scripts.common import build_data, load_autoencoder, parse_sampling, print_dry_run, result_folder
from scripts.options import DataOptions
from scripts.results import check_report
from scripts.trained import TrainedModel

FRACTION = 1  # stream of random numbers


@dataclass(frozen=True)
class PathOptions(DataOptions, RuntimeConfig):
    """Which pairs, and steps of which length. Raises UserError for values out of range."""

    split: str = option("test", "part of the data set; all: the whole", CHOICES)
    precision: str = option("fp32", "only fp32: half precision would measure its own rounding", ("fp32",))
    pairs: int = option(200, "pairs of images, each image in one")
    epsilons: tuple[float, ...] = option((1e-4, 1e-3, 1e-2), "lengths of the step")
    lpips_backbone: str | None = option(None, "file with VGG16's features (default: torch's hub cache, or a download)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs < 1:
            raise UserError(f"pairs: expected 1 or more, got {self.pairs}")
        if not self.epsilons or not all(isfinite(e) and 0 < e < 1 for e in self.epsilons):
            raise UserError(f"epsilons: expected numbers between 0 and 1, got {self.epsilons}")


def main(args: list[str] | None = None) -> None:
    """Parse, decode the ends of every step, measure, write."""
    options, about, _, method, sampling = parse_sampling(Parser(__doc__), PathOptions, "path", args)
    path = result_folder(options.model_path, f"path_length_{method.result_name(sampling)}.json", out=options.out)
    if options.dry_run:
        return print_dry_run(options, about, sampling, output=path)

    device = runtime.setup(options.device)
    distance = load_lpips(options.lpips_backbone, device, "vgg")
    trained = TrainedModel.of(load_autoencoder(options, about, device), options, sampling)
    data = build_data(options, trained.model.config.image_size, whole=True)
    if len(data) < 2 * options.pairs:
        raise UserError(f"pairs: expected at most {len(data) // 2}, half of the images, got {options.pairs}")
    settings = {
        "weights": fingerprint(options.model_path), **data.identity(), "pairs": options.pairs, **trained.identity(),
        "calls": trained.model.nfe(sampling), "lpips": "vgg, v0.1", "epsilons": list(options.epsilons),
    }  # fmt: skip
    check_report(path, [], settings, [options.model_path, *data.files()], "path lengths", options.overwrite, "settings")
    if options.check:
        return None

    order = np.random.default_rng(options.seed).permutation(len(data))[: 2 * options.pairs].reshape(-1, 2)
    epsilons = torch.tensor([0.0, *options.epsilons], dtype=torch.float64, device=device)
    at_once, lengths = max(1, options.batch_size // len(epsilons)), []
    with torch.no_grad(), progress_bar(options.pairs, "pair", "path length") as bar:
        for first in range(0, options.pairs, at_once):
            numbers = range(first, min(first + at_once, options.pairs))
            generators = image_generators(options.seed, numbers, FRACTION)
            start = torch.stack([torch.rand((), dtype=torch.float64, generator=each) for each in generators])
            fractions = start.to(device)[:, None] + epsilons  # [n, 1 + E]
            ends = [torch.stack([data[i][0] for i in order[list(numbers), side]]) for side in (0, 1)]
            codes = [trained.encode(x, order[list(numbers), side].tolist()) for side, x in enumerate(ends)]
            x_1, x_2 = (to_float(x.to(device)) for x in ends)
            drawn = [image_generators(options.seed, order[list(numbers), side].tolist()) for side in (0, 1)]
            z, x_T = trained.model.interpolation(x_1, x_2, *codes, fractions, generators=drawn, **trained.settings)
            noise = image_generators(options.seed, numbers)
            images = (trained.model.render(z, x_T, noise, **trained.settings) + 1) / 2
            near = [distance(images[:, 0], images[:, k]) for k in range(1, len(epsilons))]
            lengths.append(require_finite("path lengths", torch.stack(near, dim=1).double() / epsilons[1:] ** 2).cpu())
            bar.update(len(numbers))

    values = torch.cat(lengths)
    report: dict[str, Any] = {"settings": with_command(settings), "ppl": []}
    for epsilon, column in zip(options.epsilons, values.T, strict=True):
        low, high = column.quantile(0.01), column.quantile(0.99)
        inner = column[(column >= low) & (column <= high)].mean().item()
        entry = {"epsilon": epsilon, "mean": column.mean().item(), "mean of percentiles 1 to 99": json_safe(inner)}
        entry["standard error"] = (column.std() / len(column) ** 0.5).item() if len(column) > 1 else None
        report["ppl"].append(entry)
        print(f"epsilon {epsilon:g}  PPL {entry['mean']:.2f}  percentiles 1 to 99 {inner:.2f}  ({options.pairs} pairs)")
    write_json(path, report)
    print("wrote", path)
    return None


if __name__ == "__main__":
    run(main)
