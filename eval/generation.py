"""Distances between sets of features [n, d], of real and of generated images or of codes."""

import numpy as np
from numpy.typing import ArrayLike

from dbae.config import UserError


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Frechet distance between Gaussians fitted to two sets of features [n, d] (Dowson & Landau, 1982).

    ``|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))`` with unbiased covariances. The trace of the root is the sum of
    the singular values of ``C_x^(1/2) C_y^(1/2)``, so that no root of a matrix that is not symmetric is needed. Raises
    UserError for fewer than two rows, or values that are not finite.
    """
    (mean_x, root_x), (mean_y, root_y) = moments(x), moments(y)
    cross = np.linalg.svd(root_x @ root_y, compute_uv=False).sum()
    return float(np.square(mean_x - mean_y).sum() + np.square(root_x).sum() + np.square(root_y).sum() - 2 * cross)


def moments(features: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] of features [n, d], and the symmetric root [d, d] of their unbiased covariance, both float64."""
    features = np.asarray(features, np.float64)
    if len(features) < 2 or not np.isfinite(features).all():
        raise UserError(f"features: expected two rows or more of finite numbers, got {list(features.shape)}")
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(features, rowvar=False)))
    return features.mean(axis=0), (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def gaussian(features: ArrayLike, noise: ArrayLike) -> np.ndarray:
    """Draws [m, d], float32, from the Gaussian fitted to features [n, d], for standard normal ``noise`` [m, d]."""
    mean, root = moments(features)
    return (mean + np.asarray(noise, np.float64) @ root).astype(np.float32)
