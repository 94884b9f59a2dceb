#!/usr/bin/env bash
# Manipulate: bash manipul_dbae.sh DATASET SCHEDULE MODEL_PATH CHURN_STEP_RATIO GUIDANCE SPLIT RHO GEN_SAMPLER N STO [OPTION...]
# e.g. bash manipul_dbae.sh ffhq vp ckpt/ffhq/sto/ema_0.9999_1020000.pt 0.33 1 train 7 heun 167 true --images me.jpg --attributes Smiling,Eyeglasses
source "$(dirname "${BASH_SOURCE[0]}")/args.sh"

NPROC=1 NNODES=1 launch_sampling manipulate "$@"
