"""Walk from image to image through their codes: a strip of endpoints and images, and an animation.

example:
  bash interpol_dbae.sh toyfaces vp ckpt/toyfaces/det/ema_0.9999_016000.pt 0.0 1 test 7 euler 20 false
  bash interpol_dbae.sh ... --images anna.jpg ben.jpg carla.jpg --frames 21 --path spherical

Pictures go to sample_STEP/interpolation_SETTINGS beside the checkpoint, named by images, path and frames.
"""

import dataclasses

from dbae.config import SampleConfig
from scripts.cli import Parser, given, run
from scripts.edit_options import PictureOptions, WayOptions, picture_folder
from scripts.inputs import load, parse, print_dry_run

IMAGES = ("assets/img1.png", "assets/img2.png")


def main() -> None:
    """Parse, encode, generate, draw."""
    parser = Parser(__doc__)
    parser.add_config("sampling", SampleConfig)
    parser.add_config("interpolation", WayOptions)
    options, about, typed = parse(parser, PictureOptions, "images", None)
    sampling, way = SampleConfig(**given(typed, SampleConfig)), WayOptions(**given(typed, WayOptions))
    folder = picture_folder(options, "interpolation", sampling)
    if options.dry_run:
        settings = {"sampling": dataclasses.asdict(sampling), "interpolation": dataclasses.asdict(way)}
        return print_dry_run(options, about, **settings, output=folder)

    from dbae import distributed
    from scripts.edit_actions import draw_interpolation
    from scripts.editing import Editor, read_images

    device = distributed.setup(options.device)
    editor = Editor(load(options, about, device), sampling, options.latent, options.seed, options.batch_size)
    names, images = read_images(options, IMAGES, editor.model.config.image_size)
    if options.check:
        return None
    print("wrote", *draw_interpolation(editor, names, images, way, folder))
    return None


if __name__ == "__main__":
    run(main)
