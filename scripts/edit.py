"""Encode, reconstruct, interpolate and manipulate your own images.

actions:
  encode        codes of all images to OUT/codes.npz (z, name)
  reconstruct   OUT/NAME.png for every image, and a strip of inputs, endpoints and reconstructions
  interpolate   strip and animation from image to image
  manipulate    strip and animation along attributes of a linear probe
  calibrate     errors of training images (--dataset), by which the others tell an image far from them

Images of any size, mode and orientation are cut to their central square, or aligned by five --landmarks as FFHQ is;
--paste puts results back into the photos.

example:
  python -m scripts.edit reconstruct --model ckpt/toyfaces/det/ema_0.9999_016000.pt --images photo.jpg
  python -m scripts.edit manipulate --model ... --images photos/ --attributes Smiling --scales -0.3,0,0.3 --paste
"""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dbae.config import SampleConfig, UserError
from scripts.cli import Parser, given, run
from scripts.edit_options import AttributeOptions, EditOptions, WayOptions, stem
from scripts.inputs import build_data, load, parse, print_dry_run

if TYPE_CHECKING:
    import torch

    from scripts.editing import Editor, PhotoFiles

SHOWN = 16  # images in a strip of reconstructions


def main() -> None:
    """Parse, read, and do what was asked."""
    parser = Parser(__doc__.split("\n")[0], __doc__.split("\n", 1)[1])
    parser.add_argument("action", choices=list(ACTIONS), help="what to do")
    parser.add_config("sampling", SampleConfig)
    parser.add_config("interpolate", WayOptions)
    parser.add_config("manipulate", AttributeOptions)
    options, about, typed = parse(parser, EditOptions, "images", None)
    settings = {cls: cls(**given(typed, cls)) for cls in (SampleConfig, WayOptions, AttributeOptions)}
    if options.dry_run:
        return print_dry_run(options, about, **{cls.__name__: vars(each) for cls, each in settings.items()})

    from dbae import distributed
    from scripts.editing import Editor

    device = distributed.setup(options.device)
    model = load(options, about, device)
    editor = Editor(model, settings[SampleConfig], options.latent, options.seed, options.batch_size)
    for path in ACTIONS[typed.action](editor, options, settings):
        print("wrote", path)
    return None


def encode(editor: "Editor", options: EditOptions, settings: dict[type, Any]) -> list[str]:
    """Codes of all images to one file."""
    import numpy as np

    from dbae.io import atomic_write

    photos, images = _read(editor, options)
    path = os.path.join(options.out, "codes.npz")
    with atomic_write(path) as file:
        np.savez(file, z=editor.encode(images).cpu().numpy(), name=np.array(photos.names))
    return [path]


def reconstruct(editor: "Editor", options: EditOptions, settings: dict[type, Any]) -> list[str]:
    """Every image from its code."""
    from scripts.edit_figure import Row, strip, tile

    photos, images = _read(editor, options)
    endpoints, made = editor.generate(editor.encode(images), noise=range(len(images)))
    paths = _write_images(photos, made, options, "")
    names = photos.names[:SHOWN]
    rows = [
        Row("input", list(map(tile, names, images))),
        Row("endpoint $x_T$", list(map(tile, [""] * len(names), endpoints))),
        Row("reconstruction", list(map(tile, [""] * len(names), made))),
    ]
    path = os.path.join(options.out, f"{stem(names, 'reconstruction')}.png")
    strip(path, rows, f"{editor.model.config.latent_dim} numbers per image")
    return [*paths, path]


def interpolate(editor: "Editor", options: EditOptions, settings: dict[type, Any]) -> list[str]:
    """From image to image."""
    from scripts.edit_actions import draw_interpolation

    photos, images = _read(editor, options)
    return draw_interpolation(editor, photos.names, images, settings[WayOptions], options.out)


def manipulate(editor: "Editor", options: EditOptions, settings: dict[type, Any]) -> list[str]:
    """Attributes of every image."""
    from scripts.edit_actions import attributes_of, draw_manipulation, plan

    how = settings[AttributeOptions]
    classifier, rows = attributes_of(editor, options.model_path, how)
    photos, images = _read(editor, options)
    edits = plan(editor.encode(images), classifier, rows, how)
    paths, edited = draw_manipulation(editor, photos.names, images, edits, how, options.out)
    if options.paste:
        for edit, made in zip(edits, edited, strict=True):
            for column, name in enumerate(edit.columns):
                paths += _write_images(photos, made[:, column], options, f"_{edit.name}_{name}".replace(" ", "_"))
    return paths


def calibrate(editor: "Editor", options: EditOptions, settings: dict[type, Any]) -> list[str]:
    """Errors of training images."""
    from datasets.loader import ordered_batches
    from scripts.familiarity import calibrate as write

    if options.dataset == EditOptions.dataset:
        raise UserError("dataset: expected the one the model was trained on, got none")
    data = build_data(options, editor.model.config.image_size)
    images = min(options.limit or len(data), len(data))
    batches = ordered_batches(data, options.batch_size, 0, 1, images, options.num_workers)
    return [write(editor, (x for x, _ in batches), options.model_path, f"{options.dataset} {options.split}")]


ACTIONS: dict[str, Callable[["Editor", EditOptions, dict[type, Any]], list[str]]] = {
    each.__name__: each for each in (encode, reconstruct, interpolate, manipulate, calibrate)
}


def _read(editor: "Editor", options: EditOptions) -> "tuple[PhotoFiles, torch.Tensor]":
    """The photos and their crops; says which are far from what the model has seen."""
    from scripts import familiarity
    from scripts.editing import find_photos

    photos = find_photos(options.images, options.landmarks)
    images = photos.crops(editor.model.config.image_size)
    known = familiarity.percentiles(options.model_path)
    if known is not None:
        for line in familiarity.warnings(photos.names, familiarity.errors(editor, images), known):
            print(f"note: {line}", file=sys.stderr)
    return photos, images


def _write_images(photos: "PhotoFiles", made: "torch.Tensor", options: EditOptions, suffix: str) -> list[str]:
    """One PNG per image, at the model's size; with ``--paste`` the whole photo with it instead."""
    from PIL import Image

    from dbae.io import atomic_write

    paths = []
    for i, (name, image) in enumerate(zip(photos.names, made, strict=True)):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        paths.append(os.path.join(options.out, f"{name}{suffix}.png"))
        with atomic_write(paths[-1]) as file:
            (photos.read(i).paste(picture) if options.paste else picture).save(file, format="PNG")
    return paths


if __name__ == "__main__":
    run(main)
