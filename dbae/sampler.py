"""Sampling a bridge from its endpoint ``x_T`` back to ``x_0``: pure functions of a denoiser, a bridge and a time grid.

``denoise(x_t, t)`` returns the estimate of ``x_0`` for ``x_t`` [N, ...] at times ``t`` [N]. Nothing here knows a model,
a device or a file, and nothing is clamped: the caller's ``denoise`` does that.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from dbae.bridge import Bridge
from dbae.config import check_unread
from dbae.solvers import SOLVERS, booted, follow, log_snr, time_at

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[Tensor], Tensor]

# Network calls of each method on a grid of N steps: the first number times N, plus the second.
METHODS = {
    "euler": (1, 0),
    "heun": (2, -1),
    "dbim": (1, 0),
    "dbim2": (1, 0),
    "dbim3": (1, 0),
    "dbm2": (2, -1),
    "one-step": (0, 1),
}


def _karras(bridge: Bridge, ramp: Tensor, rho: float) -> Tensor:
    """Uniform in ``t^(1 / rho)`` (EDM eq. 5)."""
    high, low = (bridge.T - 1e-4) ** (1 / rho), bridge.t_min ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def _uniform(bridge: Bridge, ramp: Tensor, rho: float) -> Tensor:
    """Uniform in ``t``."""
    high, low = bridge.T - 1e-4, bridge.t_min
    return high + ramp * (low - high)


def _logsnr(bridge: Bridge, ramp: Tensor, rho: float) -> Tensor:
    """Uniform in ``log(b / c)``."""
    high, low = log_snr(bridge, ramp.new_tensor([bridge.T - 1e-4, bridge.t_min]))
    return time_at(bridge, high + ramp * (low - high))


GRIDS = {"karras": _karras, "uniform": _uniform, "logsnr": _logsnr}


def time_grid(bridge: Bridge, steps: int = 100, rho: float = 7.0, grid: str = "karras") -> Tensor:
    """Decreasing times [steps + 1], float64, from just below ``T`` to ``t_min`` and then 0.

    ``grid`` is ``karras`` (the official one, of curvature ``rho``), ``uniform`` in time, or ``logsnr``: uniform in
    ``log(b / c)``. The bridge is singular at ``T`` itself, so the grid starts at ``T - 1e-4`` as the official sampler
    does. Raises ValueError for an unknown grid.
    """
    if grid not in GRIDS:
        raise ValueError(f"grid: expected one of {', '.join(GRIDS)}, got {grid!r}")
    ts = GRIDS[grid](bridge, torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1), rho)
    return torch.cat([ts, ts.new_zeros(1)])


def nfe(steps: int, method: str = "euler", churn: float = 0.0) -> int:
    """Network calls that ``sample`` makes for one image on a grid of ``steps`` steps."""
    per_step, more = METHODS[method]
    return per_step * steps + more + (steps if churn > 0 else 0)


def sample(
    denoise: Denoise,
    bridge: Bridge,
    x_T: Tensor,
    ts: Tensor,
    method: str = "euler",
    churn: float = 0.0,
    guidance: float = 1.0,
    noise: Noise | None = None,
    eta: float = 0.0,
    boot: bool = False,
) -> Tensor:
    """Carry ``x_T`` [N, ...] over the bridge along the decreasing times ``ts`` and return ``x_0``.

    ``euler`` and ``heun`` integrate the drift; ``churn`` in [0, 1) is the part of every step that is taken by the
    reverse SDE, the rest by the ODE (DDBM, algorithm 1), and ``guidance`` 1 is the model. ``dbim``, ``dbim2``,
    ``dbim3`` and ``dbm2`` are the solvers of ``dbae.solvers``, for few steps. ``one-step`` returns the estimate at the
    first time and reads no other.

    The state at the first time is ``x_T``, or with ``boot`` (all ``dbim``, ``dbm2``) a draw from the bridge, as its
    marginals want it. ``eta`` in [0, 1] (``dbim``) is the share of noise drawn anew in each step. The defaults draw
    none, as suits the squared error; some ``eta`` may suit perception better.

    ``noise(x)`` returns standard normal values like ``x``. It is called once per churn step, once per step but the last
    for ``eta`` above 0, and else once for ``boot``. Raises ValueError for an unknown method, a value out of its range,
    or one that the method does not read.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if not 0 <= churn < 1:
        raise ValueError(f"churn: expected a number in [0, 1), got {churn!r}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected a number in [0, 1], got {eta!r}")
    check_unread(method, churn_step_ratio=churn, guidance=guidance, eta=eta, boot=boot)
    ts = ts.double().cpu()
    noise = torch.randn_like if noise is None else noise
    if method not in SOLVERS:
        return _integrate(denoise, bridge, x_T, ts, method == "heun", churn, guidance, noise)
    rows = SOLVERS[method](bridge, ts, eta)
    return follow(denoise, x_T, booted(rows, bridge, ts[0]) if boot else rows, noise)


def _integrate(
    denoise: Denoise,
    bridge: Bridge,
    x_T: Tensor,
    ts: Tensor,
    second_order: bool,
    churn: float,
    guidance: float,
    noise: Noise,
) -> Tensor:
    """The official sampler: Euler's method, or Heun's for ``second_order``, on the drift of ``bridge``."""

    def drift(x: Tensor, t: float, stochastic: bool = False) -> Tensor:
        k_x, k_T, k_D = bridge.drift(t, guidance, stochastic)
        D_x = denoise(x, x.new_full(x.shape[:1], t))
        return k_x * x + k_T * x_T + k_D * D_x

    x = x_T
    for t, t_next in pairwise(ts.tolist()):
        # Stochastic part of the step: Euler-Maruyama from t to t_hat
        t_hat = t + churn * (t_next - t)
        if churn > 0:
            _, g2 = bridge.f_g2(ts.new_tensor(t))
            x = x + (t_hat - t) * drift(x, t, stochastic=True) + math.sqrt(g2 * abs(t_hat - t)) * noise(x)

        # Euler step of the ODE over the rest
        dt = t_next - t_hat
        d_x = drift(x, t_hat)
        x_next = x + dt * d_x

        # Second-order correction, except at t = 0 where the drift is singular
        if second_order and t_next > 0:
            x_next = x + dt * (d_x + drift(x_next, t_next)) / 2
        x = x_next
    return x
