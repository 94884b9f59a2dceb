"""Exponential solvers of the bridge: DBIM of orders 1 to 3, and a second-order solver with two calls per step.

The bridge ODE is linear but for the estimate ``D`` of ``x_0``. From ``s`` down to ``t``, with ``lam = log(b / c)``,

    x_t = (c_t / c_s) x_s + (a_t - a_s c_t / c_s) x_T + b_t int_{lam_s}^{lam_t} exp(lam - lam_t) D dlam,

so only ``D`` is approximated, by a polynomial in ``lam`` through estimates: a constant in the first order, which keeps
the noise that ``x_s`` implies. At ``t = 0``, where ``c = 0``, the result is ``D`` itself.

A solver is a list of rows, one per network call, computed in float64 before the first call.

DBIM: Zheng et al., Diffusion Bridge Implicit Models, ICLR 2025.  DBMSolver: arXiv 2605.05889.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dbae.bridge import Bridge


class Point(NamedTuple):
    """The bridge at time ``t``: ``x_t = a x_T + b x_0 + c eps``, and ``lam = log(b / c)``."""

    t: float
    a: float
    b: float
    c: float
    lam: float


class Row(NamedTuple):
    """One call: ``x <- k_x x + k_T x_T + k_D[0] D(x, t) + k_D[1] (the estimate before it) + ... + k_eps eps``."""

    t: float
    k_x: float
    k_T: float
    k_D: tuple[float, ...]
    k_eps: float = 0.0


def log_snr(bridge: Bridge, t: Tensor) -> Tensor:
    """``lam = log(b / c)`` at times ``t``, half the log of the bridge's signal-to-noise ratio; it falls with ``t``."""
    _, b, c = bridge.abc(t)
    return (b / c).log()


def time_at(bridge: Bridge, lam: Tensor) -> Tensor:
    """Inverse of ``log_snr`` between ``t_min`` and ``T``, by bisection to float64 precision; same shape as ``lam``."""
    low, high = torch.full_like(lam, bridge.t_min), torch.full_like(lam, bridge.T)
    for _ in range(60):
        middle = (low + high) / 2
        earlier = log_snr(bridge, middle) > lam
        low, high = torch.where(earlier, middle, low), torch.where(earlier, high, middle)
    return (low + high) / 2


def dbim(bridge: Bridge, ts: Tensor, eta: float = 0.0) -> list[Row]:
    """First order, one call per step: the noise that x implies is kept (``eta`` 0), or partly drawn anew (DBIM).

    What is drawn has standard deviation ``eta s_t sigma_t sqrt(1 - sigma_t^2 / sigma_s^2)``, which is 0 at ``t = 0``;
    with ``eta`` 1 the steps are the bridge's own Markov chain.
    """
    s, sigma = bridge.s_sigma(ts)
    drawn = eta * s[1:] * sigma[1:] * (1 - (sigma[1:] / sigma[:-1]) ** 2).sqrt()
    steps = zip(pairwise(_points(bridge, ts)), drawn.tolist(), strict=True)
    return [_first_order(start, end, w) for (start, end), w in steps]


def multistep(bridge: Bridge, ts: Tensor, order: int) -> list[Row]:
    """Order 2 or 3, one call per step: the polynomial goes through the newest ``order`` estimates (DBIM).

    The first steps have fewer estimates and so a lower order; a step to 0, infinitely long in ``lam``, has order 1.
    Steps that grow much longer in ``lam`` extrapolate too far: an even grid in ``lam`` is safe, one in ``t`` is not.
    """
    points, rows = _points(bridge, ts), []
    for i, (start, end) in enumerate(pairwise(points)):
        known = min(order, i + 1) if end.c > 0 else 1
        nodes = [point.lam - start.lam for point in points[i + 1 - known : i + 1][::-1]]
        rows.append(_row(start, end, [end.b * weight for weight in _weights(nodes, end.lam - start.lam)]))
    return rows


