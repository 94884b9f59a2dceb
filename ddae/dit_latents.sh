#!/usr/bin/env bash
# Codes for the probe of DiT: bash ddae/dit_latents.sh DATASET VAE_PATH [OPTION...]
# e.g. bash ddae/dit_latents.sh cifar10 sd-vae-ft-mse/diffusion_pytorch_model.safetensors; all options: --help
source "$(dirname "${BASH_SOURCE[0]}")/../args.sh"

expect dit_latents "DATASET VAE_PATH" "$@"
launch dit_latents --dataset="$(data_from_here "$1")" --vae_path="$(from_here "$2")" --data_root="$DATA_ROOT" \
    ${OPTIONS[@]+"${OPTIONS[@]}"}
