"""Editing a few images through their codes: the actions, and the program around one of them.

Shared by ``scripts.edit``, which does any action, and by ``scripts.interpolate`` and ``scripts.manipulate``, which do
one of them under the official code's arguments and folder names.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dbae import runtime
from dbae.config import UserError
from dbae.io import atomic_write, fingerprint
from eval.classifier import AttributeClassifier
from scripts.cli import Parser, given
from scripts.common import load_autoencoder, parse_sampling, print_dry_run, result_folder
from scripts.edit_inputs import (
    ImageOptions,
    Images,
    InterpolateOptions,
    ManipulateOptions,
    OfficialManipulateOptions,
    find_classifier,
    read_images,
)
from scripts.edit_plan import TITLES, moves_more, plan
from scripts.figures import Row, animation, check_rows, evenly, plain_text, strip
from scripts.results import Results
from scripts.trained import TrainedModel

SHOWN = 16  # images in a strip of reconstructions


class Job(NamedTuple):
    """What an action works on."""

    trained: TrainedModel
    images: Images
    options: ImageOptions
    how: Any  # the action's own options
    results: Results
    classifier: AttributeClassifier | None = None

    def path(self, names: Sequence[str], *details: str) -> str:
        """Path of a picture without its ending: which images it shows, of how many, then how."""
        shown = "-".join(names)
        if len(names) > 4 or len(shown) > 120:
            shown = f"{names[0]}-to-{names[-1]}-of-{len(self.images.names)}"
        name = "_".join(part for part in (shown, *details) if part).replace("/", "_")
        return os.path.join(self.results.folder, name)

    def image_paths(self, suffix: str = "") -> list[str]:
        """Paths of one PNG per image."""
        names = (f"{name}{suffix}.png".replace("/", "_") for name in self.images.names)
        return [os.path.join(self.results.folder, name) for name in names]

    def write_images(self, paths: Sequence[str], made: Tensor) -> None:
        """One PNG per image, at the model's size; with ``--paste`` the whole photo with it instead."""
        for i, (path, image) in enumerate(zip(paths, made, strict=True)):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            if self.options.paste:
                picture = self.images.photo(i).paste(picture)
            with atomic_write(path) as file:
                picture.save(file, format="PNG")


def encode(job: Job) -> list[str]:
    """Codes of all images to one file."""
    path = os.path.join(job.results.folder, "codes.npz")
    job.results.check([path])
    z = job.trained.encode(job.images.pixels, job.images.index).cpu().numpy()
    with atomic_write(path) as file:
        np.savez(file, z=z, name=np.array(job.images.names))
    return [path]


def reconstruct(job: Job) -> list[str]:
    """Every image from its code, and a strip of the first."""
    names = job.images.names[:SHOWN]
    path, paths = f"{job.path(names, 'reconstruction')}.png", job.image_paths()
    job.results.check([*paths, path])
    states, made = job.trained.reconstruct(job.images.pixels, job.images.index)
    rows = [
        Row("input", job.images.pixels[:SHOWN], names),
        Row("$x_T$", states[:SHOWN]),
        Row("reconstruction", made[:SHOWN]),
    ]
    model = job.trained.model
    strip(path, rows, f"{model.config.latent_dim} numbers per image" + " and its $x_T$" * model.INVERTS)
    job.write_images(paths, made)
    return [*paths, path]


def interpolate(job: Job) -> list[str]:
    """Strip and animation from each image to the next. Raises UserError for one image."""
    names, pixels, how = job.images.names, job.images.pixels, job.how
    if len(pixels) < 2:
        raise UserError(f"images: expected at least two to go between, got {len(pixels)}")
    check_rows(2 * (len(pixels) - 1))
    path = job.path(names, how.path, str(how.frames))
    paths = [f"{path}.png", f"{path}.gif"]
    job.results.check(paths)
    states, made = job.trained.interpolate(pixels, how.frames, how.path, job.images.index)
    shown = evenly(how.frames)  # the animation has all
    fractions = [f"{i / (how.frames - 1):.2g}" for i in shown]
    rows = []
    for i in range(len(pixels) - 1):
        captions = [names[i], *fractions, names[i + 1]]
        rows.append(Row("image $x_0$", [pixels[i], *made[i, shown], pixels[i + 1]], captions))
        rows.append(Row("$x_T$", [None, *states[i, shown]]))
    strip(paths[0], rows, f"{how.path} interpolation between codes")
    animation(paths[1], made.flatten(0, 1)[None, None])
    return paths


