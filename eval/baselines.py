"""Codes without learning a model: what a probe reads from small pixels, and from principal components."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dbae.config import UserError


def reduced(x: Tensor, size: int) -> Tensor:
    """Images [n, 3, s, s] -> [n, 3 size^2]: area averages over a grid of size x size. Raises UserError if s < size."""
    if x.ndim != 4 or min(x.shape[2:]) < size:
        raise UserError(f"pixels: expected images [n, 3, s, s] with s of at least {size}, got {list(x.shape)}")
    return F.interpolate(x, size=(size, size), mode="area").flatten(1)


def pca(rows: np.ndarray, dim: int, limit: int = 20_000, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Fit on ``rows`` [n, p]; the result maps rows [m, p] to their ``dim`` principal components [m, dim].

    Of more than ``limit`` rows a random choice is used. Randomised PCA, not whitened. Raises UserError for a dimension
    that the rows do not have.
    """
    from sklearn.decomposition import PCA

    chosen = rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit])]
    if not 1 <= dim <= min(chosen.shape):
        raise UserError(f"pca: expected a dimension of 1 to {min(chosen.shape)} (rows, values), got {dim}")
    model = PCA(dim, svd_solver="randomized", random_state=seed).fit(chosen)
    return lambda x: torch.from_numpy(model.transform(x.cpu().numpy())).float()
