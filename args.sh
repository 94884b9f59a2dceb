#!/usr/bin/env bash
# What a machine needs to know, and nothing else. Every value can be given in the environment.
# Hyperparameters live in dbae/config.py and dbae/methods/; any option can follow a launcher's positional arguments.
set -euo pipefail

count_gpus() {
    local n
    n=$( (nvidia-smi -L 2>/dev/null || true) | grep -c '^GPU ' || true)
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        n=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '[^[:space:]]' || true)
    fi
    echo $((n > 0 ? n : 1))
}

DATA_ROOT="${DATA_ROOT:-data}"           # folder of the data sets
CKPT_ROOT="${CKPT_ROOT:-workdir}"        # folder under which training runs are written
NPROC="${NPROC:-$(count_gpus)}"          # processes on this node: one per GPU, 1 on a CPU
NNODES="${NNODES:-1}"                    # nodes; for more than one also RDZV_ID and RDZV_ENDPOINT=HOST:PORT
RDZV_ID="${RDZV_ID:-dbae}"               # the job's name, the same on every node
RESTARTS="${RESTARTS:-0}"                # how often torchrun starts a job again whose process died
RDZV_ENDPOINT="${RDZV_ENDPOINT:-}"       # where the nodes meet
PYTHON="${PYTHON:-python3}"              # interpreter
# Threads of GNU OpenMP spin for milliseconds before they sleep: where others need the cores, each waits for the other
[[ ${OMP_WAIT_POLICY:-} ]] || export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"

HERE=$PWD
LAUNCHER=$0
[[ $LAUNCHER == /* ]] || LAUNCHER=$HERE/$LAUNCHER
DBAE_COMMAND=$(printf '%q ' bash "$0" "$@") # results say what made them
export DBAE_COMMAND="${DBAE_COMMAND% }"
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    echo "error: $*" >&2
    exit 2
}

# A path that was typed relative to the caller's folder, as seen from the repository's root.
from_here() {
    if [[ $1 && $1 != /* && $1 != *://* && -e $HERE/$1 ]]; then
        echo "$HERE/$1"
    else
        echo "$1"
    fi
}

# The same for a data set, of which only folder:PATH is a path.
data_from_here() {
    if [[ $1 == folder:* ]]; then
        echo "folder:$(from_here "${1#folder:}")"
    else
        echo "$1"
    fi
}

# value_from_here OPTION VALUE: a value that names a file (with a dot or a slash) as seen from the root.
value_from_here() {
    case $1 in
        --dataset | --probe[-_]data) data_from_here "$2" ;;
        --out | --workdir) # may not be there yet
            if [[ -z $2 || $2 == /* || $2 == "~"* || $2 == *://* ]]; then echo "$2"; else echo "$HERE/$2"; fi
            ;;
        --images | --data[-_]dir | --data[-_]root) from_here "$2" ;;
        --labels) # or FILE.csv:COLUMN
            if [[ $2 == *:* && ! -e $HERE/$2 && -e $HERE/${2%:*} ]]; then echo "$HERE/$2"; else from_here "$2"; fi
            ;;
        *) if [[ $2 == *[./]* ]]; then from_here "$2"; else echo "$2"; fi ;;
    esac
}

# options_from_here WORD...: fills OPTIONS with the words, their values as seen from the root.
options_from_here() {
    OPTIONS=()
    local word before=
    for word in "$@"; do
        if [[ $word == --*=* ]]; then
            OPTIONS+=("${word%%=*}=$(value_from_here "${word%%=*}" "${word#*=}")")
        elif [[ $word == --* ]]; then
            OPTIONS+=("$word")
        else
            OPTIONS+=("$(value_from_here "$before" "$word")")
        fi
        before=$word
    done
}

# launch MODULE OPTION...: plain Python for one process, torchrun for several (after one process has checked the input).
launch() {
    local module=scripts.$1
    shift
    [[ $NPROC =~ ^[1-9][0-9]*$ ]] || fail "NPROC: expected a number of processes from 1, got $NPROC"
    [[ $NNODES =~ ^[1-9][0-9]*$ ]] || fail "NNODES: expected a number of nodes from 1, got $NNODES"
    local words=" $* " # --dry_run false is none
    words=${words//dry-run/dry_run}
    words=${words//--dry_run[ =]false /}
    if ((NPROC * NNODES == 1)) || [[ $words =~ \ --(dry_run|help)[\ =] ]]; then
        exec "$PYTHON" -m "$module" "$@"
    fi
    "$PYTHON" -m "$module" "$@" --check=$((NPROC * NNODES))
    local cores
    cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > NPROC ? cores / NPROC : 1))}"
    local meet=(--standalone)
    if ((NNODES > 1)); then
        [[ $RDZV_ENDPOINT ]] || fail "RDZV_ENDPOINT: expected HOST:PORT for $NNODES nodes, got nothing"
        meet=(--nnodes="$NNODES" --rdzv-id="$RDZV_ID" --rdzv-backend=c10d --rdzv-endpoint="$RDZV_ENDPOINT")
    fi
    exec "$PYTHON" -m scripts.launch "${meet[@]}" --max-restarts="$RESTARTS" --nproc-per-node="$NPROC" -m -- "$module" "$@"
}

# show_help MODULE: what the launcher's first lines say, and the help of its program for the launcher's method.
show_help() {
    local of=${LAUNCHER%/*}
    of=${of##*/} # diffae, ddae, or the root
    sed -n '2,/^[^#]/s/^# //p' "$LAUNCHER"
    echo
    if [[ $of == diffae || $of == ddae ]]; then
        exec "$PYTHON" -m "scripts.$1" --method="$of" --help
    fi
    exec "$PYTHON" -m "scripts.$1" --help
}

