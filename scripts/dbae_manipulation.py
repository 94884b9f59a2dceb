"""Move codes along attributes of a linear classifier: a strip per attribute and image, and an animation.

example:
  bash manipul_dbae.sh toyfaces vp ckpt/toyfaces/det/ema_0.9999_016000.pt 0.0 1 test 7 euler 20 false
  bash manipul_dbae.sh ... --images me.jpg --attributes Smiling,Eyeglasses --scales -0.4,-0.2,0,0.2,0.4

Pictures go to sample_STEP/manipulation_SETTINGS beside the checkpoint, named by images and attributes.
"""

import dataclasses

from dbae.config import SampleConfig
from scripts.cli import Parser, given, run
from scripts.edit_options import AttributeOptions, PictureOptions, picture_folder
from scripts.inputs import load, parse, print_dry_run

IMAGES = ("assets/img3.png", "assets/img4.png")


def main() -> None:
    """Parse, encode, edit, generate, draw."""
    parser = Parser(__doc__)
    parser.add_config("sampling", SampleConfig)
    parser.add_config("manipulation", AttributeOptions)
    options, about, typed = parse(parser, PictureOptions, "images", None)
    sampling, how = SampleConfig(**given(typed, SampleConfig)), AttributeOptions(**given(typed, AttributeOptions))
    folder = picture_folder(options, "manipulation", sampling)
    if options.dry_run:
        settings = {"sampling": dataclasses.asdict(sampling), "manipulation": dataclasses.asdict(how)}
        return print_dry_run(options, about, **settings, output=folder)

    from dbae import distributed
    from scripts.edit_actions import attributes_of, draw_manipulation, plan
    from scripts.editing import Editor, read_images

    device = distributed.setup(options.device)
    editor = Editor(load(options, about, device), sampling, options.latent, options.seed, options.batch_size)
    classifier, rows = attributes_of(editor, options.model_path, how)
    names, images = read_images(options, IMAGES, editor.model.config.image_size)
    if options.check:
        return None
    edits = plan(editor.encode(images), classifier, rows, how)
    paths, _ = draw_manipulation(editor, names, images, edits, how, folder)
    print("wrote", *paths)
    return None


if __name__ == "__main__":
    run(main)
