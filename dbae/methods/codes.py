"""Codes as vectors: the draw of a stochastic one, the way between two, the step along an attribute."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dbae.config import UserError


def draw_code(mu: Tensor, log_sigma: Tensor, noise: Tensor | None = None) -> Tensor:
    """``mu + (exp(log_sigma) + 0.01) eps`` for standard normal ``noise`` like mu [N, latent]; mu itself for None."""
    return mu if noise is None else mu + (log_sigma.exp() + 0.01) * noise


def lerp(z_1: Tensor, z_2: Tensor, fractions: Tensor) -> Tensor:
    """``(1 - l) z_1 + l z_2`` for every l of ``fractions`` [F]: codes [N, latent] -> [N, F, latent]."""
    part = fractions[:, None]
    return (1 - part) * z_1[:, None] + part * z_2[:, None]


def slerp(z_1: Tensor, z_2: Tensor, fractions: Tensor) -> Tensor:
    """The same along the arc between the two directions (Shoemake 1985), lengths interpolated; lerp where parallel."""
    unit_1, unit_2 = (F.normalize(z.double(), dim=1) for z in (z_1, z_2))
    angle = (unit_1 * unit_2).sum(dim=1).clamp(-1, 1).arccos()[:, None, None]
    part = fractions.double()[:, None]
    arc = ((1 - part) * angle).sin() * unit_1[:, None] + (part * angle).sin() * unit_2[:, None]
    length = (1 - part) * z_1.double().norm(dim=1)[:, None, None] + part * z_2.double().norm(dim=1)[:, None, None]
    straight = lerp(z_1, z_2, fractions)
    return torch.where(angle.sin() > 1e-6, (arc / angle.sin() * length).to(z_1.dtype), straight)


PATHS = {"linear": lerp, "spherical": slerp}


def attribute_step(w: Tensor, std: Tensor | None = None) -> Tensor:
    """What scale 1 adds to a code: ``sqrt(latent) w / |w|`` for the row w [latent] of a linear classifier.

    With ``std`` [latent], the standard deviation of the codes, the same step is taken among codes of unit variance, as
    DiffAE does, and expressed in codes as they are: a classifier of ``z / std`` has the row ``std w``.
    Raises UserError for a row of zeros.
    """
    if not w.any():
        raise UserError("direction: expected one that is not zero everywhere")
    if std is None:
        return len(w) ** 0.5 * w / w.norm()
    return std * attribute_step(std * w)
