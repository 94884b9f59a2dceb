#!/usr/bin/env bash
# Train: bash diffae/train.sh DATASET [CKPT] [OPTION...]; --latent_dim 0 trains the DDIM baseline, without a code
# e.g. bash diffae/train.sh celeba --batch_size 64; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect train "DATASET" "$@"
method=diffae resume=()
[[ " $* " =~ \ --latent[-_]dim[\ =]0\  ]] && method=ddim
if ((${#OPTIONS[@]})) && [[ ${OPTIONS[0]} != --* ]]; then
    resume=(--resume_checkpoint="${OPTIONS[0]}")
    OPTIONS=("${OPTIONS[@]:1}")
fi
launch train --method="$method" --dataset="$(data_from_here "$1")" --data_root="$DATA_ROOT" --workdir="$CKPT_ROOT" \
    ${resume[@]+"${resume[@]}"} ${OPTIONS[@]+"${OPTIONS[@]}"}
