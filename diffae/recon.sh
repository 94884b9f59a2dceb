#!/usr/bin/env bash
# Reconstruct: bash diffae/recon.sh DATASET MODEL_PATH SPLIT T XT [OPTION...]; XT is inferred or retraced (T more network calls), or random
# e.g. bash diffae/recon.sh celebahq CKPT train 100 inferred --evaluate; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect reconstruct "DATASET MODEL_PATH SPLIT T XT" "$@"
launch_trained reconstruct "$1" "$2" --method=diffae --split="$3" --steps="$4" --xT="$5"
