#!/usr/bin/env bash
# MLP on frozen features of noisy images, told the noise: bash ddae/classifier_ddae.sh CONFIG MODEL_PATH [OPTION...]
# e.g. bash ddae/classifier_ddae.sh DDPM_small CKPT --limit 2000 --limit_test 500; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect classifier_ddae "CONFIG MODEL_PATH" "$@"
launch classifier_ddae --method=ddae --config="$(from_here "$1")" --model_path="$(from_here "$2")" \
    --data_root="$DATA_ROOT" ${OPTIONS[@]+"${OPTIONS[@]}"}
