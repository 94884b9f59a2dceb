"""Alignment and uniformity of features of a model's blocks, at one checkpoint or over those of a run.

Both are of L2-normalised pooled features of an image under two draws of noise: alignment is how far the draws lie
apart, uniformity how evenly a batch lies on the sphere (eval/contrastive.py), averaged over both draws. Images are read
in order, without augmentation; image i draws its noise from (seed, i), on however many processes.

examples:
  bash ddae/contrastive.sh DDPM_ddpm workdir/DDPM_ddpm_cifar10 --every 39200
  python -m scripts.contrastive --dataset toyfaces --model_path CKPT --time 0.1 --blocks middle_block
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from datasets.base import ImageDataset
from datasets.loader import ordered_batches
from dbae import runtime
from dbae.config import RuntimeConfig, UserError, check_numbers, option
from dbae.io import fingerprint, image_generators, require_finite, to_float, with_command, write_json
from dbae.methods import AutoEncoder, DiffusionModel
from dbae.progress import progress_bar
from eval.contrastive import alignment, uniformity
from scripts.cli import Parser, peek, run
from scripts.common import build_data, feature_time, load, parse, print_dry_run, result_folder
from scripts.contrastive_figure import draw
from scripts.encoding import noise_settings
from scripts.options import DataOptions
from scripts.results import check_report
from scripts.runs import Checkpoint, checkpoints, thinned
from scripts.tables import write_table
from scripts.trained import TrainedModel

DRAWS = 2  # of noise, each a stream of random numbers of its own


@dataclass(frozen=True)
class ContrastiveOptions(DataOptions, RuntimeConfig):
    """What to measure. Raises UserError for values out of range."""

    model_path: str = option(
        "", "weight file, several separated by commas, or a run's folder: all its averages", alias="model"
    )
    every: int = option(0, "of several checkpoints, those whose step is a multiple of N, and the last; 0: all")
    blocks: tuple[str, ...] = option((), "blocks of the network (default: all); it stops after the last one")
    time: float | None = option(None, "time (noise level) to which images are noised (default: the method's)")
    batch_size: int = option(512, "images per batch; uniformity depends on it")
    microbatch: int = option(64, "images that pass through the network together")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ["microbatch"], ["every"])
        for name in ("batch_size", "limit"):
            if (value := getattr(self, name)) is not None and value < 2:
                raise UserError(f"{name}: expected 2 or more, as uniformity is of pairs, got {value}")


def share(images: int, batch_size: int, rank: int, world: int) -> list[int]:
    """Positions of this process's images: whole batches, every ``world``-th one. The shorter one is the last."""
    firsts = range(rank * batch_size, images, world * batch_size)
    return [i for first in firsts for i in range(first, min(first + batch_size, images))]


@torch.no_grad()
def features_of_draws(
    trained: TrainedModel, images: Tensor, index: Sequence[int], time: float, blocks: Sequence[str], microbatch: int
) -> list[dict[str, Tensor]]:
    """Normalised features [n, C] float64 by block, under each draw of noise, of images numbered ``index``.

    A code that the network is conditioned on is the same for all draws.
    """
    pieces = []
    for first in range(0, len(images), microbatch):
        part, numbers = images[first : first + microbatch], index[first : first + microbatch]
        x, cond = to_float(part.to(trained.device)), None
        if isinstance(trained.model, AutoEncoder):
            cond = trained.model.condition(x, z=trained.encode_arrays(part, numbers)["z"])
        noises = (image_generators(trained.seed, numbers, 1 + draw) for draw in range(DRAWS))  # 0 is the code's
        pieces.append([trained.model.features(x, time, blocks, generator=each, cond=cond) for each in noises])
    joined = [
        {name: torch.cat([piece[name] for piece in draw]) for name in blocks} for draw in zip(*pieces, strict=True)
    ]
    return [{name: F.normalize(value.double(), dim=1) for name, value in draw.items()} for draw in joined]


def measure(
    trained: TrainedModel,
    data: ImageDataset,
    time: float,
    blocks: Sequence[str],
    options: ContrastiveOptions,
    bar: tqdm,
) -> dict[str, list[float]]:
    """Alignment and uniformity of each block: the mean over batches of the images, weighted by their sizes.

    A last batch of one image has no uniformity. Every process calls it, and measures its share of the batches.
    """
    mine = share(len(data), options.batch_size, runtime.rank(), runtime.world())
    sizes, rows = [], []
    for images, positions in ordered_batches(data.part(mine), options.batch_size, num_workers=options.num_workers):
        index = [mine[i] for i in positions.tolist()]
        draws = features_of_draws(trained, images, index, time, blocks, options.microbatch)
        near = torch.stack([alignment(draws[0][name], draws[1][name]) for name in blocks])
        even = torch.full_like(near, torch.nan)
        if len(index) > 1:
            even = torch.stack([torch.stack([uniformity(d[name]) for d in draws]).mean() for name in blocks])
        sizes.append((index[0], len(index)))
        rows.append(torch.stack([near, even]))
        bar.update(min(len(index) * runtime.world(), len(data) - bar.n))

    # In the order of the images, so that the number of processes changes no bit
    gathered = runtime.all_gather((sizes, [row.tolist() for row in torch.stack(rows).cpu()] if rows else []))
    found = sorted((size, row) for sizes, rows in gathered for size, row in zip(sizes, rows, strict=True))
    values = torch.tensor([row for _, row in found], dtype=torch.float64)  # [batches, 2, blocks]
    n = torch.tensor([size for (_, size), _ in found], dtype=torch.float64)[:, None]
    pairs = n.flatten() > 1
    near, even = ((n * x).sum(0) / n.sum() for n, x in ((n, values[:, 0]), (n[pairs], values[pairs, 1])))
    return {k: require_finite("features", x).tolist() for k, x in (("alignment", near), ("uniformity", even))}


