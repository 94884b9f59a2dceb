"""Send a data set through a frozen model, in any number of processes, resumably: the features in one file."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from datasets.base import ImageDataset
from datasets.loader import ordered_batches
from datasets.tolerant import Tolerant
from dbae import runtime
from dbae.background import Background
from dbae.io import image_generators, to_float
from dbae.methods import AutoEncoder
from dbae.progress import progress_bar
from eval.arrays import Arrays, read_arrays
from eval.features import Code, Encode, FeatureCache, encode_batches
from scripts.common import result_folder
from scripts.options import ModelOptions
from scripts.trained import TrainedModel


def array_encoder(
    trained: TrainedModel, block: str | Sequence[str] = "", time: float | None = None, draws: int = 1
) -> Encode:
    """What the model computes once per image, before its code is drawn from that.

    Or averaged activations of a ``block`` of its network, under ``z``, for images with the noise of a time; of several
    blocks, under their names, from the same calls of the network. They are means over as many ``draws`` of the noise.
    """
    blocks = [block] if isinstance(block, str) else list(block)

    def encode(images: Tensor, index: Sequence[int]) -> dict[str, Tensor]:
        generators = image_generators(trained.seed, index)
        x = to_float(images.to(trained.device))
        if not block:
            return trained.model.encode_arrays(x, generators)
        found = trained.features(x, time, blocks, generators, draws)
        return {"z": found[block]} if isinstance(block, str) else found

    return encode


def encode_to_file(
    path: str,
    encode: Encode,
    readable: Tolerant,
    settings: dict[str, Any],
    batch_size: int = 64,
    num_workers: int | None = 0,
    desc: str = "encode",
    beside: Callable[[Arrays], tuple[Arrays, dict[str, str]]] = lambda arrays: ({}, {}),
    overwrite: bool = False,
) -> bool:
    """Write the features of all images to ``path``, unless they are there already; returns whether it did.

    ``settings`` are all that the features depend on, ``flip`` among them.

    Every process of the group calls it; process r of W encodes the images r, r + W, ... From the arrays of the images
    that could be read, ``beside`` makes further arrays and text for the file. Raises UserError where ``path`` holds
    features of other settings, unless ``overwrite``, and for bad images as ``readable`` does.
    """
    images, cache = len(readable), FeatureCache(path, settings, runtime.world(), batch_size)
    if not overwrite and runtime.on_first(lambda: cache.finished):
        runtime.print0(f"{path} is complete already: nothing computed")
        return False
    encode_share(cache, encode, readable, batch_size, num_workers, desc, settings["flip"])

    def collect() -> None:
        if not overwrite and cache.finished:  # by the same command, elsewhere and meanwhile
            return cache.discard()
        arrays = cache.collect()
        if not len(arrays["index"]):
            cache.discard()
        readable.check_kept(arrays["index"].tolist(), images)
        further, text = beside(arrays)
        return cache.write(arrays | further, text)

    runtime.on_first(collect)
    return True


def encode_share(
    cache: FeatureCache,
    encode: Encode,
    images: Dataset,
    batch_size: int,
    num_workers: int | None,
    desc: str,
    flip: bool,
) -> None:
    """Encode this process's images batch by batch into a cache, after those that are there; wait for the others."""
    rank, world, n, skip = runtime.rank(), runtime.world(), len(images), cache.done(runtime.rank())
    batches = ordered_batches(images, batch_size, rank, world, n, num_workers, skip)
    shown = progress_bar(n, "image", desc, min(skip * batch_size * world, n), enabled=rank == 0)
    with shown as bar, Background(waiting=4) as writer:
        for i, arrays in enumerate(encode_batches(encode, batches, flip), start=skip):
            writer.submit(partial(cache.add, rank, i, arrays))
            bar.update(min(len(arrays["index"]) * world, n - bar.n))
    runtime.barrier()


def write_features(
    trained: TrainedModel,
    options: ModelOptions,
    about: dict[str, Any],
    data: ImageDataset,
    name: str,
    flip: bool = False,
    block: str | Sequence[str] = "",
    time: float | None = None,
    draws: int = 1,
) -> str:
    """Path of the file with what the code is drawn from, or with features of a ``block`` or several.

    All processes encode their share, unless it is there. ``about`` are weights and images, ``name`` is that of the
    split; the file lies with the results of the checkpoint, in ``latents``, under a name made of all settings.
    """
    settings = about | {"flip": flip} | noise_settings(trained, time)
    if block:
        settings |= {"features": block if isinstance(block, str) else list(block), "time": time}
        settings |= {"draws": draws} if draws > 1 else {}
    settings |= precision_setting(trained)
    file = f"{name}{'_flip' * flip}_{FeatureCache('', settings).key}.npz"
    path = result_folder(options.model_path, "latents", file, out=options.out)
    at = "" if time is None else f" at {time:.4g}"
    how = (settings, options.batch_size, options.num_workers, f"encode {name}{' mirrored' * flip}{at}")
    encode_to_file(path, array_encoder(trained, block, time, draws), Tolerant(data), *how)
    return path


def precision_setting(trained: TrainedModel) -> dict[str, str]:
    """The precision among the settings of a file: files of float32 do not say it, as in earlier versions."""
    precision = trained.model.precision
    return {} if precision == "fp32" else {"precision": precision}


def read_features(path: str) -> Arrays:
    """The arrays of a file on the first process, none on others."""
    return read_arrays(path)[0] if runtime.rank() == 0 else {}


def noise_settings(trained: TrainedModel, time: float | None) -> dict[str, Any]:
    """What features of images with noise depend on beside the images and the weight file; codes need little."""
    model, coded = trained.model, isinstance(trained.model, AutoEncoder)
    if time is None and coded:
        return model.unstated
    drawn = {"latent": trained.latent} if coded and model.stochastic else {}  # the network is told the code
    named = {name: getattr(model.config, name) for name in model.OVERRIDABLE}
    return model.unstated | named | {"seed": trained.seed} | drawn


def drawn_code(trained: TrainedModel) -> Code:
    """How the codes of an epoch are made from what was computed once: the noise of a stochastic encoder drawn anew."""

    def code(arrays: dict[str, Tensor], generator: Generator) -> Tensor:
        noise = torch.randn(next(iter(arrays.values())).shape, generator=generator)
        return trained.model.code(arrays, noise if trained.latent == "sample" else None)

    return code
