#!/usr/bin/env bash
# Manipulate: bash diffae/manipul.sh DATASET MODEL_PATH T [OPTION...]
# e.g. bash diffae/manipul.sh ffhq CKPT 20 --inversion_steps 250 --images a.jpg b.jpg; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

NPROC=1 NNODES=1
expect manipulate "DATASET MODEL_PATH T" "$@"
launch_trained manipulate "$1" "$2" --method=diffae --split=test --steps="$3"
