"""Generate images: from a latent prior, from one Gaussian of the codes, from codes of real images, or from noise alone.

examples:
  bash sample_dbae.sh toyfaces ckpt/toyfaces/det/ema_0.9999_016000.pt 64 dbim 10
  bash diffae/sample.sh toyfaces CKPT 50000 100 --codes gaussian
  bash diffae/sample.sh celeba CKPT 5000 100 --class Male --labelled 100 --unlabelled 10000

Images go to sample_STEP/generated_CODES_SETTINGS/ as 000000.png, 000001.png, ..., with grid.png of the first and
settings.json. Image i draws its code and its noise from (seed, i), whatever the batch size and the number of processes;
running the command again makes those that are missing, also with a larger number.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from datasets import ImageDataset, labelled_splits
from dbae import runtime
from dbae.background import Background
from dbae.config import UserError, check_numbers, option
from dbae.io import (
    atomic_write,
    command_line,
    fingerprint,
    image_generators,
    listdir,
    save_grid,
    to_uint8,
    write_json,
)
from dbae.methods import AutoEncoder
from dbae.progress import progress_bar
from eval.arrays import read_arrays
from eval.features import CachedFeatures
from eval.generation import fit_gaussian
from scripts.cli import Parser, given, run
from scripts.common import build_data, compile_for, load, parse_sampling, print_dry_run, result_folder
from scripts.conditional import Candidates, accepted, few_shot, of_class
from scripts.encoding import drawn_code, write_features
from scripts.from_prior import FromPriorOptions, load_prior, noise, without_images
from scripts.results import check_report
from scripts.trained import TrainedModel

SHOWN = 64  # images in the grid
CODES = ("prior", "gaussian", "encoded")
OF_CODES = ("codes", "prior", "latent_steps", "class_name", "labels", "labelled", "unlabelled")


class Source(NamedTuple):
    """Where codes come from: what stands for it among the settings, and what makes them, encoding images if need be."""

    about: dict[str, Any]
    build: Callable[[], Candidates]


@dataclass(frozen=True)
class SampleOptions(FromPriorOptions):
    """How many images, and from which codes."""

    num: int = option(64, "images to make")
    codes: str = option(
        "prior", "prior: the latent prior; gaussian: one Gaussian; encoded: codes of real images", CODES
    )
    class_name: str = option("", "only images with this label; '!LABEL': only images without it", alias="class")
    labels: str | None = option(None, "CSV of a folder of images (default: its labels.csv)")
    labelled: int = option(100, "images whose labels the classifier of --class sees")
    unlabelled: int = option(
        0, "learn from positives alone: so many unlabelled images count as negatives (official: 10000)"
    )
    overwrite: bool = option(False, "replace images that were made with other settings")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ["num", "labelled"], ["unlabelled"])
        if self.class_name and self.codes == "encoded":
            raise UserError("class: expected with --codes prior or gaussian, got encoded")
        if self.prior and self.codes != "prior":
            raise UserError(f"prior: expected with --codes prior, got it with {self.codes}")
        if (self.labels or self.unlabelled) and not self.class_name:
            raise UserError("labels, unlabelled: expected with --class")


def real_codes(options: SampleOptions, trained: TrainedModel, whose: dict[str, Any], data: ImageDataset) -> Tensor:
    """Codes [n, latent] of images, of which ``whose`` tells weights and identity."""
    path = write_features(trained, options, whose, data, options.split)
    return CachedFeatures(read_arrays(path)[0], code=drawn_code(trained), seed=options.seed).draw(0)


def candidates_of(options: SampleOptions, trained: TrainedModel, weights: str) -> Source:
    """Codes by the numbers of images and of a try."""
    length, device = trained.model.config.latent_dim, trained.device
    if options.codes == "prior":
        path, prior = load_prior(options, weights, trained)

        def from_prior(index: list[int], attempt: int) -> Tensor:
            return prior.decode(noise(options, index, length, attempt).to(device), steps=options.latent_steps)

        prior_of = f"{os.path.basename(path)} {fingerprint(path)}"
        return Source({"prior": prior_of, "latent_steps": options.latent_steps}, lambda: from_prior)

    data = build_data(options, trained.model.config.image_size, whole=True)
    whose = {"weights": weights, **data.identity()}

    def encode() -> Candidates:
        z = real_codes(options, trained, whose, data)
        if options.codes == "encoded":
            order = torch.randperm(len(z), generator=Generator().manual_seed(options.seed))
            return lambda index, attempt: z[order[torch.tensor(index) % len(z)]].to(device)
        draws = fit_gaussian(z)
        return lambda index, attempt: torch.from_numpy(draws(noise(options, index, length, attempt))).to(device)

    return Source(whose, encode)


def only_class(options: SampleOptions, trained: TrainedModel, weights: str, codes: Source) -> Source:
    """The same, of those codes alone that a classifier of few labels takes for the class."""
    size, where = trained.model.config.image_size, (options.data_root, options.data_dir, options.labels)
    part = labelled_splits(options.dataset, "binary", size, *where)["train"]
    has = of_class(part.targets, options.class_name)
    few = {"labelled": options.labelled, "unlabelled": options.unlabelled}
    whose = {"weights": weights, **part.dataset.identity()}

    def build() -> Candidates:
        z = real_codes(options, trained, whose, part.dataset)
        return accepted(codes.build(), few_shot(z, has, **few, seed=options.seed), options.seed)

    about = {"class": options.class_name, **few, "labels": part.dataset.labels_digest("binary"), "labelled part": whose}
    return Source(codes.about | about, build)


@torch.no_grad()
def make(trained: TrainedModel, codes: Candidates | None, index: list[int]) -> Tensor:
    """Images by number, uint8 [n, 3, H, W] on the CPU."""
    generators = image_generators(trained.seed, index)
    if codes:
        return to_uint8(trained.model.generate_from(codes(index, 0), None, generators, **trained.settings)).cpu()
    return to_uint8(trained.model.generate(len(index), generators, **trained.settings)).cpu()


def write_images(folder: str, index: list[int], images: Tensor) -> None:
    """Write images by number, uint8 [n, 3, H, W]."""
    for i, image in zip(index, images, strict=True):
        with atomic_write(os.path.join(folder, f"{i:06d}.png")) as file:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="PNG")


def others_in(folder: str, settings: dict[str, Any], overwrite: bool) -> list[str]:
    """Images in the folder that were made with other settings. Raises UserError for some, unless ``overwrite``."""
    path = os.path.join(folder, "settings.json")
    images = [name for name in listdir(folder) if name.removesuffix(".png").isdecimal()]
    same = images and check_report(path, [os.path.join(folder, images[0])], settings, [], "images", overwrite, None)
    return [] if same else images


def missing_in(folder: str, num: int) -> list[int]:
    """Numbers of the images that are not there yet."""
    names = set(listdir(folder))
    return [i for i in range(num) if f"{i:06d}.png" not in names]


def open_folder(folder: str, settings: dict[str, Any], others: list[str]) -> None:
    """Remove the ``others`` and write the settings."""
    for name in others:
        os.remove(os.path.join(folder, name))
    write_json(os.path.join(folder, "settings.json"), settings)


def main(args: list[str] | None = None) -> None:
    """Parse, load, and make what is not there yet."""
    options, about, typed, method, sampling = parse_sampling(Parser(__doc__), SampleOptions, "generation", args)
    sampling, coded = without_images(method, sampling, typed), issubclass(method, AutoEncoder)
    if not coded and (unread := given(typed, SampleOptions, OF_CODES)):
        raise UserError(f"{', '.join(unread)}: expected with an autoencoder, {method.method} has no code")
    source = options.codes if coded else "noise"
    of = f"-{options.class_name}".replace("/", "_") if options.class_name else ""
    folder = result_folder(
        options.model_path, f"generated_{source}{of}_{method.result_name(sampling)}", out=options.out
    )
    if options.dry_run:
        return print_dry_run(options, about, sampling, output=folder)

    # Everything that can be wrong
    device = runtime.setup(options.device)
    trained = TrainedModel.of(load(options, about, device), options, sampling)
    weights, codes = fingerprint(options.model_path), None
    if coded:
        codes = candidates_of(options, trained, weights)
        codes = only_class(options, trained, weights, codes) if options.class_name else codes
    made_from = codes.about if codes else {}
    settings = {"weights": weights, "codes": source, **made_from, **sampling.as_dict(), **trained.identity()}
    settings["command"] = command_line()
    others = runtime.on_first(lambda: others_in(folder, settings, options.overwrite))
    if options.check:
        return None
    candidates = codes.build() if codes else None
    runtime.on_first(lambda: open_folder(folder, settings, others))

    # Each process its share of what is missing, image i under its number
    missing = runtime.on_first(lambda: missing_in(folder, options.num))  # one list for all of them
    missing, made = missing[runtime.rank() :: runtime.world()], len(missing)
    compile_for(trained.model, options, len(missing) * runtime.world() * method.nfe(sampling))
    shown = progress_bar(len(missing), "image", "sample", enabled=runtime.rank() == 0)
    with shown as bar, Background(waiting=4) as writer:
        for first in range(0, len(missing), options.batch_size):
            index = missing[first : first + options.batch_size]
            writer.submit(partial(write_images, folder, index, make(trained, candidates, index)))
            bar.update(len(index))
    runtime.barrier()
    if runtime.rank() == 0:
        first = [Image.open(os.path.join(folder, f"{i:06d}.png")) for i in range(min(SHOWN, options.num))]
        rows = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in first]).split(8)
        save_grid(os.path.join(folder, "grid.png"), [("", row) for row in rows])
        print(f"wrote {made} images: {folder}" if made else f"nothing computed, all are there: {folder}")
    return runtime.cleanup()


if __name__ == "__main__":
    run(main)
