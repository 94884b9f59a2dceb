#!/usr/bin/env bash
# Train: bash ddae/train.sh CONFIG [OPTION...]; CONFIG is a name like EDM_ddpm, or the path of an official yaml file
# e.g. bash ddae/train.sh DDPM_small --cache host; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect train "CONFIG" "$@"
launch train --method=ddae --config="$(from_here "$1")" --data_root="$DATA_ROOT" --workdir="$CKPT_ROOT" \
    ${OPTIONS[@]+"${OPTIONS[@]}"}
