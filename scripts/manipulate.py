"""Move codes along attributes of a linear classifier: a strip per attribute and image, and an animation.

example:
  bash manipul_dbae.sh toyfaces vp ckpt/toyfaces/det/ema_0.9999_016000.pt 0.0 1 test 7 euler 20 false
  bash manipul_dbae.sh ... --images me.jpg --attributes Smiling,Eyeglasses --scales -0.4,-0.2,0,0.2,0.4

This is the official setting, in which x_T is kept; --strength median --fix_xT false moves more. Pictures go to
sample_STEP/manipulation_SETTINGS beside the checkpoint, named by images and attributes.
"""

from functools import partial

from scripts import editing
from scripts.cli import run

main = partial(editing.main, __doc__, "manipulate")

if __name__ == "__main__":
    run(main)
