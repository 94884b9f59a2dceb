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

Denoise = Callable[[Tensor, Tensor], Tensor]

METHODS = ("euler", "heun")


def time_grid(bridge: Bridge, steps: int = 100, rho: float = 7.0) -> Tensor:
    """Decreasing times [steps + 1], float64, from just below ``T`` to ``t_min`` and then 0 (EDM eq. 5).

    The bridge is singular at ``T`` itself, so the grid starts at ``T - 1e-4`` as the official sampler does.
    """
    high, low = (bridge.T - 1e-4) ** (1 / rho), bridge.t_min ** (1 / rho)
    ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    ts = (high + ramp * (low - high)) ** rho
    return torch.cat([ts, ts.new_zeros(1)])


def nfe(steps: int, method: str = "euler", churn: float = 0.0) -> int:
    """Network calls that ``sample`` makes for one image on a grid of ``steps`` steps."""
    calls = {"euler": steps, "heun": 2 * steps - 1}[method]
    return calls + (steps if churn > 0 else 0)


def sample(
    denoise: Denoise,
    bridge: Bridge,
    x_T: Tensor,
    ts: Tensor,
    method: str = "euler",
    churn: float = 0.0,
    guidance: float = 1.0,
    noise: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Integrate the bridge from ``x_T`` [N, ...] along the decreasing times ``ts`` and return ``x_0``.

    ``churn`` in [0, 1) is the part of every step that is taken by the reverse SDE, the rest by the ODE (DDBM,
    algorithm 1); ``noise(x)`` returns standard normal values like ``x`` and is called once per churn step.
    ``guidance`` 1 is the model. Raises ValueError for an unknown method or a churn outside its range.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if not 0 <= churn < 1:
        raise ValueError(f"churn: expected a number in [0, 1), got {churn!r}")
    noise = torch.randn_like if noise is None else noise

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
        if method == "heun" and t_next > 0:
            x_next = x + dt * (d_x + drift(x_next, t_next)) / 2
        x = x_next
    return x
