#!/usr/bin/env bash
# Fit a latent prior: bash diffae/train_prior.sh DATASET MODEL_PATH [OPTION...]
# e.g. bash diffae/train_prior.sh toyfaces CKPT; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect train_prior "DATASET MODEL_PATH" "$@"
launch_trained train_prior "$1" "$2" --method=diffae
