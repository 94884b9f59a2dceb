"""Options of the programs that make pictures from a few images."""

import os
from dataclasses import dataclass
from math import isfinite

from dbae.config import SampleConfig, UserError, option
from scripts.inputs import Inputs, Precision, result_folder

OFFICIAL_SCALES = {"Male": (-0.3, -0.15, 0.0, 0.15, 0.3), "Young": (-0.2, -0.1, 0.0, 0.1, 0.2)}


@dataclass(frozen=True)
class PictureOptions(Inputs, Precision):
    """Which images, and where the pictures go."""

    images: tuple[str, ...] = option((), "image files or folders (default: two of assets/, as the official code)")
    indices: tuple[int, ...] = option((), "images of DATASET's SPLIT by number instead, such as 3,14")
    landmarks: str | None = option(None, "JSON or CSV with five landmarks per image, for FFHQ's alignment")
    out: str | None = option(None, "folder to write to (default: beside the checkpoint)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images and self.indices:
            raise UserError("indices: expected either images or indices, got both")
        if self.landmarks and self.indices:
            raise UserError("landmarks: expected with images, got them with indices")


@dataclass(frozen=True)
class WayOptions:
    """How to go from one image to the next."""

    frames: int = option(11, "points from one image to the next, both included")
    path: str = option("linear", "way between two codes", ("linear", "spherical"))

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise UserError(f"frames: expected at least 2, got {self.frames}")


@dataclass(frozen=True)
class AttributeOptions:
    """Which attributes to change, how far."""

    attributes: str = option("Male,Young", "names or numbers of attributes, separated by commas")
    scales: tuple[float, ...] = option((), "factors of sqrt(latent) w/|w| (default: +-0.3, 0.15; Young +-0.2, 0.1)")
    strength: str = option("scales", "scales, or up to the median of real positives, per image", ("scales", "median"))
    normalised: bool = option(False, "move among codes of unit variance, as DiffAE does")
    fix_xT: bool = option(True, "keep the endpoint of the unedited code, as the official code does")
    classifier: str | None = option(None, "best.pt of a linear probe (default: beside the checkpoint, or its probe's)")

    def __post_init__(self) -> None:
        if self.strength == "median" and self.scales:
            raise UserError("scales: expected none with --strength median, which finds them")
        if not all(map(isfinite, self.scales)):
            raise UserError(f"scales: expected finite numbers, got {self.scales}")


@dataclass(frozen=True)
class EditOptions(Inputs, Precision):
    """Own photos, and where the results go."""

    dataset: str = option("folder:.", "data set of calibrate")
    images: tuple[str, ...] = option((), "image files or folders")
    landmarks: str | None = option(None, "JSON or CSV with five landmarks per image, for FFHQ's alignment")
    paste: bool = option(False, "also put every result back into its photo")
    out: str = option("edited", "folder to write to")


def picture_folder(options: PictureOptions, kind: str, sampling: SampleConfig) -> str:
    """Where the official code would write: ``sample_{step}/{kind}_{settings}`` beside the checkpoint."""
    return options.out or result_folder(options.model_path, f"{kind}_{sampling.label}")


def find_classifier(model_path: str, given: str | None) -> str:
    """Path of the linear probe: as given, beside the checkpoint, or written by a probe of it. UserError for none."""
    import glob

    if given:
        return given
    probes = os.path.join("downstream_inference", "multitask_ema*", "best.pt")
    beside = os.path.join(os.path.dirname(model_path), "best.pt")
    found = [beside, *sorted(glob.glob(result_folder(glob.escape(model_path), probes)))]
    path = next((path for path in found if os.path.exists(path)), None)
    if path is None:
        raise UserError(f"classifier: no {beside} and no probe of {model_path}; run infer_class_dbae.sh or give one")
    return path


def stem(names: list[str], *details: str) -> str:
    """File name of a picture: what it shows, then how."""
    shown = "-".join(names) if len(names) <= 4 else f"{names[0]}-to-{names[-1]}-of-{len(names)}"
    return "_".join(part for part in (shown, *details) if part)
