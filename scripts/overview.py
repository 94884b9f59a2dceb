"""One page of pictures of several models: reconstruct, interpolate, edit, generate, and probe the same data set.

example:
  python -m scripts.overview --out overview.png --dataset toyfaces --model_path \\
      ckpt/toyfaces/det/ema_0.9999_016000.pt ckpt/toyfaces/diffae/ema_0.9999_016000.pt \\
      ckpt/toyfaces/ddae/ema_0.9999_006000.pt

Models of all methods are shown by what they have: those with a code by everything that is done with it, edits where
the probe's best.pt lies beside the weights; the others by samples, and by the features of their blocks. Everything is
computed here, by few network calls, in a minute or three on a CPU.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets import build
from datasets.loader import ordered_batches
from dbae import LatentPrior, load_model
from dbae.config import UserError, option, require_positive
from dbae.io import check_outputs, to_float, to_uint8
from dbae.methods.autoencoder import AutoEncoder
from dbae.methods.codes import attribute_step
from eval.features import reduced
from eval.generation import gaussian
from eval.heads import Solver, score
from eval.probe import Part
from scripts.cli import options_of, run
from scripts.edit_inputs import find_classifier
from scripts.figures import Row, draw_rows, plain_text, save_figure
from scripts.trained import TrainedModel

COLUMNS = 9
RECONSTRUCT = "Reconstruct, by 10 network calls; 20, and 20 for $x_T$, where there is one beside the code"
GENERATE = "Generate: codes of one Gaussian, or noise where there is no code"
BATCH = 250
Named = Sequence[tuple[str, Any]]  # models and what they are called
Cell = tuple[str, float | None]  # a kind of features: a block and a time, or the code
Features = dict[Cell, Tensor]  # [n, d]
Scores = dict[Cell, tuple[float, float]]  # on validation and on test images
CODE, PIXELS = ("code", None), ("pixels", None)


@dataclass(frozen=True)
class OverviewOptions:
    """Which models, and on what."""

    model_path: tuple[str, ...] = option((), "weight files of models of one image size")
    dataset: str = option("toyfaces", "data set with binary attributes")
    data_root: str = option("data", "folder of the data sets")
    attributes: tuple[str, ...] = option(
        ("Eyeglasses", "Blond_Hair", "Gray_Hair", "Wearing_Hat", "Bangs", "Wearing_Lipstick", "Goatee"),
        "edits, one a column",
    )
    index: int = option(3, "first of the test images that are shown")
    train: int = option(1_000, "training images of the probes; half as many for validation, and for test")
    seed: int = option(0, "seed of all random numbers")
    out: str = option("overview.png", "where to write the page")
    overwrite: bool = option(False, "replace a file that is there already")

    def __post_init__(self) -> None:
        if not self.model_path:
            raise UserError("model_path: expected at least one weight file")
        require_positive("train", self.train)
        if not 0 <= self.index < self.train // 2:
            raise UserError(f"index: expected one of the {self.train // 2} test images, got {self.index}")


def has_code(model: Any) -> bool:
    """Whether it is an autoencoder."""
    return isinstance(model, AutoEncoder)


def seeded(seed: int) -> torch.Generator:
    """Random numbers that begin with the seed."""
    return torch.Generator().manual_seed(seed)


def few(model: Any) -> dict[str, Any]:
    """Settings of few network calls that suit the method: 10, and 20 where x_T is inferred by as many."""
    chosen = model.FEW_STEPS or model.sampling(sampler="dbim2", steps=10, grid="logsnr")
    settings = {name: getattr(chosen, name) for name in ("sampler", "steps", "grid", "xT")}
    return settings | {"steps": 20 if model.INVERTS else 10}


def reconstructions(models: Named, x: Tensor, seed: int) -> Iterator[Row]:
    """The images, and each model's from their codes; where x_T is inferred, also from the code alone."""
    yield Row("input", to_uint8(x))
    for name, model in models:
        label = f"{name}:\ncode and $x_T$" if model.INVERTS else name
        yield Row(label, to_uint8(model.reconstruct(x, generator=seeded(seed), **few(model))))
        if model.INVERTS:
            alone = model.generate_from(model.encode(x), generator=seeded(seed), **few(model))
            yield Row(f"{name}: code,\nrandom $x_T$", to_uint8(alone))


