"""Codes as vectors: the draw of a stochastic one, the way between two, the step along an attribute."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dbae.config import UserError

SIGMA_MIN = 0.01  # added to the spread of a stochastic code


def draw_code(mu: Tensor, log_sigma: Tensor, noise: Tensor | None = None) -> Tensor:
    """``mu + (exp(log_sigma) + 0.01) eps`` for standard normal ``noise`` like mu [N, latent]; mu itself for None."""
    return mu if noise is None else mu + (log_sigma.exp() + SIGMA_MIN) * noise


def lerp(z_1: Tensor, z_2: Tensor, fractions: Tensor) -> Tensor:
    """``(1 - l) z_1 + l z_2`` for every l of ``fractions`` [F] or [N, F]: codes [N, latent] -> [N, F, latent]."""
    part = fractions[..., None]
    return ((1 - part) * z_1[:, None] + part * z_2[:, None]).to(z_1.dtype)


def slerp(x_1: Tensor, x_2: Tensor, fractions: Tensor) -> Tensor:
    """The same for vectors [N, ...] along the arc between them (Shoemake 1985); lerp where they are parallel.

    ``(sin((1 - l) a) x_1 + sin(l a) x_2) / sin a``, with the angle ``a`` between the two.
    """
    flat_1, flat_2 = (x.double().flatten(1) for x in (x_1, x_2))
    angle = F.cosine_similarity(flat_1, flat_2).clamp(-1, 1).arccos()[:, None, None]
    part = fractions.double()[..., None]
    arc = (((1 - part) * angle).sin() * flat_1[:, None] + (part * angle).sin() * flat_2[:, None]) / angle.sin()
    way = torch.where(angle.sin() > 1e-6, arc, lerp(flat_1, flat_2, fractions.double()))
    return way.to(x_1.dtype).unflatten(2, x_1.shape[1:])


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
