#!/usr/bin/env bash
# Generate: bash sample_dbae.sh DATASET MODEL_PATH NUM GEN_SAMPLER N [OPTION...]
# e.g. bash sample_dbae.sh toyfaces ckpt/toyfaces/det/ema_0.9999_016000.pt 64 dbim 10 --codes gaussian; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/args.sh"

expect sample "DATASET MODEL_PATH NUM GEN_SAMPLER N" "$@"
launch_trained sample "$1" "$2" --num="$3" --sampler="$4" --steps="$5"
