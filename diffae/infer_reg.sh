#!/usr/bin/env bash
# Regression probe: bash diffae/infer_reg.sh DATASET MODEL_PATH [OPTION...]
# e.g. bash diffae/infer_reg.sh ffhq CKPT; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect infer_reg "DATASET MODEL_PATH" "$@"
launch_trained infer_reg "$1" "$2"
