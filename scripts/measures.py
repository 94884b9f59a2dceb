"""What the measures of generated images share: the samples, the real images, and features of both from a cache."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets import CHOICES, ImageDataset, build
from datasets.images import BadImage, decode, read_bytes
from datasets.sets import FolderImages
from datasets.tolerant import Tolerant
from dbae.config import UserError, check_numbers, option
from dbae.io import image_generators
from eval.arrays import read_arrays
from eval.features import Encode, FeatureCache
from eval.networks import NETWORKS, FeatureNetwork
from scripts.conditional import of_class
from scripts.encoding import encode_to_file
from scripts.options import ImageOptions, check_given

FLIPS = ("none", "random")


@dataclass(frozen=True)
class ComparisonOptions(ImageOptions):
    """Samples, and the real images that they are compared with. Raises UserError for values out of range."""

    sample_path: str = option("", "folder of images, such as sample.py writes, or an .npz of uint8 [n, H, W, 3]")
    dataset: str = option("", "real images: a data set, or folder:PATH, read at the samples' size", (), "reference")
    real: str | None = option(None, "folder or .npz of real images of the samples' size, in place of a data set")
    split: str = option("train", "part of the data set; all: the whole", CHOICES)
    class_name: str = option("", "only real images with this label; '!LABEL': only those without it", alias="class")
    num: int | None = option(None, "only the first N samples")
    num_real: int | None = option(None, "only the first N real images (DiffAE: 50000)")
    features: str = option("", f"feature network: {', '.join(NETWORKS)}")
    weights: str | None = option(None, "file of the network's tensors")
    resizing: str | None = option(None, "resizing to the network's input, in place of its own (docs/generation.md)")
    cache: str | None = option(None, "folder of cached features (default: features, beside sample_path)")
    batch_size: int = option(64, "images that pass through the network together")
    device: str = option("auto", "auto, cpu or cuda")
    seed: int = option(0, "seed of every random number")

    def __post_init__(self) -> None:
        check_given(self, "sample_path")
        if bool(self.dataset) == bool(self.real):
            raise UserError("dataset, real: expected one of them, got " + ("both" if self.real else "none"))
        if self.real and self.class_name:
            raise UserError("class: expected with --dataset, got it with --real")
        check_numbers(self, ["num", "num_real", "batch_size"], ["num_workers", "seed"])

    @property
    def cache_folder(self) -> str:
        return self.cache or os.path.join(os.path.dirname(os.path.abspath(self.sample_path)), "features")


class SampledFolder(FolderImages):
    """A folder of square images of one size, read as they are; beside our settings.json only numbered ones count."""

    def __init__(self, root: str) -> None:
        super().__init__(root, "all", 1)
        if os.path.exists(os.path.join(root, "settings.json")):
            self.indices = [i for i in self.indices if self.names[i].removesuffix(".png").isdecimal()]
        if not len(self.indices):
            raise UserError(f"{root}: expected images like 000000.png, there are none")
        self.size = self._pixels(self.indices[0]).width
        self.image(self.indices[0])

    def image(self, index: int) -> Image.Image:
        image = self._pixels(index)
        if image.size != (self.size, self.size):
            raise BadImage(f"it is {image.width}x{image.height}, expected {self.size}x{self.size} as all samples")
        return image

    def _pixels(self, index: int) -> Image.Image:
        return decode(read_bytes(os.path.join(self.title, self.names[index])))


class SampledArray(ImageDataset):
    """The images of an .npz, under ``arr_0`` or ``samples``, uint8 [n, s, s, 3]."""

    def __init__(self, path: str) -> None:
        arrays = read_arrays(path)[0]
        self.pixels = arrays.get("arr_0", arrays.get("samples", np.empty(0)))
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise UserError(f"{path}: expected an array arr_0 of uint8 [n, s, s, 3], got {self.pixels.dtype} {shape}")
        super().__init__(path, shape[1], range(len(self.pixels)))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        return f"{index:06d}"

    def files(self) -> list[str]:
        return [self.title]


def open_samples(path: str, num: int | None = None) -> ImageDataset:
    """The first ``num`` images of a folder or an .npz. Raises UserError where there are fewer, or none of one size."""
    try:
        data = SampledArray(path) if path.endswith(".npz") else SampledFolder(path)
    except (BadImage, OSError) as error:
        raise UserError(f"{path}: {error}") from None
    return first(data, num)


def first(data: ImageDataset, num: int | None) -> ImageDataset:
    """The first ``num`` images. Raises UserError where there are fewer."""
    if num is not None and num > len(data):
        raise UserError(f"{data.title}: expected {num} images or more, there are {len(data)}")
    return data if num is None else data.part(range(num))


def open_reals(options: ComparisonOptions, size: int, split: str | None = None) -> ImageDataset:
    """The real images at the samples' size, of the split that the options name or of another one."""
    if options.real:
        data = open_samples(options.real)
        if data.size != size:
            raise UserError(f"{options.real}: expected images of {size} pixels as the samples, got {data.size}")
        return data
    data = build(options.dataset, split or options.split, size, options.data_root, options.data_dir)
    if not options.class_name:
        return data
    has = of_class(data.targets("binary"), options.class_name)
    return data.part(has.nonzero().flatten().tolist())


def network_encoder(network: FeatureNetwork, flip: str = "none", seed: int = 0) -> Encode:
    """Features of images; with ``flip`` random each is mirrored or not, by its number."""

    def encode(images: Tensor, index: list[int]) -> dict[str, Tensor]:
        if flip == "random":
            coins = [torch.rand(1, generator=each).item() < 0.5 for each in image_generators(seed, index)]
            images = torch.where(torch.tensor(coins)[:, None, None, None], images.flip(3), images)
        return {"z": network(images)}

    return encode


def cached(
    options: ComparisonOptions, encode: Encode, about: dict[str, Any], data: ImageDataset, name: str
) -> np.ndarray:
    """Features [n, d] of all images, from the cache, where they are kept under what they depend on."""
    settings = {**about, **data.identity(), "flip": False}
    path = os.path.join(options.cache_folder, f"{name}_{FeatureCache('', settings).key}.npz")
    encode_to_file(path, encode, Tolerant(data), settings, options.batch_size, options.num_workers, name)
    return read_arrays(path)[0]["z"]


def features_of(
    options: ComparisonOptions, network: FeatureNetwork, data: ImageDataset, what: str, flip: str = "none"
) -> np.ndarray:
    """The network's features [n, d] of all images, from the cache."""
    about = {**network.about, "flipped": [flip, options.seed] if flip != "none" else flip}
    encode = network_encoder(network, flip, options.seed)
    return cached(options, encode, about, data, f"{what}_{network.name}")
