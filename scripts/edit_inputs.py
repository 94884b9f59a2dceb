"""What the programs of editing take: their options, images of one's own or of a data set, and a linear classifier."""

import glob
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from datasets.landmarks import match_landmarks, read_landmarks
from datasets.photos import Photo, photo_paths, read_photo
from datasets.toyfaces import ATTRIBUTES
from dbae.config import RuntimeConfig, UserError, option
from dbae.io import fingerprint
from dbae.methods.codes import PATHS
from eval.classifier import AttributeClassifier, read_classifier
from scripts.common import build_data, result_folder
from scripts.options import DataOptions
from scripts.trained import TrainedModel


@dataclass(frozen=True)
class ImageOptions(DataOptions, RuntimeConfig):
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


UNIT = (
    "unit of scales. median: 0 leaves an image as it is, 1 takes it to the median logit of real ones that have the "
    "attribute, -1 of those that have it not; scales: sqrt(latent) w/|w|, as the official code has it"
)


@dataclass(frozen=True)
class ManipulateOptions:
    """Which attributes to change, how far."""

    attributes: str = option("Male,Young", "names or numbers of attributes, separated by commas")
    scales: tuple[float, ...] = option(
        (), "strengths of the columns (default: -1,-0.5,0,0.5,1 with median; +-0.3, 0.15, for Young +-0.2, 0.1 else)"
    )
    strength: str = option("median", UNIT, ("median", "scales"))
    normalised: bool = option(False, "shift among codes of unit variance, as DiffAE does")
    fix_xT: bool | None = option(
        None, "keep x_T of the unedited image (default: DBAE decodes x_T from the edited code, DiffAE keeps it)"
    )
    classifier: str | None = option(None, "best.pt of a linear probe (default: beside the checkpoint, or its probe's)")

    def __post_init__(self) -> None:
        if not all(map(isfinite, self.scales)):
            raise UserError(f"scales: expected finite numbers, got {self.scales}")


@dataclass(frozen=True)
class OfficialManipulateOptions(ManipulateOptions):
    """The same as the official code has it."""

    strength: str = option("scales", UNIT, ("median", "scales"))
    fix_xT: bool | None = option(True, "keep x_T of the unedited image, as the official code does")


@dataclass(frozen=True)
class Images:
    """Images to edit. Photos are read again where a result is pasted, so that many large ones take no memory."""

    names: list[str]  # different ones, for the results
    index: Sequence[int]  # numbers for the random values: in the data set, or in the list of files
    pixels: Tensor  # uint8 [n, 3, H, W]: the squares that the model sees
    files: list[str]  # that the images are read from
    digest: str  # of the squares, and of whole photos
    photo: Callable[[int], Photo] | None = None  # photo i; None for images of a data set


def square(photo: Photo, size: int) -> Tensor:
    """The square of a photo that a model sees, uint8 [3, size, size]."""
    return torch.from_numpy(np.array(photo.crop(size))).permute(2, 0, 1)


def read_images(options: ImageOptions, size: int) -> Images:
    """The images that the options name. Raises UserError where a file of landmarks leaves one out."""
    if options.indices:
        data = build_data(options, size)
        wrong = [i for i in options.indices if not 0 <= i < len(data)]
        if wrong:
            raise UserError(f"indices: expected numbers from 0 to {len(data) - 1}, got {wrong[0]}")
        pixels = torch.stack([data[i][0] for i in options.indices])
        names = different([data.name_of(i) for i in options.indices])
        digest = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16]
        return Images(names, options.indices, pixels, list(data.files()), digest)

    paths = photo_paths(options.images)[: options.limit]
    files = [os.path.basename(path) for path in paths]
    points = match_landmarks(read_landmarks(options.landmarks), paths) if options.landmarks else [None] * len(paths)

    def photo(i: int) -> Photo:
        return read_photo(paths[i], points[i])

    names = different([os.path.splitext(name)[0] for name in files])
    pixels = torch.stack([square(photo(i), size) for i in range(len(paths))])
    digest = hashlib.sha256("\0".join(map(fingerprint, paths)).encode() + pixels.numpy().tobytes()).hexdigest()[:16]
    return Images(names, range(len(paths)), pixels, paths, digest, photo)


def different(names: list[str]) -> list[str]:
    """The names, with numbers where some are equal but for case, so that none is another's, whatever it looks like."""
    counts = Counter(name.casefold() for name in names)
    found, taken = [], set(counts)
    for i, name in enumerate(names):
        if counts[name.casefold()] > 1:
            name = next(new for k in count(i) if (new := f"{name}_{k}").casefold() not in taken)
        taken.add(name.casefold())
        found.append(name)
    return found


def find_classifier(
    trained: TrainedModel, model_path: str, typed: str | None, out: str | None = None
) -> AttributeClassifier | None:
    """The linear classifier of the model's codes: as typed, beside the checkpoint, or of a probe of it, or None.

    Probes are looked for below ``out``, then beside the checkpoint; the official protocol's comes before the exact one.
    40 unnamed rows are CelebA's attributes, as officially. Raises UserError where all there are are of other weights.
    """
    beside = os.path.join(os.path.dirname(model_path), "best.pt")
    places = [glob.escape(out), None] if out else [None]
    folders = [result_folder(glob.escape(model_path), "downstream_inference", "multitask_ema*", out=o) for o in places]
    probes = (os.path.join(folder, name) for folder in folders for name in ("best.pt", "best_model_exact.pt"))
    found = [beside, *chain.from_iterable(sorted(glob.glob(path)) for path in probes)]
    weights, refused = fingerprint(model_path), ""
    for path in [typed] if typed else filter(os.path.exists, found):
        classifier = read_classifier(path, trained.model.config.latent_dim, ATTRIBUTES)
        if classifier.weights is None:
            print(f"note: there is no best.json beside {path}, so nobody knows of which weights it is", file=sys.stderr)
        if classifier.weights in (None, weights):
            return classifier.to(trained.device)
        of = f"the weights {classifier.weights}" if classifier.weights else "weights that its JSON does not state"
        refused = refused or f"classifier: {path} is of {of}, not of {weights} ({model_path}); run infer_class_dbae.sh"
    if refused:
        raise UserError(refused)
    return None
