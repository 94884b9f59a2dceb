"""Nearest neighbours and balls of features [n, d], exact: two sets of 50,000 x 2,048 fit into 4 GB.

Distances are looked at in tiles. A cheap product of matrices, whose rounding is bounded, decides most pairs; the rest
are computed from differences. Of one set with itself, each tile serves its rows and, transposed, its columns.
"""

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TILE = 1024  # rows and columns of a tile, which a processor's cache holds
FEW = 100  # a product of matrices takes about as long as differences of one pair in so many
TRIES = 16  # tiles in a row that a way to compare leaves open before it is given up
PAIRS = 256  # pairs of rows whose differences a processor's cache holds


class Level(NamedTuple):
    """One way to compute squared distances by ``|x|^2 + |y|^2 - 2 xy``, wrong by ``error (|x|^2 + |y|^2)`` at most."""

    rows: Tensor  # [n, w]
    lengths: Tensor  # [n], squared
    error: float
    lower: bool  # the distances are never longer than the true ones; otherwise they are the true ones


class Rows(NamedTuple):
    """Features [n, d] less a mean, float32, and ways to compare them, the cheapest first."""

    full: Tensor
    levels: list[Level]


class Ways:
    """The levels of two sets, the cheapest first, without those that did not decide a number of tiles in a row."""

    def __init__(self, x: Rows, y: Rows) -> None:
        self.levels, self.failed = list(zip(x.levels, y.levels, strict=True)), 0

    def note(self, decided: bool) -> None:
        """How the first of the levels fared; the last one always decides."""
        self.failed = 0 if decided else self.failed + 1
        if self.failed == TRIES and len(self.levels) > 1:
            del self.levels[0]
            self.failed = 0


class Neighbours(NamedTuple):
    """Squared distances [n, k] of the k nearest rows of y, ascending, and their numbers [n, k]."""

    squared: Tensor
    numbers: Tensor