def interpolations(models: Named, x: Tensor, seed: int) -> Iterator[Row]:
    """From the first image to the last; the ends are reconstructions."""
    for name, model in models:
        way = model.interpolate(x[:1], x[-1:], frames=COLUMNS, generator=seeded(seed), **few(model))
        yield Row(name, to_uint8(way[0]))


def edits(models: Named, paths: Sequence[str], x: Tensor, attributes: Sequence[str]) -> Iterator[Row]:
    """The last image, its reconstruction, and one edit per attribute: to the median of real positives."""
    x, captions = x[-1:], ["input", "reconstruction", *(attribute.replace("_", " ") for attribute in attributes)]
    for (name, model), path in zip(models, paths, strict=True):
        classifier = find_classifier(TrainedModel(model, model.SAMPLING), path, None)
        if classifier is None:
            beside = os.path.join(os.path.dirname(path), "best.pt")
            print(f"note: no {beside} (infer_class_dbae.sh writes one), so no edits of {name}")
            continue
        z, shifts = model.encode(x, sample=False), []
        for row in map(classifier.index, attributes):
            step = attribute_step(classifier.weight[row])
            shifts.append(classifier.scale_to_median(z, row, step) * step)
        moved = torch.stack([torch.zeros_like(z[0]), *shifts])
        images = model.render(*model.shifted(x, z, moved, fix_xT=model.INVERTS, **few(model)), **few(model))[0]
        yield Row(name, to_uint8(torch.cat([x, images])), captions)
        captions = []  # above the first row alone


def samples(models: Named, x: Tensor, seed: int) -> Iterator[Row]:
    """Images of codes from one Gaussian of the codes of images x, or, without a code, from noise."""
    for name, model in models:
        noise = seeded(seed)
        if has_code(model):
            z = features(model, x, seed)[CODE]
            drawn = gaussian(z, torch.randn(COLUMNS, z.shape[1], generator=noise))
            images = model.generate_from(torch.from_numpy(drawn), generator=noise, **few(model))
        else:
            images = model.generate(COLUMNS, noise, **few(model))
        yield Row(name, to_uint8(images))


def features(model: Any, x: Tensor, seed: int) -> Features:
    """The code [n, d] of images, or the features of all blocks at the method's times."""
    noise, batches = seeded(seed), x.split(BATCH)
    if has_code(model):
        return {CODE: torch.cat([model.encode(batch, sample=False) for batch in batches])}
    found = {}
    for time in model.FEATURE_TIMES or (model.FEATURES[1],):
        parts = [model.features(batch, time, generator=noise) for batch in batches]
        found |= {(block, time): torch.cat([part[block] for part in parts]) for block in parts[0]}
    return found


def draw_grid(axis: Any, name: str, cells: Scores) -> None:
    """A map of numbers: blocks downwards, the noise to the right."""
    blocks, times = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    grid = np.array([[100 * cells[block, time][1] for time in times] for block in blocks])
    axis.imshow(grid, cmap="viridis", aspect="auto")
    for (y, x), value in np.ndenumerate(grid):
        colour = "black" if value > (grid.min() + grid.max()) / 2 else "white"
        axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(times)), [f"{time:.3g}" for time in times])
    axis.set_yticks(range(len(blocks)), map(plain_text, blocks))
    axis.set(xlabel="time, by noise", title=f"{name}: AP of its blocks, %")
    axis.tick_params(length=0)


def draw_bars(axis: Any, scores: dict[str, float]) -> None:
    """Average precisions beside each other."""
    bars = axis.barh([*scores], [100 * value for value in scores.values()], color="tab:blue", height=0.6)
    axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set(title="linear probes of attributes: AP, %")
    axis.spines[["top", "right"]].set_visible(False)


