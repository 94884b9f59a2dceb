#!/usr/bin/env bash
# Classification probe: bash infer_class_dbae.sh DATASET SCHEDULE MODEL_PATH STO [OPTION...]
# e.g. bash infer_class_dbae.sh ffhq vp ckpt/ffhq/sto/ema_0.9999_1020000.pt true; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/args.sh"

launch_probe infer_class "$@"