def print_table(entry: dict[str, Any], settings: dict[str, Any]) -> None:
    """The values of a checkpoint, by block."""
    seen = "" if entry["images_seen"] is None else f" ({entry['images_seen']:,} training images seen)"
    about = f"time {settings['time']:g}, {settings['images']:,} images in batches of {settings['batch_size']}"
    print(f"\n{entry['checkpoint']}{seen}: {about}, {DRAWS} draws of noise, seed {settings['seed']}\n")
    columns = zip(settings["blocks"], entry["alignment"], entry["uniformity"], strict=True)
    write_table(("block", "alignment", "uniformity"), [(name, f"{a:.4f}", f"{u:.4f}") for name, a, u in columns])


def write(path: str, picture: str, settings: dict[str, Any], entries: Sequence[dict[str, Any]]) -> None:
    """The report, and its picture."""
    entries = sorted(entries, key=lambda entry: (entry["step"] is None, entry["step"] or 0))
    write_json(path, {"made_from": with_command(settings), "checkpoints": entries})
    draw(picture, settings, entries)


def check_same(model: DiffusionModel, first: DiffusionModel, path: str, time: float | None) -> None:
    """Raise UserError for a model that cannot be measured as the first one is."""
    of = [
        (each.method, each.config.image_size, None if time is not None else each.FEATURES[1]) for each in (model, first)
    ]
    if of[0] != of[1]:
        names = ("method", "image size", "time")
        name, found, expected = next(each for each in zip(names, *of, strict=True) if each[1] != each[2])
        raise UserError(f"model_path: expected models of one {name}, {expected}; {path} has {found}")


def main(args: list[str] | None = None) -> None:
    """Parse, load each checkpoint, measure what has not been measured, write."""
    words = list(sys.argv[1:] if args is None else args)
    path = peek(words, "model_path") or peek(words, "model")
    found = checkpoints(path) if path else []
    words += [f"--model_path={found[0].path}"] if found else []  # whose configuration is that of all
    options, about, _ = parse(Parser(__doc__), ContrastiveOptions, "alignment and uniformity", words)
    found = thinned(found, options.every)
    folder = result_folder(found[-1].path, out=options.out) if len(found) == 1 else options.out or found[-1].folder

    def load_one(checkpoint: Checkpoint) -> TrainedModel:
        one = dataclasses.replace(options, model_path=checkpoint.path)
        return TrainedModel.of(load(one, about, device), one)

    if options.dry_run:
        return print_dry_run(options, about, checkpoints=[each.path for each in found], output=folder)

    # Everything that can be wrong
    device = runtime.setup(options.device)
    trained = load_one(found[0])
    model, time = trained.model, feature_time(trained.model, options.time)
    blocks = list(dict.fromkeys(options.blocks or model.block_names()))
    model.check_blocks(blocks)
    data = build_data(options, model.config.image_size, whole=True)
    if len(data) < 2:
        raise UserError(f"{data.title}: expected two images or more, as uniformity is of pairs, got {len(data)}")
    settings = {
        "method": model.method, **data.identity(), "split": options.split, "time": time, "blocks": blocks,
        "batch_size": options.batch_size, "draws": DRAWS, "latent": options.latent, "precision": model.precision,
        **noise_settings(trained, time),
    }  # fmt: skip
    path = os.path.join(folder, f"contrastive_{time:g}.json")
    picture = path.removesuffix(".json") + ".png"

    def begin() -> tuple[list[str], list[dict[str, Any]]]:
        inputs = [*(each.path for each in found), *data.files()]
        report = check_report(path, [picture], settings, inputs, "measures", options.overwrite)
        return [fingerprint(each.path) for each in found], report.get("checkpoints", [])

    weights, kept = runtime.on_first(begin)
    if options.check:
        return None

    entries = {entry["weights"]: entry for entry in kept}
    for checkpoint, which in zip(found, weights, strict=True):
        if which not in entries:
            trained = load_one(checkpoint) if checkpoint is not found[0] else trained
            check_same(trained.model, model, checkpoint.path, options.time)
            trained.model.check_blocks(blocks)
            name = os.path.basename(checkpoint.path)
            with progress_bar(len(data), "image", name, enabled=runtime.rank() == 0) as bar:
                values = measure(trained, data, time, blocks, options, bar)
            about_it = {"checkpoint": checkpoint.path, "step": checkpoint.number, "images_seen": checkpoint.images}
            entries[which] = {"weights": which, **about_it, **values}
        if runtime.rank() == 0:
            print_table(entries[which], settings)
            write(path, picture, settings, list(entries.values()))
    runtime.print0(f"\nwrote {path} and {picture}")
    return runtime.cleanup()


if __name__ == "__main__":
    run(main)