def prepared(origin: np.ndarray, *features: np.ndarray, device: torch.device | str) -> list[Rows]:
    """Features less the mean of ``origin``, which costs distances fewer digits, and along its main directions.

    Along q orthonormal directions, with the length of what is left as one more number, distances are never longer:
    ``(|u| - |v|)^2 <= |u - v|^2`` for the rests u, v of two rows. That takes an eighth of the time, and decides most
    pairs where features are spread along few directions; where they are not, it is left out.
    """
    mean = origin.mean(axis=0, dtype=np.float64).astype(np.float32)
    some = torch.from_numpy(np.asarray(origin[:: 1 + len(origin) // 4096], np.float32) - mean).to(device)
    axes = torch.linalg.qr(some[: max(15, some.shape[1] // 8 - 1)].T)[0]
    for _ in range(2):  # subspace iteration: any directions would do, these leave little
        axes = torch.linalg.qr(some.T @ (some @ axes))[0]
    spread = 2 * float((some @ axes).square().sum()) > float(some.square().sum())
    half = torch.device(device).type == "cpu" and has_bfloat16()
    found = []
    for each in features:
        full = torch.from_numpy(np.asarray(each, np.float32) - mean).to(device)
        lengths, ways = full.square().sum(1), []
        if spread:
            short = full @ axes
            rest = (lengths - short.square().sum(1)).clamp(min=0).sqrt()
            ways.append(_level(torch.cat((short, rest[:, None]), 1), lengths, half, lower=True))
        ways += [_level(full, lengths, True)] if half else []
        found.append(Rows(full, [*ways, _level(full, lengths, False)]))
    return found


def has_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 faster than those of float32."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _level(rows: Tensor, lengths: Tensor, half: bool, lower: bool = False) -> Level:
    """Rounding of factors, r, and of a product, eps/2, moves ``2 xy`` by at most ``2 (2 r + r^2 + eps/2) |x| |y|``,
    and sums in float32 add little; ``2 |x| |y| <= |x|^2 + |y|^2``.
    """
    error = 64 * torch.finfo(torch.float32).eps
    if half:
        rounded = rows.bfloat16()
        off = (rows - rounded).square_().sum(1).div_(lengths).nan_to_num_(0).max().sqrt().item()
        rows, error = rounded, 1.01 * (2 * off + off**2 + torch.finfo(torch.bfloat16).eps / 2) + error
    return Level(rows, lengths, error, lower)


def nearest(x: Rows, y: Rows, k: int) -> Neighbours:
    """The k nearest rows of y for each row of x; for the very same set, the k nearest others."""
    n, device = len(x.full), x.full.device
    best = Neighbours(torch.full((n, k), torch.inf, device=device), torch.zeros(n, k, dtype=torch.int64, device=device))
    limit = torch.full((n,), torch.inf, device=device)  # no k-th neighbour is farther away
    ways = Ways(x, y)
    for i, j in _tiles(x, y):
        first, both = j.start == (i.start if x is y else 0), x is y and i != j
        if first:
            limit[i] = limit[i].minimum(_seeded(x, y, i, j, k))
        limits = (limit[i, None], limit[None, j]) if both else (limit[i, None],)
        _, a, b, exact = distances(x, y, i, j, limits, ways, inside=True)
        if x is y and first:
            others = a != b
            a, b, exact = a[others], b[others], exact[others]
        for rows, own, number in ((i, a, b + j.start), (j, b, a + i.start))[: 1 + both]:
            _merge(best, rows, own, exact, number)
            limit[rows] = limit[rows].minimum(best.squared[rows, -1])
    return best


def _tiles(x: Rows, y: Rows) -> Iterator[tuple[slice, slice]]:
    """Rows of x and rows of y; of a set with itself those on the diagonal come first, and those below it are left."""
    columns = [slice(first, min(first + TILE, len(y.full))) for first in range(0, len(y.full), TILE)]
    rows = [slice(first, min(first + TILE, len(x.full))) for first in range(0, len(x.full), TILE)]
    if x is y:
        yield from zip(rows, rows, strict=True)
    yield from ((i, j) for i in rows for j in columns if x is not y or i.start < j.start)


def _seeded(x: Rows, y: Rows, i: slice, j: slice, k: int) -> Tensor:
    """Squared distances [p] to the k-th nearest of some rows of y: the true k-th neighbour is no farther away.

    Which of them are nearest is read from rounded distances.
    """
    squared = _squared(x.levels[-2:][0], y.levels[-2:][0], i, j)
    if x is y:
        squared.fill_diagonal_(torch.inf)
    if squared.shape[1] - (x is y) < k:
        return squared.new_full((len(squared),), torch.inf)
    numbers = squared.topk(k, largest=False).indices.flatten()
    own = torch.arange(len(squared), device=numbers.device).repeat_interleave(k)
    return _exact(x.full[i], y.full[j], own, numbers).view(-1, k).amax(1)


def _merge(best: Neighbours, rows: slice, own: Tensor, squared: Tensor, numbers: Tensor) -> None:
    """Put pairs [p], of the rows ``rows.start + own``, into the k best of their rows."""
    n, k = best.squared[rows].shape
    own = torch.cat((torch.arange(n, device=own.device).repeat_interleave(k), own))
    squared = torch.cat((best.squared[rows].flatten(), squared))
    numbers = torch.cat((best.numbers[rows].flatten(), numbers))
    # By rows, and in each by distance: what was there and is as near comes first
    order = squared.argsort(stable=True)
    order = order[own[order].argsort(stable=True)]
    counts = own.bincount(minlength=n)
    place = torch.arange(len(own), device=own.device) - (counts.cumsum(0) - counts)[own[order]]
    kept = order[place < k]
    best.squared[rows], best.numbers[rows] = squared[kept].view(n, k), numbers[kept].view(n, k)


class Balls(NamedTuple):
    """Which fakes [m] lie in the ball of a real, which reals [n] in that of a fake, or have a fake in their own."""

    precise: Tensor
    recalled: Tensor
    covered: Tensor
    inside: int  # pairs of a fake and a real whose ball it is in


def balls(reals: Rows, fakes: Rows, k: int) -> Balls:
    """Balls around rows, each to the k-th nearest other of its set, inclusively."""
    radius_real, radius_fake = (nearest(each, each, k).squared[:, -1] for each in (reals, fakes))
    precise, covered = (torch.zeros_like(each, dtype=torch.bool) for each in (radius_fake, radius_real))
    recalled, inside, ways = covered.clone(), 0, Ways(fakes, reals)
    for i, j in _tiles(fakes, reals):
        limits = radius_real[None, j], radius_fake[i, None]
        squared = distances(fakes, reals, i, j, limits, ways, inside=False)[0]
        fake, real = (squared <= limits[0]).nonzero(as_tuple=True)
        precise[i][fake], covered[j][real] = True, True
        inside += len(fake)
        recalled[j][(squared <= limits[1]).nonzero(as_tuple=True)[1]] = True
    return Balls(precise, recalled, covered, inside)


def distances(
    x: Rows, y: Rows, i: slice, j: slice, limits: tuple[Tensor, ...], ways: Ways, inside: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared distances [p, q] of the rows i of x to the rows j of y, which are right to compare with ``limits``.

    Limits broadcast to [p, q]. Also the pairs [c] and [c] that were computed from differences, by their places in the
    tile, and their distances [c]: those that rounding leaves open, and with ``inside`` all within any limit.
    """
    for which, (u, v) in enumerate(list(ways.levels)):
        squared = _squared(u, v, i, j)
        error = u.error * u.lengths[i, None] + v.error * v.lengths[j]
        gaps = (squared - limit for limit in limits)
        if not inside and not u.lower:
            gaps = (gap.abs_() for gap in gaps)
        close = reduce(torch.logical_or, (gap <= error for gap in gaps))
        decided = bool(close.count_nonzero() * FEW <= close.numel())
        if which == 0:
            ways.note(decided)
        if decided:
            break
    a, b = close.nonzero(as_tuple=True)
    exact = _exact(x.full[i], y.full[j], a, b)
    squared[a, b] = exact
    return squared, a, b, exact


def _squared(u: Level, v: Level, i: slice, j: slice) -> Tensor:
    """Squared distances [p, q], rounded: where rows are much the same, to anything near 0."""
    product = (u.rows[i] @ v.rows[j].T).float()
    return product.mul_(-2).add_(u.lengths[i, None]).add_(v.lengths[j])


def _exact(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Squared distances [p] of the rows i [p] of x and j [p] of y, from differences."""
    pairs = zip(i.split(PAIRS), j.split(PAIRS), strict=True)
    return torch.cat([x.index_select(0, a).sub_(y.index_select(0, b)).square_().sum(1) for a, b in pairs])
