"""How far an image is from what a model has seen: its reconstruction error among those of the training images."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from dbae.checkpoint import step_of
from dbae.config import SampleConfig, UserError
from dbae.io import atomic_write
from scripts.editing import Editor

LISTED = 5  # images that are named
UNUSUAL = 99  # per cent of the training images that an unusual image is worse than


def measuring(editor: Editor) -> Editor:
    """The editor with the settings that errors are compared at: the mean code and ten Euler steps."""
    return dataclasses.replace(editor, sampling=SampleConfig(steps=10), latent="mean")


def errors(editor: Editor, images: Tensor) -> Tensor:
    """Mean squared error [n] on [0, 1] of reconstructions of uint8 images [n, 3, H, W]."""
    editor = measuring(editor)
    _, made = editor.generate(editor.encode(images), desc="compare")
    return ((made.float() - images.float()) / 255).square().mean(dim=(1, 2, 3))


def path_of(model_path: str) -> str:
    """Where the percentiles of a checkpoint stand."""
    return os.path.join(os.path.dirname(model_path), f"reconstruction_error_{step_of(model_path)}.json")


def calibrate(editor: Editor, batches: Iterable[Tensor], model_path: str, data: str) -> str:
    """Write the percentiles of the errors of training images, uint8 batches [n, 3, H, W]; returns the file's path."""
    found = torch.cat([errors(editor, images) for images in batches])
    percentiles = torch.quantile(found, torch.linspace(0, 1, 101)).tolist()
    with atomic_write(path_of(model_path), "w") as file:
        json.dump({"data": data, "images": len(found), "percentiles": percentiles}, file, indent=1)
    return path_of(model_path)


def percentiles(model_path: str) -> Tensor | None:
    """Percentiles 0 to 100 [101] of the training images' errors, or None where nobody calibrated."""
    try:
        with open(path_of(model_path)) as file:
            found = torch.tensor(json.load(file)["percentiles"], dtype=torch.float32)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        found = torch.empty(0)
    if found.shape != (101,):
        raise UserError(f"{path_of(model_path)}: expected 101 percentiles, as `edit calibrate` writes them")
    return found


def warnings(names: Sequence[str], found: Tensor, known: Tensor) -> Iterator[str]:
    """A line for the images that the model reconstructs worse than nearly all training images; few lines for many."""
    unusual = [(name, error) for name, error in zip(names, found.tolist(), strict=True) if error > known[UNUSUAL]]
    usual = f"{UNUSUAL} % of the training images are under {known[UNUSUAL]:.4f}"
    for name, error in unusual[:LISTED]:
        yield f"{name} is far from what the model has seen: reconstruction error {error:.4f}, {usual}"
    if len(unusual) > LISTED:
        yield f"so are {len(unusual) - LISTED} more of the {len(names)} images"