def manipulate(job: Job) -> list[str]:
    """Strip and animation along attributes of every image; with ``--paste`` each edited photo, too."""
    names, pixels, how, trained = job.images.names, job.images.pixels, job.how, job.trained
    z = trained.encode(pixels, job.images.index)
    edits = plan(z, job.classifier, how)
    check_rows(len(pixels) * len(edits) * (1 if how.fix_xT else 2))
    attributes = "-".join(edit.name.replace(" ", "") for edit in edits)
    details = {"median": how.strength == "median", "normalised": how.normalised, "moved_xT": not how.fix_xT}
    path = job.path(names, attributes, *(detail for detail, true in details.items() if true))
    columns = [(edit.name, column) for edit in edits for column in edit.columns] if job.options.paste else []
    pasted = [job.image_paths(f"_{attribute}_{column}".replace(" ", "_")) for attribute, column in columns]
    paths = [f"{path}.png", f"{path}.gif", *chain(*pasted)]
    job.results.check(paths)

    # All edits of all images are sampled together: [n, edits, columns, 3, H, W]
    shifts = torch.cat([edit.shifts for edit in edits], dim=-2)
    states, made = (part.unflatten(1, (len(edits), -1)) for part in trained.shift(pixels, z, shifts, how.fix_xT))
    rows = []
    for i, name in enumerate(names):
        for k, edit in enumerate(edits):
            rows.append(Row(plain_text(edit.name), [pixels[i], *made[i, k]], [name, *edit.columns]))
            if not how.fix_xT:
                rows.append(Row("$x_T$", [None, *states[i, k]]))
    strip(paths[0], rows, TITLES[how.strength])
    animation(paths[1], made.transpose(0, 1))
    if more := moves_more(how, trained.model.INVERTS):
        print("note: the official setting; more moves with", more)
    for each, column in zip(pasted, made.flatten(1, 2).unbind(1) if pasted else (), strict=True):
        job.write_images(each, column)
    return paths


class Action(NamedTuple):
    """What the program can do, its options, and those and the images of the official command."""

    run: Callable[[Job], list[str]]
    options: type | None = None
    official: type | None = None
    images: tuple[str, ...] = ()
    folder: str = ""  # {folder}_{sampling} beside the checkpoint


# The images are toy faces 11013, 11025, 11027 and 11024, of the test split, at 256 pixels
ACTIONS = {
    "encode": Action(encode),
    "reconstruct": Action(reconstruct),
    "interpolate": Action(
        interpolate, InterpolateOptions, InterpolateOptions, ("assets/img1.png", "assets/img2.png"), "interpolation"
    ),
    "manipulate": Action(
        manipulate, ManipulateOptions, OfficialManipulateOptions, ("assets/img3.png", "assets/img4.png"), "manipulation"
    ),
}


def open_job(trained: TrainedModel, options: ImageOptions, how: Any, action: str, folder: str, images: Images) -> Job:
    """The job, with everything that its results depend on. Raises UserError where it lacks a classifier."""
    classifier = None
    if action == "manipulate":
        classifier = find_classifier(trained, options.model_path, how.classifier, options.out)
        if classifier:
            print(f"along the classifier {classifier.path}")
        if classifier is None:
            raise UserError("classifier: no best.pt beside the checkpoint and no probe of it; run infer_class_dbae.sh")
        how = dataclasses.replace(how, fix_xT=trained.keeps_xT(how.fix_xT))
    settings = {
        "action": action,
        "weights": fingerprint(options.model_path),
        "images": images.digest,
        "paste": options.paste,
        **trained.identity(),
        **(dataclasses.asdict(how) if how else {}),
        "classifier": classifier and fingerprint(classifier.path),
    }
    inputs = [options.model_path, *images.files, *filter(None, (options.landmarks, classifier and classifier.path))]
    return Job(trained, images, options, how, Results(folder, settings, inputs, options.overwrite), classifier)


def main(doc: str, official: str | None, args: list[str] | None = None) -> None:
    """Parse the options, read the images, do the action, and say what was written.

    The action is ``official``, the one of an official command, or else the first argument.
    """
    parser = Parser(doc)
    if not official:
        parser.add_argument("action", choices=list(ACTIONS), help="what to do")
    for name, action in ACTIONS.items():
        if official in (None, name) and (cls := action.official if official else action.options):
            parser.add_config(name, cls)
    options, about, typed, method, sampling = parse_sampling(parser, ImageOptions, "images", args)
    action = ACTIONS[official or typed.action]
    cls = action.official if official else action.options
    how = cls(**given(typed, cls)) if cls else None
    folder = "edited"
    if official:
        folder = result_folder(options.model_path, f"{action.folder}_{method.result_name(sampling)}")
        if not options.images and not options.indices:
            options = dataclasses.replace(options, images=action.images)
    folder = options.out or folder
    if options.dry_run:
        return print_dry_run(options, about, sampling, action=dataclasses.asdict(how) if how else {}, output=folder)

    device = runtime.setup(options.device)
    trained = TrainedModel.of(load_autoencoder(options, about, device), options, sampling)
    images = read_images(options, trained.model.config.image_size)
    job = open_job(trained, options, how, official or typed.action, folder, images)
    if not options.check:
        paths = action.run(job)
        job.results.record(paths)
        for path in paths:
            print("wrote", path)
    return None
