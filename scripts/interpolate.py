"""Walk from image to image through their codes: a strip of endpoints and images, and an animation.

example:
  bash interpol_dbae.sh toyfaces vp ckpt/toyfaces/det/ema_0.9999_016000.pt 0.0 1 test 7 euler 20 false
  bash interpol_dbae.sh ... --images anna.jpg ben.jpg carla.jpg --frames 21 --path spherical

Pictures go to sample_STEP/interpolation_SETTINGS beside the checkpoint, named by images, path and frames.
"""

from typing import TYPE_CHECKING

from scripts.cli import run
from scripts.edit_options import PictureOptions, WayOptions
from scripts.picture_program import main as picture_program

if TYPE_CHECKING:
    from torch import Tensor

    from scripts.editing import Editor

IMAGES = ("assets/img1.png", "assets/img2.png")


def draw(
    editor: "Editor", names: list[str], images: "Tensor", options: PictureOptions, way: WayOptions, folder: str
) -> list[str]:
    """Strip and animation from image to image."""
    from scripts.edit_actions import draw_interpolation

    return draw_interpolation(editor, names, images, way, folder)


def main() -> None:
    """Parse, encode, generate, draw."""
    picture_program(__doc__, "interpolation", WayOptions, IMAGES, draw)


if __name__ == "__main__":
    run(main)
