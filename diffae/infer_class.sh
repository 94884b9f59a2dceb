#!/usr/bin/env bash
# Classification probe: bash diffae/infer_class.sh DATASET MODEL_PATH [OPTION...]
# e.g. bash diffae/infer_class.sh ffhq CKPT; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect infer_class "DATASET MODEL_PATH" "$@"
launch_trained infer_class "$1" "$2"
