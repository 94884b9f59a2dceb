#!/usr/bin/env bash
# Fit a latent prior: bash train_prior_dbae.sh DATASET MODEL_PATH [OPTION...]
# e.g. bash train_prior_dbae.sh toyfaces ckpt/toyfaces/det/ema_0.9999_016000.pt; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/args.sh"

expect train_prior "DATASET MODEL_PATH" "$@"
launch_trained train_prior "$1" "$2"
