"""Distances between sets of features [n, d], of real and of generated images or of codes: pure functions of arrays.

All run in blocks: two sets of 50,000 x 2,048 features fit into 4 GB. Sums that cancel are in float64.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from dbae.config import UserError
from eval import neighbours

# Frechet distance


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Frechet distance between Gaussians fitted to two sets of features [n, d] (Dowson & Landau, 1982).

    ``|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))`` with unbiased covariances. For any ``R^T R = C`` the trace of
    the root is the sum of the singular values of ``R_x R_y^T``, so that no root of a matrix that is not symmetric is
    needed; for fewer rows than numbers, R are the centred rows themselves. Raises UserError for fewer than two rows, or
    values that are not finite.
    """
    (mean_x, root_x), (mean_y, root_y) = _factor(x), _factor(y)
    cross = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    return float(np.square(mean_x - mean_y).sum() + np.square(root_x).sum() + np.square(root_y).sum() - 2 * cross)


def frechet_at_half(x: ArrayLike, y: ArrayLike, seed: int = 0) -> float:
    """Mean of the Frechet distances of two disjoint halves of x to as many of y, at random.

    The bias of the distance is c/n to first order, so twice ``frechet_distance`` less this is extrapolated to 1/n = 0
    (Chong & Forsyth, 2020).
    """
    rng = np.random.default_rng(seed)
    halves = [np.array_split(np.asarray(each)[rng.permutation(len(each))], 2) for each in (x, y)]
    return float(np.mean([frechet_distance(*pair) for pair in zip(*halves, strict=True)]))


def moments(features: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] of features [n, d], and the symmetric root [d, d] of their unbiased covariance, both float64."""
    features = _checked(features)
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = sum(rows.T @ rows for rows in _centred(features, mean)) / (len(features) - 1)
    values, vectors = np.linalg.eigh(covariance)
    return mean, (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def gaussian(features: ArrayLike, noise: ArrayLike) -> np.ndarray:
    """Draws [m, d], float32, from the Gaussian fitted to features [n, d], for standard normal ``noise`` [m, d]."""
    return fit_gaussian(features)(noise)


def fit_gaussian(features: ArrayLike) -> Callable[[ArrayLike], np.ndarray]:
    """The same as a function of the noise, for many draws from one Gaussian."""
    mean, root = moments(features)
    return lambda noise: (mean + np.asarray(noise, np.float64) @ root).astype(np.float32)


def _factor(features: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d], and R [min(n, d), d] with the unbiased covariance ``R^T R``."""
    features = _checked(features)
    if len(features) > features.shape[1]:
        return moments(features)
    mean = features.mean(axis=0, dtype=np.float64)
    return mean, (features - mean) / np.sqrt(len(features) - 1)


def _checked(features: ArrayLike, rows: int = 2) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < rows or not np.isfinite(features.sum(axis=0, dtype=np.float64)).all():
        raise UserError(f"features: expected {rows} rows or more of finite numbers, got {list(features.shape)}")
    return features


def _centred(features: np.ndarray, mean: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of rows less their mean, float64."""
    return (features[first : first + 4096] - mean for first in range(0, len(features), 4096))


# Kernel distance


class Kid(NamedTuple):
    """Mean of the estimates on ``subsets`` subsets of ``size`` rows, and their standard deviation."""

    mean: float
    std: float
    subsets: int
    size: int


def kernel_distance(x: ArrayLike, y: ArrayLike, subsets: int = 100, size: int = 1000, seed: int = 0) -> Kid:
    """Unbiased squared MMD with the kernel ``(x y / d + 1)^3``: KID (Binkowski et al., 2018), averaged over subsets.

    Subsets are drawn without replacement. Of sets that have no more rows than ``size`` all take part, at once if both
    are as small. It may be negative.
    """
    x, y = _checked(x), _checked(y)
    size = min(size, len(x), len(y))
    if len(x) == len(y) == size:
        subsets = 1  # any other would be the same
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        a, b = (each[rng.choice(len(each), size, replace=False)].astype(np.float64) for each in (x, y))
        aa, bb, ab = (_cubic(*pair) for pair in ((a, a), (b, b), (a, b)))
        within = (aa.sum() - aa.trace() + bb.sum() - bb.trace()) / (size * (size - 1))
        found.append(within - 2 * ab.mean())
    return Kid(float(np.mean(found)), float(np.std(found)), subsets, size)


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    kernel = x @ y.T
    kernel /= x.shape[1]
    kernel += 1
    return kernel * kernel * kernel  # a power is a hundred times as slow


# Nearest neighbours


def nearest(
    x: ArrayLike, y: ArrayLike, k: int = 1, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Distances [n, k] to the k nearest rows of y for each row of x, and their numbers [n, k].

    Raises UserError where y has too few rows.
    """
    x, y = _checked(x, 1), _checked(y, k)
    squared, numbers = neighbours.nearest(*neighbours.prepared(y, x, y, device=device), k)
    return squared.sqrt().cpu().numpy(), numbers.cpu().numpy()


def precision_recall(
    real: ArrayLike, fake: ArrayLike, k: int = 3, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020), by balls.

    A ball around a row reaches to its k-th neighbour among the others of its set, inclusively. ``precision``: share of
    fakes in the ball of any real; ``recall``: of reals in the ball of any fake; ``density``: balls of reals around a
    fake, over k; ``coverage``: share of reals with a fake in their ball. Raises UserError for k rows or fewer.
    """
    real, fake = _checked(real, k + 1), _checked(fake, k + 1)
    found = neighbours.balls(*neighbours.prepared(real, real, fake, device=device), k)
    return {
        "precision": int(found.precise.sum()) / len(fake),
        "recall": int(found.recalled.sum()) / len(real),
        "density": found.inside / (k * len(fake)),
        "coverage": int(found.covered.sum()) / len(real),
    }


def memorisation(sampled: ArrayLike, held_out: ArrayLike, train: ArrayLike) -> float | None:
    """Median distance of samples to their nearest training rows, over that of held-out rows; 0 where they repeat them.

    Much below 1, samples lie nearer to what was trained on than new real data do. None where held-out rows are
    themselves among the training rows.
    """
    here, there = (float(np.median(nearest(each, train)[0])) for each in (sampled, held_out))
    return here / there if there else None
