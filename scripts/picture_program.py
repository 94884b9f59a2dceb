"""A program that makes pictures from a few images: shared by dbae_interpolation and dbae_manipulation."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dbae.config import SampleConfig
from scripts.cli import Parser, given
from scripts.edit_options import PictureOptions, picture_folder
from scripts.inputs import load, parse, print_dry_run

if TYPE_CHECKING:
    from torch import Tensor

    from scripts.editing import Editor

    # (editor, names, images uint8 [n, 3, H, W], options, what the kind asks for, folder) -> paths
    Draw = Callable[[Editor, list[str], Tensor, PictureOptions, Any, str], list[str]]


def main(doc: str, kind: str, asked: type, default: tuple[str, ...], draw: "Draw") -> None:
    """Parse the options, ``asked`` among them, read the images (else ``default``), draw, and say what was written."""
    parser = Parser(doc)
    parser.add_config("sampling", SampleConfig)
    parser.add_config(kind, asked)
    options, about, typed = parse(parser, PictureOptions, "images", None)
    sampling, how = SampleConfig(**given(typed, SampleConfig)), asked(**given(typed, asked))
    folder = picture_folder(options, kind, sampling)
    if options.dry_run:
        settings = {"sampling": dataclasses.asdict(sampling), kind: dataclasses.asdict(how)}
        return print_dry_run(options, about, **settings, output=folder)

    from dbae import distributed
    from scripts.editing import Editor, read_images

    device = distributed.setup(options.device)
    editor = Editor(load(options, about, device), sampling, options.latent, options.seed, options.batch_size)
    names, images = read_images(options, default, editor.model.config.image_size)
    if not options.check:
        print("wrote", *draw(editor, names, images, options, how, folder))
    return None
