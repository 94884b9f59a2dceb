"""Alignment and uniformity of features on the unit sphere (Wang and Isola, ICML 2020)."""

import torch
from torch import Tensor

TEMPERATURE = 2.0  # of the Gaussian potential between two features


def alignment(f: Tensor, g: Tensor) -> Tensor:
    """``mean |f_i - g_i|^2`` of two views [n, d] of the same images, L2-normalised: 0 where they agree, at most 4."""
    return (f - g).square().sum(dim=1).mean()


def uniformity(f: Tensor) -> Tensor:
    """``log mean_{i<j} exp(-2 |f_i - f_j|^2)`` of L2-normalised features [n, d]: 0 where all agree, at least -8.

    It depends on n, though weakly. Raises ValueError for fewer than two features, which have no pair.
    """
    if len(f) < 2:
        raise ValueError(f"uniformity: expected two features or more, got {len(f)}")
    return torch.pdist(f).square().mul(-TEMPERATURE).exp().mean().log()
