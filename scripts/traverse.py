"""A figure of what single numbers of a code do: each moved on its own, in standard deviations, everything else kept.

example:
  python -m scripts.traverse --model_path CKPT --dataset toyfaces --index 24 --sampler dbim --steps 10 --grid logsnr

A row is a number of the code: those given, or those that move the image the most. Writes
sample_STEP/traverse_SPLIT_INDEX_SETTINGS.png.
"""

import json
import os
from dataclasses import dataclass

import torch

from datasets import CHOICES
from dbae import runtime
from dbae.config import RuntimeConfig, UserError, check_numbers, option
from dbae.io import fingerprint
from scripts.cli import Parser, run
from scripts.common import build_data, load_autoencoder, parse_sampling, print_dry_run, result_folder
from scripts.figures import Row, check_rows, strip
from scripts.options import DataOptions
from scripts.results import Results
from scripts.trained import TrainedModel

TURNED = ("index", "numbers", "rows", "reach", "columns", "spread", "fix_xT")  # options that the figure depends on


@dataclass(frozen=True)
class TraverseOptions(DataOptions, RuntimeConfig):
    """Which image, and which numbers of its code, how far. Raises UserError for values out of range."""

    split: str = option("test", "part of the data set; all: the whole", CHOICES)
    index: int = option(0, "image, by its number in the split")
    numbers: tuple[int, ...] = option(
        (), "which numbers of the code to move, from 0 (default: those that change the image most)"
    )
    rows: int = option(8, "how many numbers of the code to move, where --numbers is not given")
    reach: float = option(2.0, "standard deviations to both sides")
    columns: int = option(7, "images in a row")
    spread: int = option(1000, "images from whose codes the standard deviations are computed")
    fix_xT: bool = option(False, "keep x_T of the unedited image")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ["rows", "reach"], ["index"])
        for name in ("columns", "spread"):
            if getattr(self, name) < 2:
                raise UserError(f"{name}: expected 2 or more, got {getattr(self, name)}")


def main(args: list[str] | None = None) -> None:
    """Encode, move, draw."""
    options, about, _, method, sampling = parse_sampling(Parser(__doc__), TraverseOptions, "traversal", args)
    name = f"traverse_{options.split}_{options.index}_{method.result_name(sampling)}.png"
    path = result_folder(options.model_path, name, out=options.out)
    if options.dry_run:
        return print_dry_run(options, about, sampling, output=path)
    trained = TrainedModel.of(load_autoencoder(options, about, runtime.setup(options.device)), options, sampling)
    latent, data = trained.model.config.latent_dim, build_data(options, trained.model.config.image_size)
    if options.index >= len(data):
        raise UserError(f"index: expected a number under {len(data)}, got {options.index}")
    if wrong := [number for number in options.numbers if not 0 <= number < latent]:
        raise UserError(f"numbers: expected some from 0 to {latent - 1}, got {wrong[0]}")
    check_rows(len(options.numbers) or min(options.rows, latent), options.columns)
    settings = {"weights": fingerprint(options.model_path), **data.identity(), **trained.identity()}
    settings |= {name: getattr(options, name) for name in TURNED}
    results = Results(os.path.dirname(path), json.loads(json.dumps(settings)), [options.model_path], options.overwrite)
    results.check([path])
    if options.check:
        return None

    others = torch.stack([data[i][0] for i in range(min(options.spread, len(data)))])
    std = trained.encode(others).std(dim=0)
    image = data[options.index][0][None]
    z = trained.encode(image, [options.index])
    steps = torch.linspace(-options.reach, options.reach, options.columns, device=z.device)
    chosen = list(options.numbers)
    if not chosen:
        ends = std.diag()[:, None] * steps[[0, -1], None]  # [latent, 2, latent]
        made = trained.shift(image, z, ends.flatten(0, 1)[None], options.fix_xT)[1][0].float().unflatten(0, (-1, 2))
        change = (made[:, 1] - made[:, 0]).square().mean(dim=(1, 2, 3))
        chosen = change.argsort(descending=True)[: options.rows].tolist()
    shifts = std.diag()[chosen][:, None] * steps[:, None]
    made = trained.shift(image, z, shifts.flatten(0, 1)[None], options.fix_xT)[1][0].unflatten(0, (len(chosen), -1))
    captions = [f"{round(step, 2):+g} std" for step in steps.tolist()]
    rows = [Row(f"$z_{{{k}}}$", images) for k, images in zip(chosen, made, strict=True)]
    rows[0] = rows[0]._replace(captions=captions)
    os.makedirs(results.folder, exist_ok=True)
    strip(path, rows, f"single numbers of a code of {latent}")
    results.record([path])
    print("wrote", path)
    return None


if __name__ == "__main__":
    run(main)
