#!/usr/bin/env bash
# Generate: bash ddae/sample.sh CONFIG MODEL_PATH [--mode DDIM|DDPM|EDM] [--steps S] [--eta E] [--num N] [OPTION...]
# e.g. bash ddae/sample.sh DDPM_ddpm CKPT --mode DDPM --num 50000; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect sample "CONFIG MODEL_PATH" "$@"
given=(${OPTIONS[@]+"${OPTIONS[@]}"}) mode="" OPTIONS=()
for ((i = 0; i < ${#given[@]}; i++)); do
    case ${given[i]} in
        --mode) mode=${given[++i]-none} ;;
        --mode=*) mode=${given[i]#*=} ;;
        *) OPTIONS+=("${given[i]}") ;;
    esac
done
case $mode in
    "") sampler=() ;; # the configuration's own
    DDIM) sampler=(--sampler=ddim) ;;
    DDPM) sampler=(--sampler=ddpm --steps=1000) ;;
    EDM) sampler=(--sampler=edm) ;;
    *) fail "mode: expected DDIM, DDPM or EDM, got $mode" ;;
esac
launch sample --method=ddae --config="$(from_here "$1")" --model_path="$(from_here "$2")" --data_root="$DATA_ROOT" \
    ${sampler[@]+"${sampler[@]}"} ${OPTIONS[@]+"${OPTIONS[@]}"}