def two_call(bridge: Bridge, ts: Tensor) -> list[Row]:
    """Order 2, two calls per step: ``D`` is linear in ``lam`` through its values at the start and at a middle time, the
    geometric mean, which a first-order step reaches (the scheme of DBMSolver, with this integral).

    The second row starts from the middle, whose ``x`` was made with a constant ``D``, and makes up for the difference.
    A step to 0 has one call and order 1.
    """
    points, middles, rows = _points(bridge, ts), _points(bridge, (ts[:-1] * ts[1:]).sqrt()), []
    for start, middle, end in zip(points[:-1], middles, points[1:], strict=True):
        if end.c == 0:
            rows.append(_first_order(start, end))
            continue
        slope = _moment(1, end.lam - start.lam) / (middle.lam - start.lam)
        rest = _moment(0, end.lam - middle.lam) - slope
        rows += [_first_order(start, middle), _row(middle, end, (end.b * slope, end.b * rest))]
    return rows


# Every solver as a function (bridge, ts, eta) -> rows; eta is 0 for all but dbim.
SOLVERS: dict[str, Callable[[Bridge, Tensor, float], list[Row]]] = {
    "dbim": dbim,
    "dbim2": lambda bridge, ts, eta: multistep(bridge, ts, 2),
    "dbim3": lambda bridge, ts, eta: multistep(bridge, ts, 3),
    "dbm2": lambda bridge, ts, eta: two_call(bridge, ts),
    "one-step": lambda bridge, ts, eta: dbim(bridge, ts[[0, -1]]),
}


def booted(rows: Sequence[Row], bridge: Bridge, t: Tensor) -> list[Row]:
    """The rows with x at the first time ``t`` replaced by a draw ``a x_T + b D + c eps`` from the bridge's marginal.

    DBIM's booting noise. The estimate ``D(x_T, t)`` that it needs also serves the first step: no call is added.
    """
    (start,), first = _points(bridge, t[None]), rows[0]
    drawn = first._replace(
        k_x=0.0,
        k_T=first.k_T + first.k_x * start.a,
        k_D=(first.k_D[0] + first.k_x * start.b,),
        k_eps=math.hypot(first.k_eps, first.k_x * start.c),
    )
    return [drawn, *rows[1:]]


def follow(
    denoise: Callable[[Tensor, Tensor], Tensor], x_T: Tensor, rows: Sequence[Row], noise: Callable[[Tensor], Tensor]
) -> Tensor:
    """Apply the rows in turn, beginning with ``x = x_T`` [N, ...]; ``noise(x)`` is called where ``k_eps > 0``."""
    x, estimates = x_T, deque(maxlen=max(len(row.k_D) for row in rows))
    for row in rows:
        estimates.appendleft(denoise(x, x.new_full(x.shape[:1], row.t)))
        x = row.k_x * x + row.k_T * x_T
        for k, D_x in zip(row.k_D, estimates, strict=False):
            x = x + k * D_x
        if row.k_eps > 0:
            x = x + row.k_eps * noise(x)
    return x


def _points(bridge: Bridge, ts: Tensor) -> list[Point]:
    columns = (ts, *bridge.abc(ts), log_snr(bridge, ts))
    return [Point(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _row(start: Point, end: Point, k_D: Sequence[float], w: float = 0.0) -> Row:
    """The linear part from start to end; of the noise in x, ``sqrt(c^2 - w^2)`` is kept and ``w`` is drawn."""
    k_x = math.sqrt(max(end.c**2 - w**2, 0.0)) / start.c
    return Row(start.t, k_x, end.a - start.a * k_x, tuple(k_D), w)


def _first_order(start: Point, end: Point, w: float = 0.0) -> Row:
    row = _row(start, end, (), w)
    return row._replace(k_D=(end.b - start.b * row.k_x,))


def _moment(k: int, h: float) -> float:
    """``int_0^h exp(u - h) u^k du``."""
    return -math.expm1(-h) if k == 0 else h**k - k * _moment(k - 1, h)


def _weights(nodes: Sequence[float], h: float) -> list[float]:
    """Weights of the values at ``nodes`` that give ``int_0^h exp(u - h) p(u) du`` for every polynomial through them."""
    powers = range(len(nodes))
    system = torch.tensor([[node**k for node in nodes] for k in powers], dtype=torch.float64)
    return torch.linalg.solve(system, system.new_tensor([_moment(k, h) for k in powers])).tolist()
