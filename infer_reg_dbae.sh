#!/usr/bin/env bash
# Regression probe: bash infer_reg_dbae.sh DATASET SCHEDULE MODEL_PATH STO [OPTION...]
# e.g. bash infer_reg_dbae.sh ffhq vp ckpt/ffhq/sto/ema_0.9999_1020000.pt true; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/args.sh"

launch_probe infer_reg "$@"
