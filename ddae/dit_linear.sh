#!/usr/bin/env bash
# Linear probe of DiT: bash ddae/dit_linear.sh DATASET DIT_PATH [OPTION...], after dit_latents.sh of the same DATASET
# e.g. bash ddae/dit_linear.sh cifar10 DiT-XL-2-256x256.pt; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect dit_linear "DATASET DIT_PATH" "$@"
launch dit_linear --dataset="$(data_from_here "$1")" --dit_path="$(from_here "$2")" ${OPTIONS[@]+"${OPTIONS[@]}"}
