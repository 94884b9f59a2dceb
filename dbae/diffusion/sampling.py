"""Sampling a process from its start back to ``x_0``, with any sampler of ``SOLVERS``.

``denoise(x_t, t)`` returns the estimate of ``x_0`` for ``x_t`` [N, ...] at times ``t`` [N]. Nothing here knows a model,
a device or a file, and nothing is clamped: the caller's ``denoise`` does that.
"""

import inspect
import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dbae.diffusion.grids import time_grid
from dbae.diffusion.process import Diffusion, Process
from dbae.diffusion.schedules import VE
from dbae.diffusion.solvers import SOLVERS, Update, booting_noise

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[Tensor], Tensor]


def sample(
    denoise: Denoise,
    process: Process,
    x_start: Tensor,
    ts: Tensor,
    sampler: str = "euler",
    churn: float = 0.0,
    guidance: float = 1.0,
    eta: float = 0.0,
    boot: bool = False,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
    noise: Noise | None = None,
) -> Tensor:
    """Carry ``x_start`` [N, ...] along the times ``ts`` and return the state at the last of them, like ``x_start``.

    The start is ``x_T`` of a bridge, or the state of a diffusion at the first time. With decreasing times that end at
    the data the result is ``x_0``; on increasing times (``index_grid(..., invert=True)``) ``ddim`` inverts itself.

    - ``euler`` and ``heun``, in continuous time: ``churn`` in [0, 1) is the part of every step taken by the reverse SDE
      (DDBM, algorithm 1), ``guidance`` the factor of a bridge's h-term, where 1 is the model.
    - ``ddim`` or ``dbim``, the same thing: ``eta`` in [0, 1] is the share of the noise drawn anew in each step.
      ``ddpm`` is ``eta`` 1. ``dbim2``, ``dbim3`` and ``dbm2`` are its relatives of higher order, for few steps.
      With ``boot`` (all ``dbim``, ``dbm2``) the state at the first time is a draw from the marginal, not ``x_start``.
    - ``edm``, on a diffusion: Heun in sigma, where ``S_churn``, ``S_min``, ``S_max``, ``S_noise`` are those of EDM.
    - ``one-step`` jumps from the first time to the last.

    ``denoise`` gets x in the precision of ``x_start``, and t in the same or, over a discrete schedule, in int64. The
    state is float64: the factors of x, x_T and D are large near the ends and cancel. ``noise(x)`` returns standard
    normal values like ``x`` and is called only where its factor is not 0. Raises ValueError for an unknown sampler, a
    setting out of its range or one that the sampler does not read, and times that the sampler cannot start from.
    """
    settings = {
        "churn": churn, "guidance": guidance, "eta": eta, "boot": boot,
        "S_churn": S_churn, "S_min": S_min, "S_max": S_max, "S_noise": S_noise,
    }  # fmt: skip
    check_settings(sampler, **settings)
    ts = ts.double().cpu()
    if (process.abc(ts[:-1])[2] == 0).any():
        raise ValueError("ts: expected times with noise in x_t but for the last, got one without")
    updates = _updates(sampler, process, ts, settings)
    if boot:
        updates = booting_noise(updates, process, ts[0])
    t_dtype = torch.int64 if process.discrete else x_start.dtype
    return integrate(denoise, x_start, updates, torch.randn_like if noise is None else noise, t_dtype)


def integrate(
    denoise: Denoise, x_start: Tensor, updates: Sequence[Update], noise: Noise, t_dtype: torch.dtype
) -> Tensor:
    """Apply the rows in turn, beginning with ``x = x_T = x_start`` [N, ...], to a state in float64."""
    x_T = x_start.double()
    states = deque([x_T], maxlen=max(len(update.k_x) for update in updates) or 1)  # newest first
    estimates: deque[Tensor] = deque(maxlen=max(len(update.k_D) for update in updates))
    for update in updates:
        if update.t is not None:
            t = torch.full(x_T.shape[:1], update.t, dtype=t_dtype, device=x_T.device)
            estimates.appendleft(denoise(states[0].to(x_start.dtype), t).double())
        terms = [*zip(update.k_x, states, strict=False), (update.k_T, x_T), *zip(update.k_D, estimates, strict=False)]
        x = torch.zeros_like(x_T)
        for factor, value in terms:
            if factor != 0:
                x.add_(value, alpha=factor)
        if update.k_eps > 0:
            x = x + update.k_eps * noise(x.to(x_start.dtype))
        states.appendleft(x)
    return states[0].to(x_start.dtype)


def nfe(sampler: str, steps: int, churn: float = 0.0) -> int:
    """Network calls that ``sample`` makes for one image on a time grid of ``steps`` steps.

    Raises ValueError for an unknown sampler, or a churn that it does not read.
    """
    check_settings(sampler, churn=churn)
    process = Diffusion(VE())  # the number of rows is the same for all
    updates = _updates(sampler, process, time_grid(process, steps), {**DEFAULTS, "churn": churn})
    return sum(update.t is not None for update in updates)


def check_settings(sampler: str, **settings: float) -> None:
    """Raise ValueError for an unknown sampler, or settings of ``sample`` that it does not read or out of range."""
    if sampler not in SOLVERS:
        raise ValueError(f"sampler: expected one of {', '.join(SOLVERS)}, got {sampler!r}")
    for name, value in settings.items():
        if name not in DEFAULTS:
            raise ValueError(f"{name}: expected one of the settings {', '.join(DEFAULTS)}")
        if name not in SOLVERS[sampler].reads and value != DEFAULTS[name]:
            raise ValueError(f"{name}: expected {str(DEFAULTS[name]).lower()} for {sampler}, got {str(value).lower()}")
        if name == "churn" and not 0 <= value < 1:
            raise ValueError(f"churn: expected a number in [0, 1), got {value}")
        if name == "eta" and not 0 <= value <= 1:
            raise ValueError(f"eta: expected a number in [0, 1], got {value}")
        if name == "guidance" and not math.isfinite(value):
            raise ValueError(f"guidance: expected a finite number, got {value}")
        if name.startswith("S_") and not value >= 0:
            raise ValueError(f"{name}: expected a number from 0, got {value}")


def _updates(sampler: str, process: Process, ts: Tensor, settings: dict[str, float]) -> list[Update]:
    updates, reads = SOLVERS[sampler]
    return updates(process, ts, **{name: settings[name] for name in reads if name != "boot"})


# Settings of samplers with their neutral values: the defaults of ``sample``, where alone they are written
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(sample).parameters.items()
    if isinstance(parameter.default, float | bool)
}
