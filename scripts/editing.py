"""Editing a few images through their codes: the actions, and the program around one of them.

Shared by ``scripts.edit``, which does any action, and by ``scripts.interpolate`` and ``scripts.manipulate``, which do
one of them under the official code's arguments and folder names.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dbae import runtime
from dbae.config import SampleConfig, UserError
from dbae.io import atomic_write
from dbae.methods import METHODS
from dbae.methods.codes import attribute_step
from eval.classifier import AttributeClassifier
from scripts.cli import Parser, given
from scripts.common import TrainedModel, load_autoencoder, parse, print_dry_run, result_folder
from scripts.edit_inputs import (
    ImageOptions,
    Images,
    InterpolateOptions,
    ManipulateOptions,
    find_classifier,
    read_images,
)
from scripts.figures import Row, animation, check_rows, plain_text, strip

OFFICIAL_SCALES = {"Male": (-0.3, -0.15, 0.0, 0.15, 0.3), "Young": (-0.2, -0.1, 0.0, 0.1, 0.2)}
TO_MEDIAN = ("reconstruction", "one third", "two thirds", "median")  # columns on the way to the median
SHOWN = 16  # images in a strip of reconstructions


class Edit(NamedTuple):
    """One attribute of some codes: its name, what the columns of its figure are called, and what they add to z."""

    name: str
    columns: tuple[str, ...]
    shifts: Tensor  # [columns, latent], or [n, columns, latent] where each code has its own


def plan(z: Tensor, classifier: AttributeClassifier, options: ManipulateOptions) -> list[Edit]:
    """The edits of codes z [n, latent] that the options ask for, one per attribute."""
    std = classifier.known("std") if options.normalised else None
    edits = []
    for row in map(classifier.index, options.attributes.split(",")):
        name = classifier.names[row]
        step = attribute_step(classifier.weight[row], std)
        if options.strength == "median":
            columns = TO_MEDIAN
            fractions = torch.linspace(0, 1, len(columns), device=z.device)
            scales = classifier.scale_to_median(z, row, step)[:, None] * fractions
        else:
            values = options.scales or OFFICIAL_SCALES.get(name, OFFICIAL_SCALES["Male"])
            columns = tuple(f"{scale:+g}" if scale else "0" for scale in values)
            scales = torch.tensor(values, device=z.device)
        edits.append(Edit(name.replace("_", " "), columns, scales[..., None] * step))
    return edits


class Job(NamedTuple):
    """What an action works on."""

    trained: TrainedModel
    images: Images
    options: ImageOptions
    how: Any  # the action's own options
    folder: str  # of the results

    def path(self, names: Sequence[str], *details: str) -> str:
        """Path of a picture without its ending: what it shows, then how."""
        shown = "-".join(names) if len(names) <= 4 else f"{names[0]}-to-{names[-1]}-of-{len(names)}"
        return os.path.join(self.folder, "_".join(part for part in (shown, *details) if part).replace("/", "_"))

    def write_images(self, made: Tensor, suffix: str = "") -> list[str]:
        """One PNG per image, at the model's size; with ``--paste`` the whole photo with it instead."""
        paths, suffix = [], suffix.replace("/", "_")
        for i, (name, image) in enumerate(zip(self.images.names, made, strict=True)):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            if self.options.paste:
                picture = self.images.photo(i).paste(picture)
            paths.append(os.path.join(self.folder, f"{name}{suffix}.png"))
            with atomic_write(paths[-1]) as file:
                picture.save(file, format="PNG")
        return paths


def encode(job: Job) -> list[str]:
    """Codes of all images to one file."""
    path = os.path.join(job.folder, "codes.npz")
    z = job.trained.encode(job.images.pixels).cpu().numpy()
    with atomic_write(path) as file:
        np.savez(file, z=z, name=np.array(job.images.names))
    return [path]


def reconstruct(job: Job) -> list[str]:
    """Every image from its code, and a strip of the first."""
    states, made = job.trained.reconstruct(job.images.pixels)
    names = job.images.names[:SHOWN]
    rows = [
        Row("input", job.images.pixels[:SHOWN], [plain_text(name) for name in names]),
        Row("$x_T$", states[:SHOWN]),
        Row("reconstruction", made[:SHOWN]),
    ]
    path = f"{job.path(names, 'reconstruction')}.png"
    strip(path, rows, f"{job.trained.model.config.latent_dim} numbers per image")
    return [*job.write_images(made), path]


