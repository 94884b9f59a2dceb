"""Send a data set through a frozen model, in any number of processes, resumably: the features in one file."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from datasets.bad_images import BadImages
from datasets.base import ImageDataset
from datasets.loader import ordered_batches
from dbae import distributed
from dbae.io import image_generators, randn_like
from dbae.methods.dbae import DBAE
from dbae.progress import progress_bar
from eval.arrays import Arrays
from eval.features import Encode, FeatureCache, encode_batches
from scripts.bad_images import require_some


def encoder(model: DBAE) -> Encode:
    """What the model's encoder computes without any draw: its code, or the statistics of a stochastic one."""
    return lambda x, index: model.encode_arrays(x, image_generators(0, index.tolist(), x.device))


def code_encoder(model: DBAE, latent: str, seed: int) -> Encode:
    """The same, and the code ``z``: of a stochastic encoder the mean, or a sample drawn from (seed, image)."""
    arrays_of = encoder(model)

    def encode(x: Tensor, index: Tensor) -> dict[str, Tensor]:
        arrays = arrays_of(x, index)
        like = next(iter(arrays.values())).cpu()
        noise = randn_like(like, image_generators(seed, index.tolist())).to(x.device) if latent == "sample" else None
        return {**arrays, "z": model.code(arrays, noise)}

    return encode


def block_encoder(model: DBAE, block: str, time: float, seed: int) -> Encode:
    """Averaged activations of a block of the network, for images with noise of a time, drawn from (seed, image)."""

    def encode(x: Tensor, index: Tensor) -> dict[str, Tensor]:
        generators = image_generators(seed, index.tolist(), x.device)
        return {"z": model.features(x, time, [block], generator=generators)[block]}

    return encode


def identity(weights: str, data: ImageDataset, images: int, flip: bool) -> dict[str, Any]:
    """What features depend on: the weights' fingerprint, and which images at which size."""
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
    data: ImageDataset,
    settings: dict[str, Any],
    device: torch.device,
    batch_size: int = 64,
    num_workers: int = 0,
    desc: str = "encode",
    beside: Callable[[Arrays], tuple[Arrays, dict[str, str]]] = lambda arrays: ({}, {}),
    bad: BadImages | None = None,
) -> None:
    """Write the features of the first ``settings["images"]`` images to ``path``, unless they are there already.

    Every process of the group calls it; process r of W encodes the images r, r + W, ... With ``bad``, bad images are
    left out and noted there; ``beside`` makes further arrays and text for the file from the arrays of those that are
    kept. Raises UserError where ``path`` holds features of other settings, and for bad images.
    """
    rank, world, images = distributed.rank(), distributed.world(), settings["images"]
    cache = FeatureCache(path, settings, world, batch_size)
    if cache.finished:
        return
    skip = cache.done(rank)
    batches = ordered_batches(data, batch_size, rank, world, images, num_workers, skip, bad)
    with progress_bar(images, "image", desc, min(skip * batch_size * world, images), enabled=rank == 0) as bar:
        for i, arrays in enumerate(encode_batches(encode, batches, device, settings["flip"]), start=skip):
            cache.add(rank, i, arrays)
            bar.update(min(len(arrays["index"]) * world, images - bar.n))
    distributed.barrier()
    if rank == 0:
        arrays = cache.collect()
        if not len(arrays["index"]):
            cache.discard()
        require_some(data, images, arrays["index"])
        further, text = beside(arrays)
        cache.write(arrays | further, text)
    distributed.barrier()