# expect MODULE "NAME NAME ..." WORD...: the help where it is asked for; fails unless a value is there for every name.
expect() {
    local module=$1 names=$2 wanted i
    shift 2
    [[ ${1:-} == --help || ${1:-} == -h ]] && show_help "$module"
    wanted=$(wc -w <<<"$names")
    (($# >= wanted)) || fail "expected $wanted argument$( ((wanted == 1)) || echo s): $names; got $#"
    for ((i = 1; i <= wanted; i++)); do
        [[ ${!i} != --* ]] || fail "argument $i: expected a value for one of $names, got ${!i}"
    done
    options_from_here "${@:wanted+1}"
}

# launch_sampling MODULE DATASET SCHEDULE MODEL_PATH CHURN GUIDANCE SPLIT RHO SAMPLER N STO [OPTION...]
launch_sampling() {
    local module=$1
    shift
    expect "$module" "DATASET SCHEDULE MODEL_PATH CHURN_STEP_RATIO GUIDANCE SPLIT RHO GEN_SAMPLER N STO" "$@"
    [[ $3 != "$4" ]] || fail "MODEL_PATH is given twice; expected once"
    launch "$module" --method=dbae --dataset="$(data_from_here "$1")" --schedule="$2" --model_path="$(from_here "$3")" \
        --churn_step_ratio="$4" --guidance="$5" --split="$6" --rho="$7" --sampler="$8" --steps="$9" \
        --stochastic="${10}" --data_root="$DATA_ROOT" ${OPTIONS[@]+"${OPTIONS[@]}"}
}

# launch_probe MODULE DATASET SCHEDULE MODEL_PATH STO [OPTION...]
launch_probe() {
    local module=$1
    shift
    expect "$module" "DATASET SCHEDULE MODEL_PATH STO" "$@"
    launch "$module" --method=dbae --dataset="$(data_from_here "$1")" --schedule="$2" --model_path="$(from_here "$3")" \
        --stochastic="$4" --data_root="$DATA_ROOT" ${OPTIONS[@]+"${OPTIONS[@]}"}
}

# launch_trained MODULE DATASET MODEL_PATH OPTION...: a program on a trained model, with the options set by expect on top.
launch_trained() {
    local module=$1 dataset=$2 path=$3
    shift 3
    launch "$module" --dataset="$(data_from_here "$dataset")" --model_path="$(from_here "$path")" \
        --data_root="$DATA_ROOT" "$@" ${OPTIONS[@]+"${OPTIONS[@]}"}
}