def interpolate(job: Job) -> list[str]:
    """Strip and animation from each image to the next. Raises UserError for one image."""
    names, pixels, how = job.images.names, job.images.pixels, job.how
    if len(pixels) < 2:
        raise UserError(f"images: expected at least two to go between, got {len(pixels)}")
    check_rows(2 * (len(pixels) - 1))
    states, made = job.trained.interpolate(pixels, how.frames, how.path)
    fractions = [f"{i / (how.frames - 1):.2g}" for i in range(how.frames)]
    rows = []
    for i in range(len(pixels) - 1):
        captions = [plain_text(names[i]), *fractions, plain_text(names[i + 1])]
        rows.append(Row("image $x_0$", [pixels[i], *made[i], pixels[i + 1]], captions))
        rows.append(Row("$x_T$", [None, *states[i]]))
    path = job.path(names, how.path, str(how.frames))
    strip(f"{path}.png", rows, f"{how.path} interpolation between codes")
    animation(f"{path}.gif", made.flatten(0, 1)[None, None])
    return [f"{path}.png", f"{path}.gif"]


def manipulate(job: Job) -> list[str]:
    """Strip and animation along attributes of every image; with ``--paste`` each edited photo, too."""
    names, pixels, how, trained = job.images.names, job.images.pixels, job.how, job.trained
    classifier = find_classifier(trained, job.options.model_path, how.classifier)
    if classifier is None:
        raise UserError("classifier: no best.pt beside the checkpoint and no probe of it; run infer_class_dbae.sh")
    z = trained.encode(pixels)
    edits = plan(z, classifier, how)
    check_rows(len(pixels) * len(edits) * (1 if how.fix_xT else 2))

    # All edits of all images are sampled together: [n, edits, columns, 3, H, W]
    shifts = torch.cat([edit.shifts for edit in edits], dim=-2)
    states, made = (part.unflatten(1, (len(edits), -1)) for part in trained.shift(pixels, z, shifts, how.fix_xT))
    rows = []
    for i, name in enumerate(names):
        for k, edit in enumerate(edits):
            rows.append(Row(plain_text(edit.name), [pixels[i], *made[i, k]], [plain_text(name), *edit.columns]))
            if not how.fix_xT:
                rows.append(Row("$x_T$", [None, *states[i, k]]))
    attributes = "-".join(edit.name.replace(" ", "") for edit in edits)
    details = {"median": how.strength == "median", "normalised": how.normalised, "moved_xT": not how.fix_xT}
    path = job.path(names, attributes, *(detail for detail, true in details.items() if true))
    strip(f"{path}.png", rows, "codes moved along a linear classifier")
    animation(f"{path}.gif", made.transpose(0, 1))
    paths = [f"{path}.png", f"{path}.gif"]
    if job.options.paste:
        for k, edit in enumerate(edits):
            for column, name in enumerate(edit.columns):
                paths += job.write_images(made[:, k, column], f"_{edit.name}_{name}".replace(" ", "_"))
    return paths


class Action(NamedTuple):
    """What the program can do, its options, and the images of the official command."""

    run: Callable[[Job], list[str]]
    options: type | None = None
    images: tuple[str, ...] = ()
    folder: str = ""  # {folder}_{sampling} beside the checkpoint


# The images are toy faces 11013, 11025, 11027 and 11024, of the test split, at 256 pixels
ACTIONS = {
    "encode": Action(encode),
    "reconstruct": Action(reconstruct),
    "interpolate": Action(interpolate, InterpolateOptions, ("assets/img1.png", "assets/img2.png"), "interpolation"),
    "manipulate": Action(manipulate, ManipulateOptions, ("assets/img3.png", "assets/img4.png"), "manipulation"),
}


def main(doc: str, official: str | None, args: list[str] | None = None) -> None:
    """Parse the options, read the images, do the action, and say what was written.

    The action is ``official``, the one of an official command, or else the first argument.
    """
    parser = Parser(doc)
    if not official:
        parser.add_argument("action", choices=list(ACTIONS), help="what to do")
    parser.add_config("sampling", SampleConfig)
    for name, action in ACTIONS.items():
        if action.options and official in (None, name):
            parser.add_config(name, action.options)
    options, about, typed = parse(parser, ImageOptions, "images", args)
    method = METHODS[options.method]
    sampling = dataclasses.replace(method.SAMPLING, **given(typed, SampleConfig))
    action = ACTIONS[official or typed.action]
    how = action.options(**given(typed, action.options)) if action.options else None
    folder = "edited"
    if official:
        folder = result_folder(options.model_path, f"{action.folder}_{method.result_name(sampling)}")
        if not options.images and not options.indices:
            options = dataclasses.replace(options, images=action.images)
    folder = options.out or folder
    if options.dry_run:
        shown = {"sampling": sampling.as_dict(), "action": dataclasses.asdict(how) if how else {}, "output": folder}
        return print_dry_run(options, about, **shown)

    device = runtime.setup(options.device)
    trained = TrainedModel.of(load_autoencoder(options, about, device), options, sampling)
    images = read_images(options, trained.model.config.image_size)
    if not options.check:
        for path in action.run(Job(trained, images, options, how, folder)):
            print("wrote", path)
    return None
