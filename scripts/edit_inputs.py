"""What the programs of editing take: their options, images of one's own or of a data set, and a linear classifier."""

import glob
import os
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from datasets.photos import Photo, photo_paths, read_landmarks, read_photo
from datasets.toyfaces import ATTRIBUTES
from dbae.config import UserError, option
from dbae.methods import AutoEncoder
from dbae.methods.codes import PATHS
from dbae.progress import progress_bar
from eval.classifier import AttributeClassifier, read_classifier
from scripts.common import DataOptions, RuntimeOptions, build_data, result_folder


@dataclass(frozen=True)
class ImageOptions(DataOptions, RuntimeOptions):
    """Which images, and where the results go. Raises UserError for options that exclude each other."""

    dataset: str = option("folder:.", "data set that --indices are of")
    images: tuple[str, ...] = option((), "image files or folders")
    indices: tuple[int, ...] = option((), "images of DATASET's SPLIT by number instead, such as 3,14")
    landmarks: str | None = option(None, "JSON or CSV with five landmarks per image, for FFHQ's alignment")
    paste: bool = option(False, "put every reconstructed or manipulated image back into its photo")
    out: str | None = option(None, "folder to write to (default: edited, or for an official command beside the model)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images and self.indices:
            raise UserError("indices: expected either images or indices, got both")
        for name in ("landmarks", "paste"):
            if getattr(self, name) and self.indices:
                raise UserError(f"{name}: expected with images, got it with indices")


@dataclass(frozen=True)
class InterpolateOptions:
    """How to go from one image to the next."""

    frames: int = option(11, "points from one image to the next, both included")
    path: str = option("linear", "path between two codes", tuple(PATHS))

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise UserError(f"frames: expected at least 2, got {self.frames}")


@dataclass(frozen=True)
class ManipulateOptions:
    """Which attributes to change, how far."""

    attributes: str = option("Male,Young", "names or numbers of attributes, separated by commas")
    scales: tuple[float, ...] = option((), "factors of sqrt(latent) w/|w| (default: +-0.3, 0.15; Young +-0.2, 0.1)")
    strength: str = option(
        "scales", "scales, or median: as far as the median logit of positives, per image", ("scales", "median")
    )
    normalised: bool = option(False, "shift among codes of unit variance, as DiffAE does")
    fix_xT: bool = option(True, "keep x_T of the unedited image, as the official code does")
    classifier: str | None = option(None, "best.pt of a linear probe (default: beside the checkpoint, or its probe's)")

    def __post_init__(self) -> None:
        if self.strength == "median" and self.scales:
            raise UserError("scales: expected none with --strength median, which finds them")
        if not all(map(isfinite, self.scales)):
            raise UserError(f"scales: expected finite numbers, got {self.scales}")


@dataclass(frozen=True)
class Images:
    """Images to edit. Photos are read again where a result is pasted, so that many large ones take no memory."""

    names: list[str]
    pixels: Tensor  # uint8 [n, 3, H, W]: the squares that the model sees
    photo: Callable[[int], Photo] | None = None  # photo i; None for images of a data set


def square(photo: Photo, size: int) -> Tensor:
    """The square of a photo that a model sees, uint8 [3, size, size]."""
    return torch.from_numpy(np.array(photo.crop(size))).permute(2, 0, 1)


def read_images(options: ImageOptions, size: int) -> Images:
    """The images that the options name. Raises UserError where a file of landmarks leaves one out."""
    if options.indices:
        data = build_data(options, size)
        wrong = next((i for i in options.indices if not 0 <= i < len(data)), None)
        if wrong is not None:
            raise UserError(f"indices: expected numbers from 0 to {len(data) - 1}, got {wrong}")
        return Images([data.name_of(i) for i in options.indices], torch.stack([data[i][0] for i in options.indices]))

    points = read_landmarks(options.landmarks) if options.landmarks else {}
    paths = photo_paths(options.images)[: options.limit]
    files = [os.path.basename(path) for path in paths]
    missing = next((name for name in files if options.landmarks and name not in points), None)
    if missing:
        raise UserError(f"landmarks: {options.landmarks} has none for {missing}")

    def photo(i: int) -> Photo:
        return read_photo(paths[i], points.get(files[i]))

    # Results are called after the files, numbered where two names are equal
    stems = [os.path.splitext(name)[0] for name in files]
    names = [f"{stem}_{i}" if stems.count(stem) > 1 else stem for i, stem in enumerate(stems)]
    squares = []
    with progress_bar(len(paths), "photo", "read", enabled=len(paths) >= 64) as bar:
        for i in range(len(paths)):
            squares.append(square(photo(i), size))
            bar.update()
    return Images(names, torch.stack(squares), photo)


def find_classifier(model_path: str, typed: str | None) -> str:
    """Path of the linear probe: as given, beside the checkpoint, or written by a probe of it. UserError for none."""
    if typed:
        return typed
    probes = os.path.join("downstream_inference", "multitask_ema*", "best.pt")
    beside = os.path.join(os.path.dirname(model_path), "best.pt")
    found = [beside, *sorted(glob.glob(result_folder(glob.escape(model_path), probes)))]
    path = next((path for path in found if os.path.exists(path)), None)
    if path is None:
        raise UserError(f"classifier: no {beside} and no probe of {model_path}; run infer_class_dbae.sh or give one")
    return path


def load_classifier(path: str, model: AutoEncoder, device: torch.device) -> AttributeClassifier:
    """A linear classifier of the model's codes; 40 unnamed rows are CelebA's attributes, as officially."""
    return read_classifier(path, model.config.latent_dim, ATTRIBUTES).to(device)
