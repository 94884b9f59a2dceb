#!/usr/bin/env bash
# Fine-tune as a classifier: bash ddae/finetune.sh CONFIG MODEL_PATH [--noise false] [--from_scratch] [--dataset folder:PATH] [OPTION...]
# e.g. bash ddae/finetune.sh DDPM_small CKPT --epochs 30; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect finetune "CONFIG MODEL_PATH" "$@"
launch finetune --method=ddae --config="$(from_here "$1")" --model_path="$(from_here "$2")" --data_root="$DATA_ROOT" \
    ${OPTIONS[@]+"${OPTIONS[@]}"}
