#!/usr/bin/env bash
# Linear probe: bash ddae/linear.sh CONFIG MODEL_PATH [--grid] [OPTION...]
# e.g. bash ddae/linear.sh EDM_ddpm CKPT --grid --baselines; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect linear "CONFIG MODEL_PATH" "$@"
launch linear --method=ddae --config="$(from_here "$1")" --model_path="$(from_here "$2")" --data_root="$DATA_ROOT" \
    ${OPTIONS[@]+"${OPTIONS[@]}"}
