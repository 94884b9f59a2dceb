#!/usr/bin/env bash
# Disentanglement: bash disentangle_dbae.sh DATASET SCHEDULE MODEL_PATH STO [OPTION...]
# e.g. bash disentangle_dbae.sh toyfaces vp CKPT true --baselines; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/args.sh"

launch_probe disentangle "$@"
