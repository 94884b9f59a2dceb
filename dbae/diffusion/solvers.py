"""Samplers as linear updates of the state, computed in float64 before the first network call.

Every sampler here is linear in the state ``x``, the endpoint ``x_T``, the estimates ``D`` of ``x_0`` and fresh noise.
It is a list of ``Update`` rows, and the number of its network calls is the number of rows that have a time.

Exponential solvers (ddim, dbim*, dbm2, ddpm): the ODE of a process is linear but for ``D``. From ``s`` to ``t``, with
``lam = log(b / c)``,

    x_t = (c_t / c_s) x_s + (a_t - a_s c_t / c_s) x_T + b_t int_{lam_s}^{lam_t} exp(lam - lam_t) D dlam,

so only ``D`` is approximated, by a polynomial in ``lam`` through estimates: a constant in the first order, which keeps
the noise that ``x_s`` implies. Where ``lam`` is infinite at either end, the step has the first order.

DDPM: Ho et al. 2020.  DDIM: Song et al., ICLR 2021.  DBIM: Zheng et al., Diffusion Bridge Implicit Models, ICLR 2025.
DBMSolver: arXiv 2605.05889.  DDBM: Zhou et al., ICLR 2024.  EDM: Karras et al., NeurIPS 2022.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dbae.diffusion.process import Bridge, Process

GREATEST_CHURN = math.sqrt(2) - 1  # EDM's bound of the factor by which sigma is raised, less 1


class Update(NamedTuple):
    """``x <- sum_i k_x[i] x_i + k_T x_T + sum_j k_D[j] D_j + k_eps eps``.

    ``x_0`` is the state now, ``x_1`` the state before the previous update, and so on; ``D_0`` is the estimate from the
    state now at time ``t`` (of a chain an int), ``D_1`` the one before. Without ``t`` the network is not called.
    """

    t: float | None
    k_x: tuple[float, ...]
    k_T: float = 0.0
    k_D: tuple[float, ...] = ()
    k_eps: float = 0.0


class Point(NamedTuple):
    """The process at time ``t``: ``x_t = a x_T + b x_0 + c eps``, and ``lam = log(b / c)``."""

    t: float
    a: float
    b: float
    c: float
    lam: float


def euler(process: Process, ts: Tensor, churn: float, guidance: float, heun: bool = False) -> list[Update]:
    """Euler's or Heun's method on the drift in ``t``, preceded by a step of the SDE (DDBM, algorithm 1).

    The part ``churn`` of every step is taken by the SDE with Euler-Maruyama, the rest by the ODE.
    """
    start, end = ts[:-1], ts[1:]
    hat = start + churn * (end - start)
    ode, ode_end = _rows(process.drift(hat, guidance)), _rows(process.drift(end, guidance))
    sde = _rows(process.drift(start, guidance, stochastic=True))
    noise = (process.schedule.f_g2(start)[1] * (hat - start).abs()).sqrt()

    updates = []
    for i, (t, t_hat, t_end) in enumerate(_rows((start, hat, end))):
        # Stochastic part of the step: Euler-Maruyama from t to t_hat
        if churn > 0:
            k_x, k_T, k_D = ((t_hat - t) * k for k in sde[i])
            updates.append(Update(t, (1 + k_x,), k_T, (k_D,), noise[i].item()))

        # Euler step of the ODE over the rest
        dt = t_end - t_hat
        k_x, k_T, k_D = (dt * k for k in ode[i])
        updates.append(Update(t_hat, (1 + k_x,), k_T, (k_D,)))

        # Heun's correction: from the state before the Euler step, with the mean of the two drifts.
        # Not at t = 0, where the drift is singular
        if heun and t_end > 0:
            l_x, l_T, l_D = (dt * k for k in ode_end[i])
            updates.append(Update(t_end, (l_x / 2, 1 + k_x / 2), (k_T + l_T) / 2, (l_D / 2, k_D / 2)))
    return updates


def dbim(process: Process, ts: Tensor, order: int = 1, eta: float = 0.0) -> list[Update]:
    """One call per step: DDIM, and DBIM over a bridge. ``D`` is the polynomial through the newest ``order`` estimates.

    The first order keeps the noise that x implies (``eta`` 0, which on increasing times inverts the sampler), or draws
    it partly anew with standard deviation ``eta s_t sigma_t sqrt(1 - sigma_t^2 / sigma_s^2)``, which is 0 at the data.
    With ``eta`` 1 the steps are the Markov chain of the process: DDPM's.
    In orders 2 and 3 the first steps have fewer estimates. Steps that grow much longer in ``lam`` extrapolate too far:
    an even grid in ``lam`` is safe, one in ``t`` is not.
    """
    points, updates, drawn = _points(process, ts), [], [0.0] * len(ts)
    if eta > 0:
        (_, sigma), (_, c) = process.schedule.s_sigma(ts), process.schedule.signal_noise(ts)
        drawn = (eta * c[1:] * (1 - (sigma[1:] / sigma[:-1]) ** 2).sqrt()).tolist()
    for i, (start, end) in enumerate(pairwise(points)):
        h = end.lam - start.lam
        if order == 1 or not math.isfinite(h):
            updates.append(_first_order(start, end, drawn[i]))
            continue
        recent = points[max(i + 1 - order, 0) : i + 1][::-1]
        nodes = [point.lam - start.lam for point in recent if math.isfinite(point.lam)]
        # Weights of the estimates that are exact for powers of lam, and so for the polynomial
        powers = torch.vander(ts.new_tensor(nodes), increasing=True).T
        weights = torch.linalg.solve(powers, ts.new_tensor([phi_integral(k, h) for k in range(len(nodes))]))
        updates.append(_exponential(start, end, (end.b * weights).tolist()))
    return updates


def ddpm_large(process: Process, ts: Tensor) -> list[Update]:
    """DDPM with the variance of the forward step in place of the posterior's: ``beta_t`` on a whole chain (Ho et al.).

    ``c_s^2 - (b_s / b_t)^2 c_t^2`` is it from t up to s, and nothing is drawn in the last step. Raises ValueError for a
    bridge.
    """
    if isinstance(process, Bridge):
        raise ValueError("ddpm-large: expected a diffusion, got a bridge: ddpm samples it")
    _, b, c = process.abc(ts)
    drawn = (c[:-1] ** 2 - (b[:-1] / b[1:]) ** 2 * c[1:] ** 2).clamp(min=0).sqrt()
    drawn[-1] = 0
    rows = zip(dbim(process, ts, eta=1.0), drawn.tolist(), strict=True)
    return [update._replace(k_eps=k_eps) for update, k_eps in rows]


def dbm2(process: Process, ts: Tensor) -> list[Update]:
    """Order 2, two calls per step: ``D`` is linear in ``lam`` through its values at the start and at a middle time.

    A first-order step reaches the middle (the scheme of DBMSolver, with this integral). The second update starts from
    there, from a state that was made with a constant ``D``, and makes up for the difference.
    """
    points, middles, updates = _points(process, ts), _points(process, _middle_times(process, ts)), []
    for start, middle, end in zip(points[:-1], middles, points[1:], strict=True):
        h = end.lam - start.lam
        if not math.isfinite(h):
            updates.append(_first_order(start, end))
            continue
        slope = phi_integral(1, h) / (middle.lam - start.lam)
        rest = phi_integral(0, end.lam - middle.lam) - slope
        updates += [_first_order(start, middle), _exponential(middle, end, (end.b * slope, end.b * rest))]
    return updates


def edm(
    process: Process, ts: Tensor, S_churn: float, S_min: float, S_max: float, S_noise: float, eta: float = 0.0
) -> list[Update]:
    """Heun's method in ``x / s`` over ``sigma`` with noise added before the step: EDM, algorithm 2.

    Where ``S_min <= sigma <= S_max`` it is first raised by the factor ``1 + min(S_churn / N, sqrt(2) - 1)``, over a
    chain to that of the nearest index; with ``eta`` by at least ``1 + eta (sqrt(2) - 1)``, whatever N (DDAE). Raises
    ValueError for a bridge.
    """
    if isinstance(process, Bridge):
        raise ValueError("edm: expected a diffusion, got a bridge: euler and heun with churn sample it")
    sigma = process.schedule.s_sigma(ts)[1]
    gamma, hats = max(min(S_churn / (len(ts) - 1), GREATEST_CHURN), eta * GREATEST_CHURN), ts
    if gamma > 0:
        churned = (sigma >= S_min) & (sigma <= S_max) & sigma.isfinite()
        hats = torch.where(churned, process.schedule.time_at(sigma * (1 + gamma)).double(), ts)

    updates, points = [], _points(process, ts)
    for start, hat, end in zip(points[:-1], _points(process, hats), points[1:], strict=False):
        # Noise from sigma up to sigma_hat; no network call
        if hat.t > start.t:
            added = math.sqrt((hat.c / hat.b) ** 2 - (start.c / start.b) ** 2)
            updates.append(Update(None, (hat.b / start.b,), k_eps=S_noise * hat.b * added))

        # Euler step: the noise that x implies is kept
        updates.append(_first_order(hat, end))

        # Heun's correction from x_hat, with h = (sigma_end - sigma_hat) / 2 and each drift (y - D) / sigma of y = x / s
        if math.isfinite(end.lam - hat.lam):
            sigma_hat, sigma_end = hat.c / hat.b, end.c / end.b
            h = (sigma_end - sigma_hat) / 2
            k_x = (h / sigma_end, end.b / hat.b * (1 + h / sigma_hat))
            updates.append(Update(end.t, k_x, k_D=(-end.b * h / sigma_end, -end.b * h / sigma_hat)))
    return updates


def booting_noise(updates: Sequence[Update], process: Process, t: Tensor) -> list[Update]:
    """The rows with x at the first time ``t`` replaced by a draw ``a x_T + b D + c eps`` from the marginal (DBIM).

    The estimate ``D(x_T, t)`` that it needs also serves the first step: no call is added.
    """
    (start,), first = _points(process, t[None]), updates[0]
    (k_x,), (k_D,) = first.k_x, first.k_D
    k_T, k_eps = first.k_T + k_x * start.a, math.hypot(first.k_eps, k_x * start.c)
    return [Update(first.t, (), k_T, (k_D + k_x * start.b,), k_eps), *updates[1:]]


def phi_integral(k: int, h: float) -> float:
    """``int_0^h exp(u - h) u^k du``: ``k! h^(k+1)`` times the phi function ``phi_{k+1}(-h)`` of exponential solvers."""
    return -math.expm1(-h) if k == 0 else h**k - k * phi_integral(k - 1, h)


def _rows(columns: Sequence[Tensor]) -> list[tuple[float, ...]]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _points(process: Process, ts: Tensor) -> list[Point]:
    t = ts.long() if process.discrete else ts
    return [Point(*row) for row in _rows((t, *process.abc(ts), process.log_snr(ts)))]


def _exponential(start: Point, end: Point, k_D: Sequence[float], w: float = 0.0) -> Update:
    """The linear part from start to end; of the noise in x, ``sqrt(c^2 - w^2)`` is kept and ``w`` is drawn."""
    k_x = math.sqrt(max(end.c**2 - w**2, 0.0)) / start.c
    return Update(start.t, (k_x,), end.a - start.a * k_x, tuple(k_D), w)


def _first_order(start: Point, end: Point, w: float = 0.0) -> Update:
    if start.c == 0:
        # From the data b x + c eps, with the noise that the network sees in x when told the end's time
        return Update(end.t, (1 + end.b,), k_D=(-end.b,))
    update = _exponential(start, end, (), w)
    return update._replace(k_D=(end.b - start.b * update.k_x[0],))


def _middle_times(process: Process, ts: Tensor) -> Tensor:
    """Geometric means of neighbours in ``ts``; over a chain of their noise levels, never the first index of the two."""
    start, end = ts[:-1], ts[1:]
    if not process.discrete:
        return (start * end).sqrt()
    _, sigma = process.schedule.s_sigma(ts)
    middle = process.schedule.time_at((sigma[:-1] * sigma[1:]).sqrt()).double()
    return torch.where(end < start, middle.minimum(start - 1), middle.maximum(start + 1))
