"""Walk from image to image through their codes: a strip of images and of the states they start from, and an animation.

example:
  bash interpol_dbae.sh toyfaces vp ckpt/toyfaces/det/ema_0.9999_016000.pt 0.0 1 test 7 euler 20 false
  bash interpol_dbae.sh ... --images anna.jpg ben.jpg carla.jpg --frames 21 --path spherical

Pictures go to sample_STEP/interpolation_SETTINGS beside the checkpoint, named by images, path and frames.
"""

from functools import partial

from scripts import editing
from scripts.cli import run

main = partial(editing.main, __doc__, "interpolate")

if __name__ == "__main__":
    run(main)
