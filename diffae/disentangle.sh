#!/usr/bin/env bash
# Disentanglement: bash diffae/disentangle.sh DATASET MODEL_PATH [OPTION...]
# e.g. bash diffae/disentangle.sh toyfaces CKPT --baselines; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect disentangle "DATASET MODEL_PATH" "$@"
launch_trained disentangle "$1" "$2"
