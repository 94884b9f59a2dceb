"""Sampling a process from its start back to ``x_0``: the table of samplers and settings, and the loop over updates.

``denoise(x_t, t)`` returns the estimate of ``x_0`` for ``x_t`` [N, ...] at times ``t`` [N]. Nothing here knows a model,
a device or a file, and nothing is clamped: the caller's ``denoise`` does that.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dbae.diffusion.grids import time_grid
from dbae.diffusion.process import Diffusion, Process
from dbae.diffusion.schedules import VE
from dbae.diffusion.solvers import Update, booting_noise, dbim, dbm2, ddpm_large, edm, euler

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[Tensor], Tensor]

# Every setting with its neutral value; a sampler that does not read one takes no other value
DEFAULTS = {
    "churn": 0.0,  # part of every step taken by the reverse SDE (DDBM, algorithm 1)
    "guidance": 1.0,  # factor of a bridge's h-term; 1 is the model
    "eta": 0.0,  # share of the noise drawn anew in each step (DDIM, DBIM); of EDM's greatest churn
    "boot": False,  # the state at the first time is a draw from the marginal, not x_start (DBIM)
    "S_churn": 0.0,  # these four as in EDM
    "S_min": 0.0,
    "S_max": math.inf,
    "S_noise": 1.0,
}
LARGEST = torch.finfo(torch.float32).max  # of a factor: the state, too, passes through float32
RANGES = {  # those of the other settings begin at 0
    "churn": ("in [0, 1)", lambda value: 0 <= value < 1),
    "eta": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "guidance": ("that is finite", math.isfinite),
}


class Sampler(NamedTuple):
    """The updates as a function of (process, ts, settings), and the settings that the sampler reads.

    ``boot`` is no setting of the function: ``booting_noise`` replaces its first update.
    """

    updates: Callable[..., list[Update]]
    reads: tuple[str, ...] = ()


SOLVERS = {
    # On the drift, in continuous time
    "euler": Sampler(euler, ("churn", "guidance")),
    "heun": Sampler(partial(euler, heun=True), ("churn", "guidance")),
    # First order, two names of the same, and their relatives of higher order, for few steps
    "ddim": Sampler(dbim, ("eta", "boot")),
    "dbim": Sampler(dbim, ("eta", "boot")),
    "dbim2": Sampler(partial(dbim, order=2), ("boot",)),
    "dbim3": Sampler(partial(dbim, order=3), ("boot",)),
    "dbm2": Sampler(dbm2, ("boot",)),
    "ddpm": Sampler(partial(dbim, eta=1.0)),
    "ddpm-large": Sampler(ddpm_large),
    # Heun in sigma, on a diffusion
    "edm": Sampler(edm, ("S_churn", "S_min", "S_max", "S_noise", "eta")),
    # From the first time to the last
    "one-step": Sampler(lambda process, ts: dbim(process, ts[[0, -1]])),
}


def check_settings(sampler: str, **settings: float) -> None:
    """Raise ValueError for an unknown sampler or setting, one that the sampler does not read, or out of its range."""
    if sampler not in SOLVERS:
        raise ValueError(f"sampler: expected one of {', '.join(SOLVERS)}, got {sampler!r}")
    for name, value in settings.items():
        if name not in DEFAULTS:
            raise ValueError(f"{name}: expected one of the settings {', '.join(DEFAULTS)}")
        if name not in SOLVERS[sampler].reads and value != DEFAULTS[name]:
            raise ValueError(f"{name}: expected {str(DEFAULTS[name]).lower()} for {sampler}, got {str(value).lower()}")
        expected, valid = RANGES.get(name, ("from 0", lambda value: value >= 0))
        if not valid(value):
            raise ValueError(f"{name}: expected a number {expected}, got {value}")


def solver_updates(sampler: str, process: Process, ts: Tensor, **settings: float) -> list[Update]:
    """The updates that carry a state along the times ``ts``, ready for ``integrate``.

    Raises ValueError as ``check_settings`` does, for a process that the sampler does not take, and for times that it
    cannot start from or, where it draws noise, that increase; and where a factor is not finite, in float32 as well.
    """
    check_settings(sampler, **settings)
    ts, settings = ts.double().cpu(), {**DEFAULTS, **settings}
    from_data = process.discrete and ts[0] < ts[1]
    if (process.abc(ts[from_data:-1])[2] == 0).any():
        raise ValueError("ts: expected times with noise in x_t but for the data's, got one without")
    make, reads = SOLVERS[sampler]
    updates = make(process, ts, **{name: settings[name] for name in reads if name != "boot"})
    # The variance of such a draw is negative, so the factor may be NaN, which is not 0 either
    if (ts.diff() >= 0).any() and any(update.k_eps != 0 for update in updates):
        raise ValueError(f"ts: expected decreasing times, since {sampler} draws noise with these settings")
    updates = booting_noise(updates, process, ts[0]) if settings["boot"] else updates
    factors = (k for update in updates for k in (*update.k_x, update.k_T, *update.k_D, update.k_eps))
    if not all(abs(k) < LARGEST for k in factors):
        shown = ", ".join(f"{name} {settings[name]}" for name in reads) or "no settings of its own"
        raise ValueError(
            f"{sampler}: expected settings that give finite factors, got {shown} over {len(ts) - 1} steps from "
            f"{ts[0]:g} to {ts[-1]:g}"
        )
    return updates


def integrate(denoise: Denoise, x_start: Tensor, updates: Sequence[Update], noise: Noise | None = None) -> Tensor:
    """Apply the updates in turn, beginning with ``x = x_T = x_start`` [N, ...], and return the last state like it.

    The state is float64: the factors of x, x_T and D are large near the ends and cancel. ``denoise`` and ``noise`` get
    x in the precision of ``x_start``, and t in the same or, over a discrete schedule, in int64.
    """
    x_T, noise = x_start.double(), noise or torch.randn_like
    states = deque([x_T], maxlen=max(len(update.k_x) for update in updates) or 1)  # newest first
    estimates: deque[Tensor] = deque(maxlen=max(len(update.k_D) for update in updates))
    for update in updates:
        if update.t is not None:
            dtype = torch.int64 if isinstance(update.t, int) else x_start.dtype
            t = torch.full(x_T.shape[:1], update.t, dtype=dtype, device=x_T.device)
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


def sample(
    denoise: Denoise,
    process: Process,
    x_start: Tensor,
    ts: Tensor,
    sampler: str = "euler",
    *,
    noise: Noise | None = None,
    **settings: float,
) -> Tensor:
    """Carry ``x_start`` [N, ...] along the times ``ts`` and return the state at the last of them, like ``x_start``.

    The start is ``x_T`` of a bridge, or the state of a diffusion at the first time. With decreasing times that end at
    the data the result is ``x_0``; on increasing times (``inverted``) ``ddim`` inverts itself.
    ``settings`` are those of ``DEFAULTS`` that the sampler reads. ``noise(x)`` returns standard normal values like
    ``x`` and is called only where its factor is not 0. Raises ValueError as ``solver_updates`` does.
    """
    return integrate(denoise, x_start, solver_updates(sampler, process, ts, **settings), noise)


def nfe(sampler: str, steps: int, churn: float = 0.0) -> int:
    """Network calls per image on a grid of ``steps`` steps. Raises ValueError for a churn that is not read."""
    process = Diffusion(VE())  # the number of calls is the same for all
    updates = solver_updates(sampler, process, time_grid(process, steps), churn=churn)
    return sum(update.t is not None for update in updates)
