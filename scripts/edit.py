"""Encode, reconstruct, interpolate and manipulate your own images.

actions:
  encode        codes of all images to OUT/codes.npz (z, name)
  reconstruct   OUT/NAME.png for every image, and a strip of inputs, x_T and reconstructions
  interpolate   strip and animation from image to image
  manipulate    strip and animation along attributes of a linear probe, between the medians of real images without and
                with each attribute; --strength scales --fix_xT true is the official setting

Images of any size, mode and orientation are cut to their central square, or aligned by five --landmarks as FFHQ is;
--paste puts results back into the photos.

example:
  python -m scripts.edit reconstruct --model ckpt/toyfaces/det/ema_0.9999_016000.pt --images photo.jpg
  python -m scripts.edit manipulate --model ... --images photos/ --attributes Smiling --scales 0,1 --paste
"""

from functools import partial

from scripts import editing
from scripts.cli import run

main = partial(editing.main, __doc__, None)

if __name__ == "__main__":
    run(main)
