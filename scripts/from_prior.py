"""Codes from a latent prior: its options, its file, and the noise that it is sampled from."""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dbae import runtime
from dbae.checkpoint import NAME, load_model, stated_config
from dbae.config import RuntimeConfig, SampleConfig, UserError, option, require_positive
from dbae.io import image_generators, listdir
from dbae.methods import DiffusionModel, LatentPrior
from scripts.cli import given
from scripts.common import result_folder
from scripts.conditional import CODE
from scripts.options import DataOptions
from scripts.trained import TrainedModel


@dataclass(frozen=True)
class FromPriorOptions(DataOptions, RuntimeConfig):
    """A latent prior, and how it is sampled."""

    prior: str | None = option(None, "weight file of the prior (default: the newest in sample_STEP/prior)")
    latent_steps: int = option(100, "steps of the prior's sampler, for each code")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("latent_steps", self.latent_steps)


def find_prior(options: FromPriorOptions) -> str:
    """Weight file of the prior, its newest average by default. Raises UserError where there is none."""
    if options.prior:
        return options.prior
    folder = result_folder(options.model_path, "prior", out=options.out)
    found = [match for match in map(NAME.fullmatch, listdir(folder)) if match and match["rate"] and not match["prefix"]]
    if not found:
        raise UserError(f"prior: none in {folder}; fit one with train_prior, or sample --codes gaussian or encoded")
    return os.path.join(folder, max(found, key=lambda match: int(match["step"]))[0])


def without_images(method: type[DiffusionModel], sampling: SampleConfig, typed: Any) -> SampleConfig:
    """The sampling of images that are not reconstructed: nothing is inverted. UserError where that was ``typed``."""
    asked = given(typed, SampleConfig, ("xT", "inversion_steps"))
    if asked and asked != {"xT": "random"}:
        raise UserError("xT, inversion_steps: expected none, as there is no image to invert")
    return dataclasses.replace(sampling, xT="random") if method.INVERTS else sampling


def load_prior(options: FromPriorOptions, weights: str, trained: TrainedModel) -> tuple[str, LatentPrior]:
    """Path and model of the prior. Raises UserError for one of another autoencoder, and steps that it does not have."""
    path = find_prior(options)
    prior, length = load_model(path, "prior", device=trained.device), trained.model.config.latent_dim
    if prior.config.latent_dim != length:
        raise UserError(f"prior: {path} is of codes of {prior.config.latent_dim} numbers, the model's have {length}")
    prior.check_sampling(prior.sampling(steps=options.latent_steps))
    content, match = stated_config(path) or {}, NAME.fullmatch(os.path.basename(path))
    total = content.get("train", {}).get("total_steps", 0)
    if match and int(match["step"]) < total:
        runtime.warn0(f"prior: {path} is not the last of {total} steps: its training has not ended")
    entry = content.get("data", {})
    if entry.get("weights", weights) != weights:
        raise UserError(f"prior: {path} is of the codes of other weights ({entry['weights']}, these are {weights})")
    return path, prior


def noise(options: FromPriorOptions, index: list[int], length: int, attempt: int) -> Tensor:
    """Standard normal values [n, length] of images by number and try, on the CPU."""
    generators = image_generators(options.seed, index, CODE, attempt)
    return torch.stack([torch.randn(length, generator=generator) for generator in generators])
