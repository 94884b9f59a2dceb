"""Images of a data set as Stable Diffusion's encoder sees them, and its codes in one .npy file."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.base import ImageDataset
from dbae import runtime
from dbae.io import atomic_write, image_generators, randn_like, seed_for, to_float
from dbae.nn.vae import VAEEncoder
from eval.features import Encode, FeatureCache
from scripts.encoding import encode_share
from scripts.labelled import crop_and_flip

SCALE = 0.18215  # of codes, as Stable Diffusion and DiT take them
MARGIN = 8  # images are cropped by an eighth of their size at most on every side
AUGMENTATION, POSTERIOR = 1, {"train": 2, "test": 3}  # streams of random numbers of an image


class Enlarged(Dataset):
    """Images uint8 [3, size, size], mirrored and cropped for copy ``copy`` before (None: not), and their numbers.

    Image i draws from (seed, i, copy), so that a copy depends on nothing else.
    """

    def __init__(self, dataset: ImageDataset, size: int, seed: int, copy: int | None) -> None:
        self.dataset, self.size, self.seed, self.copy = dataset, size, seed, copy

    def __len__(self) -> int:
        return len(self.dataset)

    def name_of(self, i: int) -> str:
        return self.dataset.name_of(i)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.dataset[i][0]
        if self.copy is not None:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(seed_for(self.seed, i, self.copy, AUGMENTATION))
                image = crop_and_flip(image[None], self.dataset.size // MARGIN, flip=True)[0]
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        pixels = np.array(picture.resize((self.size, self.size), Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels).permute(2, 0, 1), i


def posterior_encoder(
    vae: VAEEncoder, device: torch.device, dtype: torch.dtype | None, seed: int, split: str, copy: int
) -> Encode:
    """Images -> codes ``z``: draws from the posterior, in which image i draws from (seed, i, copy) and the split."""

    def encode(images: Tensor, index: Sequence[int]) -> dict[str, Tensor]:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            mean, log_variance = vae(to_float(images.to(device)))
        mean, std = mean.float(), (log_variance.float() / 2).exp()
        noise = randn_like(mean, image_generators(seed, index, copy, POSTERIOR[split]))
        return {"z": SCALE * (mean + std * noise)}

    return encode


def write_codes(
    path: str,
    encode: Encode,
    images: Enlarged,
    settings: dict[str, Any],
    batch_size: int,
    num_workers: int | None,
    desc: str,
) -> None:
    """Encode all images into one .npy file, unless it is there. Batches are kept beside it until it is complete.

    Every process of the group calls it, and encodes its share. ``settings`` are all that the codes depend on.
    """
    if runtime.on_first(lambda: os.path.exists(path)):
        return
    n, cache = len(images), FeatureCache(path, settings, runtime.world(), batch_size)
    encode_share(cache, encode, images, batch_size, num_workers, desc, flip=False)

    def join() -> None:
        with atomic_write(path) as file:
            for i, block in enumerate(cache.blocks()):
                if i == 0:
                    header = {"descr": "<f4", "fortran_order": False, "shape": (n, *block["z"].shape[1:])}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(block["z"].astype("<f4").tobytes())
        cache.discard()

    runtime.on_first(join)
