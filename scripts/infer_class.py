"""Classification probe (AP of Table 1): a linear layer on frozen codes, attribute by attribute.

examples:
  bash infer_class_dbae.sh ffhq vp ckpt/ffhq/sto/ema_0.9999_1020000.pt true
  bash infer_class_dbae.sh toyfaces vp RUN/ema_0.9999_001000.pt false --features pca      a baseline of the same size
  bash infer_class_dbae.sh ffhq vp CKPT true --probe_data folder:photos --labels labels.csv --solver exact

Writes sample_STEP/downstream_inference/multitask_ema/: best.pt (the layer), test.txt, results.json, attributes.png.
With --kind class, one class of several is read from the code: its accuracy goes to class_ema/. Codes are computed once
and kept in sample_STEP/latents/.
"""

from functools import partial

from scripts import probe
from scripts.cli import run
from scripts.probe_options import ClassificationOptions

main = partial(probe.main, ClassificationOptions, __doc__)

if __name__ == "__main__":
    run(main)
