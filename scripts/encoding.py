"""Encode a data set with a frozen model into one file of codes, in any number of processes, resumably."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from datasets.loader import ordered_batches
from dbae import distributed
from dbae.io import image_generators
from dbae.progress import progress_bar
from eval.latents import Arrays, Encode, Store, encode_batches
from scripts.bad_images import require_some

if TYPE_CHECKING:
    from datasets.bad_images import BadImages
    from datasets.base import ImageDataset
    from dbae.methods.dbae import DBAE


def statistics(model: "DBAE") -> Encode:
    """``z`` of a deterministic encoder, ``mu`` and ``log_sigma`` of a stochastic one."""

    def encode(x: Tensor, index: Tensor) -> dict[str, Tensor]:
        if not model.config.stochastic:
            return {"z": model.encode(x)}
        mu, log_sigma = model.encode_stats(x)
        return {"mu": mu, "log_sigma": log_sigma}

    return encode


def with_codes(model: "DBAE", latent: str, seed: int) -> Encode:
    """The same, and the stochastic encoder's code ``z``: the mean, or a sample drawn from (seed, image)."""
    parts = statistics(model)

    def encode(x: Tensor, index: Tensor) -> dict[str, Tensor]:
        arrays = parts(x, index)
        if "mu" in arrays:
            mu, log_sigma = arrays["mu"], arrays["log_sigma"]
            drawn = torch.stack([torch.randn(mu.shape[1], generator=g) for g in image_generators(seed, index.tolist())])
            noise = drawn.to(mu.device) if latent == "sample" else torch.zeros_like(mu)
            arrays["z"] = mu + (log_sigma.exp() + 0.01) * noise
        return arrays

    return encode


def identity(weights: str, data: "ImageDataset", images: int, flip: bool) -> dict[str, Any]:
    """What codes depend on: the weights' fingerprint, and which images at which size."""
    return {
        "weights": weights,
        "data": data.title,
        "size": data.size,
        "images": images,
        "first": data.name_of(0),
        "last": data.name_of(images - 1),
        "flip": flip,
    }


def encode_to_file(
    path: str,
    encode: Encode,
    data: "ImageDataset",
    settings: dict[str, Any],
    device: torch.device,
    batch_size: int = 64,
    num_workers: int = 0,
    desc: str = "encode",
    beside: Callable[[np.ndarray], tuple[Arrays, dict[str, str]]] = lambda kept: ({}, {}),
    bad: "BadImages | None" = None,
) -> None:
    """Write the codes of the first ``settings["images"]`` images to ``path``, unless they are there already.

    Every process of the group calls it. With ``bad``, bad images are left out and noted there; of the numbers [n] of
    those that are kept, ``beside`` makes further arrays and text for the file. Raises UserError where ``path`` holds
    codes of other settings, and for bad images.
    """
    store = Store(path, settings, distributed.world(), batch_size)
    if store.finished:
        return
    rank, world, images = distributed.rank(), distributed.world(), settings["images"]
    skip = store.done(rank)
    batches = ordered_batches(data, batch_size, rank, world, images, num_workers, skip, bad)
    encoded = encode_batches(encode, batches, device, settings["flip"])
    before = min(skip * batch_size * world, images)
    with progress_bar(images, "image", desc, initial=before, enabled=rank == 0) as bar:
        for i, arrays in enumerate(encoded, start=skip):
            store.add(rank, i, arrays)
            bar.update(min(len(arrays["index"]) * world, images - bar.n))
    distributed.barrier()
    if rank == 0:
        kept = store.kept()
        if not len(kept):
            store.discard()
        require_some(data, images, kept)
        store.combine(*beside(kept))
    distributed.barrier()
