#!/usr/bin/env bash
# The whole job on a CPU in minutes: bash demo.sh
# Environment, toy faces, a short training, reconstruction, evaluation, and workdir/demo/demo.png.
# Running it again starts from what is there.
set -euo pipefail
(($# == 0)) || { echo "error: expected no arguments, got $*" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/environment.sh
environment requirements.txt
export NPROC=1

step() { printf '\n== %s\n' "$*"; }

step "draw 12,000 toy faces"
"$PYTHON" -m datasets.prepare toyfaces --size 32 --out data/toyfaces

step "train the toyfaces preset"
bash train_dbae.sh toyfaces vp false --workdir workdir/demo

checkpoint=$(find workdir/demo -name 'ema_*.pt' | sort -V | tail -n 1)
step "reconstruct 256 test images from their codes"
bash recon_dbae.sh toyfaces vp "$checkpoint" 0.0 1 test 7 euler 20 false --limit 256

samples=$(find "$(dirname "$checkpoint")" -type d -name 'euler_7.0_20_w=1.0_churn=0.0' | sort -V | tail -n 1)
step "evaluate${LPIPS_BACKBONE:+ with LPIPS} (LPIPS needs AlexNet's weights: set LPIPS_BACKBONE to their file)"
"$PYTHON" eval_reconstruction.py --sample_path="$samples" --metrics "MSE,SSIM,SSIM_official${LPIPS_BACKBONE:+,LPIPS}" \
    ${LPIPS_BACKBONE:+--lpips_backbone="$LPIPS_BACKBONE"}

step "draw workdir/demo/demo.png"
"$PYTHON" -m scripts.demo_figure --model_path="$checkpoint" --sample_path="$samples" --out=workdir/demo/demo.png
