#!/usr/bin/env bash
# The whole job on a CPU in minutes: bash demo.sh [--pretrained]
# Environment, toy faces, a short training, reconstruction, evaluation, and workdir/demo/*.png.
# With --pretrained one page of what the shipped models of all methods do, in a minute or three after the installation.
# All results are below workdir/demo or workdir/pretrained, so that no other command meets them. Running it again starts
# from what is there.
set -euo pipefail
[[ $# == 0 || ($# == 1 && $1 == --pretrained) ]] || { echo "error: expected nothing or --pretrained, got $*" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/environment.sh
environment requirements.txt
export NPROC=1

step() { printf '\n== %s\n' "$*"; }
newest() { find "$1" -name 'ema_*.pt' -not -path '*/sample_*' | sort -V | tail -n 1; } # a prior is below sample_STEP

if (($#)); then
    step "reconstruct, interpolate, edit, generate and probe toy faces with every method"
    mkdir -p workdir/pretrained
    models=()
    for folder in ckpt/toyfaces/{det,diffae,ddae}; do models+=("$(newest "$folder")"); done
    exec "$PYTHON" -m scripts.overview --dataset toyfaces --out workdir/pretrained/overview.png --overwrite true --model_path "${models[@]}"
fi

out=workdir/demo
sampler=(euler 20 false)
step "draw 12,000 toy faces"
"$PYTHON" -m datasets.prepare toyfaces --size 32 --out data/toyfaces
step "train the toyfaces preset"
bash train_dbae.sh toyfaces vp false --workdir "$out"
checkpoint=$(newest "$out")

step "reconstruct 256 test images from their codes"
bash recon_dbae.sh toyfaces vp "$checkpoint" 0.0 1 test 7 "${sampler[@]}" --limit 256 --out "$out"

samples=$out/sample_$((10#$(basename "$checkpoint" .pt | sed 's/.*_//')))/euler_7.0_20_w=1.0_churn=0.0
step "evaluate${LPIPS_BACKBONE:+ with LPIPS} (LPIPS needs AlexNet's weights: set LPIPS_BACKBONE to their file)"
"$PYTHON" eval_reconstruction.py --sample_path="$samples" --metrics "MSE,SSIM,SSIM_official${LPIPS_BACKBONE:+,LPIPS}" \
    ${LPIPS_BACKBONE:+--lpips_backbone="$LPIPS_BACKBONE"}

step "draw $out/demo.png"
"$PYTHON" -m scripts.demo_figure --model_path "$checkpoint" --sample_path "$samples" --out="$out/demo.png"

step "interpolate"
bash interpol_dbae.sh toyfaces vp "$checkpoint" 0.0 1 test 7 "${sampler[@]}" --out "$out" --overwrite
