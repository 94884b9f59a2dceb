#!/usr/bin/env bash
# WRN-28-10 on noisy images, told the noise: bash ddae/classifier_wrn.sh DDPM|EDM [OPTION...]
# e.g. bash ddae/classifier_wrn.sh EDM --dataset cifar100; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect classifier_wrn "MODE" "$@"
launch classifier_wrn --mode="$1" --data_root="$DATA_ROOT" --workdir="$CKPT_ROOT" ${OPTIONS[@]+"${OPTIONS[@]}"}
