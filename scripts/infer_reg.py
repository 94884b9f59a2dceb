"""Regression probe (r and MSE of Table 1): a linear layer on frozen codes against real-valued attributes.

examples:
  bash infer_reg_dbae.sh ffhq vp ckpt/ffhq/sto/ema_0.9999_1020000.pt true
  bash infer_reg_dbae.sh toyfaces vp RUN/ema_0.9999_001000.pt false --solver exact

Writes sample_STEP/downstream_inference/regression_ema/: best.pt (the layer), test.txt, results.json, attributes.png.
The last epoch and the best one are both reported; the best is selected on the test split, as in the official code.
"""

from functools import partial

from scripts import probe
from scripts.cli import run
from scripts.probe_options import RegressionOptions

main = partial(probe.main, RegressionOptions, __doc__)

if __name__ == "__main__":
    run(main)
