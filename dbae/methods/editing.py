"""Moves among codes: between two of them, and along a direction. Pure functions of tensors."""

import torch
from torch import Tensor


def lerp(z_1: Tensor, z_2: Tensor, fractions: Tensor) -> Tensor:
    """``(1 - l) z_1 + l z_2`` for every l of ``fractions`` [F]: codes [N, latent] -> [N, F, latent]."""
    part = fractions[:, None]
    return (1 - part) * z_1[:, None] + part * z_2[:, None]


def slerp(z_1: Tensor, z_2: Tensor, fractions: Tensor) -> Tensor:
    """The same along the arc between the two directions (Shoemake 1985), lengths interpolated; lerp where parallel."""
    unit_1, unit_2 = (torch.nn.functional.normalize(z.double(), dim=1) for z in (z_1, z_2))
    angle = (unit_1 * unit_2).sum(dim=1).clamp(-1, 1).arccos()[:, None, None]
    part = fractions.double()[:, None]
    arc = ((1 - part) * angle).sin() * unit_1[:, None] + (part * angle).sin() * unit_2[:, None]
    length = (1 - part) * z_1.double().norm(dim=1)[:, None, None] + part * z_2.double().norm(dim=1)[:, None, None]
    straight = lerp(z_1, z_2, fractions)
    return torch.where(angle.sin() > 1e-6, (arc / angle.sin() * length).to(z_1.dtype), straight)


PATHS = {"linear": lerp, "spherical": slerp}


def step(direction: Tensor) -> Tensor:
    """What scale 1 adds to a code: ``sqrt(latent) w / |w|`` for the row ``w`` [latent] of a linear classifier."""
    return len(direction) ** 0.5 * direction / direction.norm()


def normalised_step(direction: Tensor, std: Tensor) -> Tensor:
    """The same step taken among codes of unit variance, as DiffAE does, and expressed in codes as they are.

    ``std`` [latent] is the codes' standard deviation; a classifier of ``z / std`` has the row ``std w``.
    """
    return std * step(std * direction)


def along(z: Tensor, step: Tensor, scales: Tensor) -> Tensor:
    """``z + scale step``: codes [N, latent], scales [F] or one row per image [N, F] -> [N, F, latent]."""
    return z[:, None] + scales[..., None].expand(len(z), -1, 1) * step
