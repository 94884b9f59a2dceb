"""Move codes along attributes of a linear classifier: a strip per attribute and image, and an animation.

example:
  bash manipul_dbae.sh toyfaces vp ckpt/toyfaces/det/ema_0.9999_016000.pt 0.0 1 test 7 euler 20 false
  bash manipul_dbae.sh ... --images me.jpg --attributes Smiling,Eyeglasses --scales -0.4,-0.2,0,0.2,0.4

Pictures go to sample_STEP/manipulation_SETTINGS beside the checkpoint, named by images and attributes.
"""

from typing import TYPE_CHECKING

from scripts.cli import run
from scripts.edit_options import AttributeOptions, PictureOptions
from scripts.picture_program import main as picture_program

if TYPE_CHECKING:
    from torch import Tensor

    from scripts.editing import Editor

IMAGES = ("assets/img3.png", "assets/img4.png")


def draw(
    editor: "Editor", names: list[str], images: "Tensor", options: PictureOptions, how: AttributeOptions, folder: str
) -> list[str]:
    """Strip and animation along attributes."""
    from scripts.edit_actions import attributes_of, draw_manipulation, plan

    classifier, rows = attributes_of(editor, options.model_path, how)
    edits = plan(editor.encode(images), classifier, rows, how)
    paths, _ = draw_manipulation(editor, names, images, edits, how, folder)
    return paths


def main() -> None:
    """Parse, encode, generate, draw."""
    picture_program(__doc__, "manipulation", AttributeOptions, IMAGES, draw)


if __name__ == "__main__":
    run(main)
