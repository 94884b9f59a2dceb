#!/usr/bin/env bash
# Interpolate: bash diffae/interpol.sh DATASET MODEL_PATH T [OPTION...]
# e.g. bash diffae/interpol.sh ffhq CKPT 20 --inversion_steps 250 --images a.jpg b.jpg; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

NPROC=1 NNODES=1
expect interpolate "DATASET MODEL_PATH T" "$@"
launch_trained interpolate "$1" "$2" --method=diffae --split=test --steps="$3"
