#!/usr/bin/env bash
# Reconstruct: bash diffae/recon.sh DATASET MODEL_PATH SPLIT T[,T...] XT[,XT...] [OPTION...]
# XT is inferred or retraced (T more network calls), or random; several make a table, with the paper's rows
# e.g. bash diffae/recon.sh celebahq CKPT train 10,20,50,100 inferred,random --evaluate; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect reconstruct "DATASET MODEL_PATH SPLIT T XT" "$@"
if [[ $4$5 != *,* ]]; then
    launch_trained reconstruct "$1" "$2" --method=diffae --split="$3" --steps="$4" --xT="$5"
fi
[[ " ${OPTIONS[*]-} " =~ \ --evaluate([ =]true)?\  ]] || fail "T and XT: expected one each, or --evaluate to make a table of them"
[[ $4 =~ ^[0-9,]+$ && $5 =~ ^((inferred|retraced|random)(,|$))+$ ]] || fail "T, XT: expected numbers, and some of inferred,retraced,random; got $4 and $5"
runs=$(dirname "$(from_here "$2")") before=
for word in "${OPTIONS[@]}"; do
    [[ $word == --out=* ]] && runs=${word#*=}
    [[ $before == --out ]] && runs=$word
    before=$word
done
for start in ${5//,/ }; do
    for steps in ${4//,/ }; do
        (launch_trained reconstruct "$1" "$2" --method=diffae --split="$3" --steps="$steps" --xT="$start")
    done
done
[[ " ${OPTIONS[*]-} " =~ \ --dry[-_]run ]] || "$PYTHON" -m scripts.recon_table --runs="$runs"
