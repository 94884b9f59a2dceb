#!/usr/bin/env bash
# The whole job on a CPU in minutes: bash demo.sh [--pretrained]
# Environment, toy faces, a short training, reconstruction, evaluation, and workdir/demo/*.png.
# With --pretrained the shipped models take the place of the training: a few minutes, and edited attributes, too.
# All results are below workdir/demo or workdir/pretrained, so that no other command meets them. Running it again starts
# from what is there.
set -euo pipefail
[[ $# == 0 || ($# == 1 && $1 == --pretrained) ]] || { echo "error: expected nothing or --pretrained, got $*" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/environment.sh
environment requirements.txt
export NPROC=1

step() { printf '\n== %s\n' "$*"; }
newest() { find "$1" -name 'ema_*.pt' | sort -V | tail -n 1; }

if (($#)); then
    out=workdir/pretrained
    sampler=(dbim 10 false --grid logsnr)
    settings=dbim_7.0_10_w=1.0_churn=0.0_grid=logsnr
    checkpoint=$(newest ckpt/toyfaces/det)
else
    out=workdir/demo
    sampler=(euler 20 false)
    settings=euler_7.0_20_w=1.0_churn=0.0
    step "draw 12,000 toy faces"
    "$PYTHON" -m datasets.prepare toyfaces --size 32 --out data/toyfaces
    step "train the toyfaces preset"
    bash train_dbae.sh toyfaces vp false --workdir "$out"
    checkpoint=$(newest "$out")
fi

step "reconstruct 256 test images from their codes"
bash recon_dbae.sh toyfaces vp "$checkpoint" 0.0 1 test 7 "${sampler[@]}" --limit 256 --out "$out/dbae"

samples=$out/dbae/sample_$((10#$(basename "$checkpoint" .pt | sed 's/.*_//')))/$settings
step "evaluate${LPIPS_BACKBONE:+ with LPIPS} (LPIPS needs AlexNet's weights: set LPIPS_BACKBONE to their file)"
"$PYTHON" eval_reconstruction.py --sample_path="$samples" --metrics "MSE,SSIM,SSIM_official${LPIPS_BACKBONE:+,LPIPS}" \
    ${LPIPS_BACKBONE:+--lpips_backbone="$LPIPS_BACKBONE"}

models=("$checkpoint") folders=("$samples")
if (($#)); then
    step "reconstruct them with DiffAE: from the code and its x_T, and from the code alone"
    sibling=$(newest ckpt/toyfaces/diffae)
    bash diffae/recon.sh toyfaces "$sibling" test 20 retraced,random --sampler dbim2 --grid logsnr --limit 256 \
        --out "$out/diffae" --evaluate --metrics "MSE,SSIM,SSIM_official"
    for start in retraced random; do
        models+=("$sibling")
        folders+=("$out/diffae/sample_16000/dbim2_20_xT=${start}_grid=logsnr")
    done
fi

step "draw $out/demo.png"
"$PYTHON" -m scripts.demo_figure --model_path "${models[@]}" --sample_path "${folders[@]}" --out="$out/demo.png"

step "interpolate"
bash interpol_dbae.sh toyfaces vp "$checkpoint" 0.0 1 test 7 "${sampler[@]}" --out "$out" --overwrite

if (($#)); then
    step "move attributes"
    bash manipul_dbae.sh toyfaces vp "$checkpoint" 0.0 1 test 7 "${sampler[@]}" --out "$out" --overwrite --images assets/img3.png \
        --attributes Male,Smiling,Blond_Hair,Eyeglasses --scales -0.2,-0.1,0,0.1,0.2 --fix_xT false
fi