def page(path: str, panels: Mapping[str, list[Row]], scores: Mapping[str, Scores]) -> None:
    """Write the panels below each other, and the probes at the bottom, as PNG."""
    from matplotlib.figure import Figure

    heights = [1.05 * len(rows) + 0.35 for rows in panels.values()] + [2.9]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    *parts, bottom = figure.subfigures(len(heights), 1, height_ratios=heights)
    for part, (title, rows) in zip(parts, panels.items(), strict=True):
        draw_rows(part, rows)
        part.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    bottom.suptitle("Probe", x=0.01, ha="left", fontsize=12, fontweight="bold")
    grids = {name: cells for name, cells in scores.items() if len(cells) > 1}
    left, *others = bottom.subplots(1, 1 + len(grids), squeeze=False)[0]
    draw_bars(left, {name: max(cells.values())[1] for name, cells in scores.items()})  # the best on validation images
    for axis, (name, cells) in zip(others, grids.items(), strict=True):
        draw_grid(axis, name, cells)
    save_figure(path, figure)


def read(options: OverviewOptions, split: str, size: int, count: int) -> tuple[Tensor, Tensor]:
    """The first images of a split, in [-1, 1], and their attributes."""
    data = build(options.dataset, split, size, options.data_root, split_range=f"0:{count}")
    images = torch.cat([batch for batch, _ in ordered_batches(data, BATCH)])
    return to_float(images), data.targets("binary").values


def probe(encode: Callable[[Tensor], Features], splits: Mapping[str, tuple[Tensor, Tensor]]) -> Scores:
    """Average precision of the exact linear probe of every kind of features."""
    found = {split: encode(images) for split, (images, _) in splits.items()}
    solver, scores = Solver("binary"), {}
    for cell in found["test"]:
        parts = {split: Part(lambda _, z=found[split][cell]: z, y) for split, (_, y) in splits.items()}
        head = solver.fit(parts["train"], parts["valid"])
        scores[cell] = tuple(score("binary", head, parts[split], split) for split in ("valid", "test"))
    return scores


@torch.no_grad()
def main(args: list[str] | None = None) -> None:
    """Load, compute the panels, draw."""
    options = options_of(__doc__, "overview", OverviewOptions, args)
    check_outputs([options.out], options.model_path)
    if os.path.exists(options.out) and not options.overwrite:
        raise UserError(f"out: {options.out} is there already; give --overwrite true to replace it, or another name")
    models = [(type(model).__name__, model) for model in map(load_model, options.model_path)]
    for path, (name, model) in zip(options.model_path, models, strict=True):
        if isinstance(model, LatentPrior):
            raise UserError(f"model_path: expected models of images, {path} is a {name}")
    coded = [(name, model) for name, model in models if has_code(model)]
    paths = [path for path, (_, model) in zip(options.model_path, models, strict=True) if has_code(model)]
    size = models[0][1].config.image_size
    if len(dict(models)) < len(models) or any(model.config.image_size != size for _, model in models):
        found = ", ".join(f"{name} of {model.config.image_size} px" for name, model in models)
        raise UserError(f"model_path: expected models of different methods and one image size, got {found}")
    counts = {"train": options.train, "valid": options.train // 2, "test": options.train // 2}
    splits = {split: read(options, split, size, count) for split, count in counts.items()}

    x = splits["test"][0][options.index : options.index + COLUMNS]
    rows = {
        RECONSTRUCT: list(reconstructions(coded, x, options.seed)) if coded else [],
        "Interpolate between the first and the last": list(interpolations(coded, x, options.seed)),
        "Edit, to the median of real images with the attribute": list(edits(coded, paths, x, options.attributes)),
        GENERATE: list(samples(models, splits["train"][0], options.seed)),
    }
    scores = {"5x5 pixels": probe(lambda x: {PIXELS: reduced(x, 5)}, splits)}
    for name, model in models:
        scores[name] = probe(partial(features, model, seed=options.seed), splits)
    page(options.out, {title: panel for title, panel in rows.items() if panel}, scores)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run(main)
