"""Distances between sets of features [n, d], of real and of generated images or of codes: pure functions of arrays.

All run in blocks: two sets of 50,000 x 2,048 features fit into 4 GB. Sums that cancel are in float64.
"""

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dbae.config import UserError

BLOCK = 1 << 25  # distances that are in memory at once
PAIRS = 1 << 10  # pairs of rows at a time, which a processor's cache holds
SPARE = 4  # candidates beside the k nearest, as the distances that choose them are rounded


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
    mean, root = moments(features)
    return (mean + np.asarray(noise, np.float64) @ root).astype(np.float32)


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
    kernel = x @ y.T / x.shape[1] + 1
    return kernel * kernel * kernel  # a power is a hundred times as slow


# Nearest neighbours: exact, though most pairs are told apart by few numbers


def nearest(
    x: ArrayLike, y: ArrayLike, k: int = 1, itself: bool = True, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Distances [n, k] to the k nearest rows of y for each row of x, and their numbers [n, k].

    Without ``itself`` row i of y is no neighbour of row i of x. Raises UserError where y has too few rows.
    """
    y = _checked(y, k + (not itself))
    squared, numbers = _nearest(*_prepared(y, _checked(x, 1), y, device=device), k, itself)
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
    reals, fakes = _prepared(real, real, fake, device=device)
    radius_real, radius_fake = (_nearest(each, each, k, itself=False)[0][:, -1] for each in (reals, fakes))
    covered = torch.zeros(len(real), dtype=torch.bool, device=device)
    recalled, precise, inside = covered.clone(), 0, 0
    for rows in _blocks(fakes, reals):
        limits = radius_real[None], radius_fake[rows, None]
        squared = _distances(fakes, reals, rows, _squared(fakes.short[rows], reals.short), limits)
        near_real, near_fake = (squared <= limit for limit in limits)
        precise += int(near_real.any(1).sum())
        inside += int(near_real.count_nonzero())  # ten times as fast as a sum
        covered |= near_real.any(0)
        recalled |= near_fake.any(0)
    return {
        "precision": precise / len(fake),
        "recall": int(recalled.sum()) / len(real),
        "density": inside / (k * len(fake)),
        "coverage": int(covered.sum()) / len(real),
    }


def memorisation(sampled: ArrayLike, held_out: ArrayLike, train: ArrayLike) -> float | None:
    """Median distance of samples to their nearest training rows, over that of held-out rows; 0 where they repeat them.

    Much below 1, samples lie nearer to what was trained on than new real data do. None where held-out rows are
    themselves among the training rows.
    """
    here, there = (float(np.median(nearest(each, train)[0])) for each in (sampled, held_out))
    return here / there if there else None


class _Rows(NamedTuple):
    """Features [n, d] less a mean; and [n, q + 1]: along q directions, and the length of the rest.

    Distances of the short ones are never longer: ``(|u| - |v|)^2 <= |u - v|^2`` for the rest u, v of two rows.
    """

    full: Tensor
    short: Tensor
    longest: float  # squared length


def _prepared(origin: np.ndarray, *features: np.ndarray, device: torch.device | str) -> list[_Rows]:
    """Features less the mean of ``origin``, which costs distances fewer digits, and along its main directions."""
    mean = origin.mean(axis=0, dtype=np.float64).astype(np.float32)
    some = torch.from_numpy(np.asarray(origin[:: 1 + len(origin) // 4096], np.float32) - mean).to(device)
    axes = torch.linalg.qr(some[: max(16, some.shape[1] // 8)].T)[0]
    for _ in range(2):  # subspace iteration: any directions would do, these leave little
        axes = torch.linalg.qr(some.T @ (some @ axes))[0]
    found = []
    for each in features:
        full = torch.from_numpy(np.asarray(each, np.float32) - mean).to(device)
        short = full @ axes
        lengths = full.square().sum(1)
        rest = (lengths - short.square().sum(1)).clamp(min=0).sqrt()
        found.append(_Rows(full, torch.cat((short, rest[:, None]), 1), float(lengths.max())))
    return found


def _blocks(x: _Rows, y: _Rows) -> Iterator[slice]:
    """Rows of x whose distances to all of y fit into memory."""
    size = min(1024, max(1, BLOCK // len(y.full)))
    return (slice(first, min(first + size, len(x.full))) for first in range(0, len(x.full), size))


def _nearest(x: _Rows, y: _Rows, k: int, itself: bool) -> tuple[Tensor, Tensor]:
    """Squared distances [n, k] and numbers [n, k] of the k nearest rows of y."""
    found, count = [], min(k + SPARE, len(y.full) - (not itself))
    for rows in _blocks(x, y):

        def best(squared: Tensor, rows: slice = rows) -> tuple[Tensor, Tensor]:
            if not itself:
                squared[:, rows].fill_diagonal_(torch.inf)
            numbers = squared.topk(count, largest=False).indices
            own = torch.arange(len(numbers), device=numbers.device).repeat_interleave(count)
            exact = _exact(x.full[rows], y.full, own, numbers.flatten()).view_as(squared[:, :count])
            exact, order = exact.sort(stable=True)
            return exact[:, :k], numbers.gather(1, order)[:, :k]

        short = _squared(x.short[rows], y.short)
        limit = best(short)[0][:, -1:]  # no k-th neighbour is farther away
        found.append(best(_distances(x, y, rows, short, (limit,))))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def _distances(x: _Rows, y: _Rows, rows: slice, short: Tensor, limits: tuple[Tensor, ...]) -> Tensor:
    """Squared distances [b, m] of some rows of x that are right to compare with ``limits``, which broadcast to [b, m].

    Pairs whose ``short`` distance [b, m] is beyond all limits are beyond them. The others are looked at one by one, or,
    if they are many, as a product of matrices, and one by one where its rounding could matter.
    """
    part, error = x.full[rows], 64 * torch.finfo(torch.float32).eps * max(x.longest, y.longest)
    squared, close = short, reduce(torch.logical_or, [short <= limit + error for limit in limits])
    if close.count_nonzero() > squared.numel() / 256:
        squared = _squared(part, y.full)
        close = reduce(torch.logical_or, [(squared - limit).abs_() <= error for limit in limits])
    i, j = close.nonzero(as_tuple=True)
    squared[i, j] = _exact(part, y.full, i, j)
    return squared


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances [b, m] of all rows, rounded: where rows are much the same, to anything near 0."""
    return torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1, keepdim=True))


def _exact(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Squared distances [p] of the rows i [p] of x and j [p] of y, from differences."""
    pairs = zip(i.split(PAIRS), j.split(PAIRS), strict=True)
    return torch.cat([x[a].sub_(y[b]).square_().sum(1) for a, b in pairs])
