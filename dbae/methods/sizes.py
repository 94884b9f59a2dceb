"""Presets by the size of the networks, for data sets that have no published one: folders of own images, first of all.

The same rows serve every image size: multipliers of the channels go by it (``UNET_MULT`` and ``ENCODER_MULT``).
"""

from collections.abc import Mapping
from typing import Any

SIZES = ("tiny", "small", "base")
# Data sets without a published row, and the image size that they are trained at unless told otherwise
UNPUBLISHED = {"folder": 64, "cifar10": 32, "cifar100": 32, "tiny": 64, "ffhq64": 64}
ENOUGH = 5_000 * 64**2  # pixels of all images together from which the base network is worth its time

# What differs from the defaults of the networks of ADM's kind, and of TrainConfig, in all methods
SHARED: dict[str, dict[str, Any]] = {
    "tiny": {
        "num_channels": 16, "num_res_blocks": 1, "attention_sizes": (8,), "encoder_attention_sizes": (8,),
        "norm_groups": 4, "latent_dim": 128, "dropout": 0.0,
        "total_steps": 10_000, "batch_size": 16, "microbatch": 16,
        "log_interval": 25, "sample_interval": 250, "save_interval": 2_500, "save_interval_for_preemption": 100,
    },
    "small": {
        "num_channels": 32, "num_res_blocks": 1, "attention_sizes": (16, 8), "encoder_attention_sizes": (16, 8),
        "norm_groups": 8, "latent_dim": 256,
        "total_steps": 100_000, "batch_size": 64,
        "sample_interval": 1_000, "save_interval": 10_000, "save_interval_for_preemption": 500,
    },
    "base": {"num_channels": 64},
}  # fmt: skip


def by_size(**own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by size: the shared ones with a method's ``own`` on top."""
    return {size: {**SHARED[size], **own[size]} for size in SIZES}


def unpublished(rows: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of the data sets that have none among the published ``rows``: the base network at their image size."""
    return {name: {"image_size": pixels, **sizes["base"]} for name, pixels in UNPUBLISHED.items() if name not in rows}


def choose(image_size: int, device: str, images: int) -> str:
    """The size that suits ``images`` images of ``image_size`` pixels on a kind of ``device``.

    On a CPU it is tiny. On a GPU it is base from 5,000 images of 64 px, or as many pixels of another size (1,250
    images of 128 px), and small below: a network of 100 million parameters would only learn so few by heart.
    """
    if device == "cpu":
        return "tiny"
    return "base" if images * image_size**2 >= ENOUGH else "small"
