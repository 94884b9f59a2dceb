#!/usr/bin/env bash
# Alignment and uniformity: bash ddae/contrastive.sh CONFIG MODEL_PATH [--every N] [--time T] [OPTION...]
# MODEL_PATH: a checkpoint, several separated by commas, or a run's folder; e.g. bash ddae/contrastive.sh DDPM_ddpm workdir/DDPM_ddpm_cifar10
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect contrastive "CONFIG MODEL_PATH" "$@"
IFS=, read -ra given <<<"$2"
paths=""
for path in ${given[@]+"${given[@]}"}; do paths+=",$(from_here "$path")"; done
launch contrastive --method=ddae --config="$(from_here "$1")" --model_path="${paths#,}" --data_root="$DATA_ROOT" \
    ${OPTIONS[@]+"${OPTIONS[@]}"}
