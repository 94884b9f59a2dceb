#!/usr/bin/env bash
# Generate: bash diffae/sample.sh DATASET MODEL_PATH NUM T [OPTION...]
# e.g. bash diffae/sample.sh toyfaces CKPT 64 100 --latent_steps 100 --codes encoded; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect sample "DATASET MODEL_PATH NUM T" "$@"
launch_trained sample "$1" "$2" --num="$3" --steps="$4"
