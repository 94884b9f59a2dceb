#!/usr/bin/env bash
# Reconstruct: bash recon_dbae.sh DATASET SCHEDULE MODEL_PATH CHURN_STEP_RATIO GUIDANCE SPLIT RHO GEN_SAMPLER N STO [OPTION...]
# e.g. bash recon_dbae.sh celebahq vp ckpt/ffhq/det/ema_0.9999_1020000.pt 0.0 1 train 7 euler 100 false --evaluate
source "$(dirname "${BASH_SOURCE[0]}")/args.sh"

launch_sampling reconstruct "$@"
