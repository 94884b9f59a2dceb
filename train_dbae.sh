#!/usr/bin/env bash
# Train: bash train_dbae.sh DATASET SCHEDULE STO [CKPT] [OPTION...]
# e.g. bash train_dbae.sh celeba vp true --batch_size 128; all options: bash train_dbae.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/args.sh"

[[ ${1:-} == --help || ${1:-} == -h ]] && show_help train
(($# >= 3)) || fail "expected DATASET SCHEDULE STO [CKPT]; got $# arguments"
resume=()
rest=("${@:4}")
if (($# >= 4)) && [[ $4 != --* ]]; then
    resume=(--resume_checkpoint="$(from_here "$4")")
    rest=("${@:5}")
fi
options_from_here ${rest[@]+"${rest[@]}"}
launch train --dataset="$(data_from_here "$1")" --schedule="$2" --stochastic="$3" \
    --data_root="$DATA_ROOT" --workdir="$CKPT_ROOT" ${resume[@]+"${resume[@]}"} ${OPTIONS[@]+"${OPTIONS[@]}"}
