"""Samplers: one table of solvers, and the one loop that integrates them.

A solver turns a time grid into updates, one per network call, computed in float64 before the first call: the next state
is a linear combination of states, the end x_T, estimates of x_0 and fresh noise. Euler's method, Heun's, churn and EDM
integrate a drift. The others use that the ODE is linear but for the estimate ``D``: with ``lam = log(b / c)``,

    x_t = (c_t / c_s) x_s + (a_t - a_s c_t / c_s) x_T + b_t int_{lam_s}^{lam_t} exp(lam - lam_t) D dlam,

where D is approximated by a polynomial in ``lam``: a constant is DDIM, or DBIM on a bridge. On a grid of increasing
times the same updates go from the data to the noise.

DDIM: Song et al., ICLR 2021. EDM: Karras et al., NeurIPS 2022. DDBM: Zhou et al., ICLR 2024. DBIM: Zheng et al., ICLR
2025. DBMSolver: arXiv 2605.05889.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dbae.diffusion.grids import log_snr, time_grid
from dbae.diffusion.process import Bridge, Diffusion, Process
from dbae.diffusion.schedules import VE


class Update(NamedTuple):
    """``x <- k_x[0] x + k_x[1] (the state before the last update) + k_T x_T + k_D[0] D(x, t) + k_D[1] (the estimate
    before) + ... + k_eps eps``. Without a time there is no call, and D is not in it."""

    t: float | None
    k_x: tuple[float, ...]
    k_T: float
    k_D: tuple[float, ...]
    k_eps: float = 0.0


class Point(NamedTuple):
    """The process at time t: ``x_t = a x_T + b x_0 + c eps``, and ``lam = log(b / c)``."""

    t: float
    a: float
    b: float
    c: float
    lam: float


# Settings of solvers, with the values at which they do nothing
DEFAULTS: dict[str, Any] = {
    "churn": 0.0, "guidance": 1.0, "eta": 0.0, "boot": False,
    "S_churn": 0.0, "S_min": 0.0, "S_max": math.inf, "S_noise": 1.0,
}  # fmt: skip


def euler(process: Process, ts: Tensor, churn: float = 0.0, guidance: float = 1.0) -> list[Update]:
    """Euler's method on the drift: the official sampler of DBAE.

    ``churn`` is the part of every step that is taken by the reverse SDE (Euler-Maruyama), the rest by the ODE.
    """
    return _drift_updates(process, ts, churn, guidance, second_order=False)


def heun(process: Process, ts: Tensor, churn: float = 0.0, guidance: float = 1.0) -> list[Update]:
    """The same with Heun's correction of every step but one to t = 0, where the drift is singular."""
    return _drift_updates(process, ts, churn, guidance, second_order=True)


def _drift_updates(process: Process, ts: Tensor, churn: float, guidance: float, second_order: bool) -> list[Update]:
    updates = []
    for t, t_next in pairwise(ts.tolist()):
        # Stochastic part of the step, from t to t_hat
        t_hat = t + churn * (t_next - t)
        if churn > 0:
            k_x, k_T, k_D = process.drift(t, guidance, stochastic=True)
            _, g2 = process.schedule.f_g2(ts.new_tensor(t))
            dt = t_hat - t
            updates.append(Update(t, (1 + dt * k_x,), dt * k_T, (dt * k_D,), math.sqrt(g2 * abs(dt))))

        # Euler step of the ODE over the rest
        k_x, k_T, k_D = process.drift(t_hat, guidance)
        dt = t_next - t_hat
        updates.append(Update(t_hat, (1 + dt * k_x,), dt * k_T, (dt * k_D,)))

        # Second-order correction: from the state before that step, with the mean of both derivatives
        if second_order and t_next > 0:
            after_x, after_T, after_D = process.drift(t_next, guidance)
            half = dt / 2
            k_xs, k_Ds = (half * after_x, 1 + half * k_x), (half * after_D, half * k_D)
            updates.append(Update(t_next, k_xs, half * (k_T + after_T), k_Ds))
    return updates


def edm(
    process: Process,
    ts: Tensor,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> list[Update]:
    """EDM's stochastic sampler (algorithm 2) of a diffusion: Heun's method on ``x / s`` over the noise level.

    Where the level is in [S_min, S_max], a step begins with more noise: the level grows by ``S_churn`` / steps, at most
    ``sqrt(2) - 1``, of itself. On a chain it becomes that of the nearest index. Raises ValueError for a bridge.
    """
    if isinstance(process, Bridge):
        raise ValueError("sampler: edm is for a diffusion, and this is a bridge; expected euler or heun with churn")
    updates, gamma = [], min(S_churn / (len(ts) - 1), math.sqrt(2) - 1)
    for t, t_next in pairwise(ts.tolist()):
        # Increase noise temporarily
        start, end = _points(process, ts.new_tensor([t, t_next]))
        sigma = start.c / start.b
        if gamma > 0 and S_min <= sigma <= S_max:
            (noisier,) = _points(process, ts.new_tensor([process.schedule.time_at(sigma * (1 + gamma))]))
            added = (noisier.c / noisier.b) ** 2 - sigma**2
            if added > 0:
                drawn = noisier.b * S_noise * math.sqrt(added)
                updates.append(Update(None, (noisier.b / start.b,), 0.0, (), drawn))
                start, sigma = noisier, noisier.c / noisier.b

        # Euler step, which in sigma is DDIM's
        updates.append(_first_order(start, end))

        # Second-order correction
        if end.c > 0:
            sigma_next = end.c / end.b
            half = (sigma_next - sigma) / 2
            k_xs = half / sigma_next, end.b / start.b * (1 + half / sigma)
            updates.append(Update(end.t, k_xs, 0.0, (-end.b * half / sigma_next, -end.b * half / sigma)))
    return updates


def ddim(process: Process, ts: Tensor, eta: float = 0.0, boot: bool = False) -> list[Update]:
    """First order, one call per step: the noise in x is kept (``eta`` 0), or partly drawn anew. DDIM, DBIM.

    What is drawn has standard deviation ``eta s_t sigma_t sqrt(1 - sigma_t^2 / sigma_s^2)``, which is 0 at the data;
    with ``eta`` 1 the steps are the process's own Markov chain. Raises ValueError for ``eta`` on increasing times.
    """
    drawn = [0.0] * (len(ts) - 1)
    if eta > 0:
        if (ts[1:] > ts[:-1]).any():
            raise ValueError("eta: expected 0 where time increases, there is no noise to draw anew")
        s, noise = process.schedule.signal_noise(ts)
        ratio = noise[1:] * s[:-1] / (noise[:-1] * s[1:])
        drawn = (eta * noise[1:] * (1 - ratio**2).sqrt()).tolist()
    steps = zip(pairwise(_points(process, ts)), drawn, strict=True)
    return _booted([_first_order(start, end, w) for (start, end), w in steps], process, ts, boot)


def ddpm(process: Process, ts: Tensor) -> list[Update]:
    """Ancestral sampling, DDIM with ``eta`` 1: each step draws from the posterior given the estimate of x_0."""
    return ddim(process, ts, eta=1.0)


def dbim2(process: Process, ts: Tensor, boot: bool = False) -> list[Update]:
    """Second order, one call per step: D is linear through the two newest estimates. See ``multistep``."""
    return _booted(multistep(process, ts, 2), process, ts, boot)


def dbim3(process: Process, ts: Tensor, boot: bool = False) -> list[Update]:
    """Third order, one call per step: D is quadratic through the three newest estimates. See ``multistep``."""
    return _booted(multistep(process, ts, 3), process, ts, boot)


def multistep(process: Process, ts: Tensor, order: int) -> list[Update]:
    """One call per step: the polynomial goes through the newest ``order`` estimates (DBIM).

    The first steps have fewer estimates and so a lower order; a step to or from where lam is infinite has order 1.
    Steps that grow much longer in ``lam`` extrapolate too far: an even grid in ``lam`` is safe, one in t is not.
    """
    points, updates = _points(process, ts), []
    for i, (start, end) in enumerate(pairwise(points)):
        known = min(order, i + 1) if math.isfinite(end.lam) else 1
        nodes = [point.lam - start.lam for point in points[i + 1 - known : i + 1][::-1]]
        if known == 1:
            updates.append(_first_order(start, end))
        else:
            updates.append(_step(start, end, [end.b * weight for weight in _weights(nodes, end.lam - start.lam)]))
    return updates


def dbm2(process: Process, ts: Tensor, boot: bool = False) -> list[Update]:
    """Second order, two calls per step: D is linear in ``lam`` through its values at the start and at a middle time,
    which a first-order step reaches (the scheme of DBMSolver, with this integral).

    The middle is the geometric mean of times, or the index nearest to the mean of ``lam``. The second update starts
    from the middle, whose x was made with a constant D, and makes up for the difference. A step to where lam is
    infinite has one call and order 1, and so has one between neighbours of a chain.
    """
    updates = []
    for start, end in pairwise(_points(process, ts)):
        middle = _middle(process, start, end)
        if middle is None:
            updates.append(_first_order(start, end))
            continue
        slope = phi(1, end.lam - start.lam) / (middle.lam - start.lam)
        rest = phi(0, end.lam - middle.lam) - slope
        updates += [_first_order(start, middle), _step(middle, end, (end.b * slope, end.b * rest))]
    return _booted(updates, process, ts, boot)


def one_step(process: Process, ts: Tensor) -> list[Update]:
    """The estimate at the first time; no other is read."""
    return ddim(process, ts[[0, -1]])


class Solver(NamedTuple):
    """A function (process, times, **settings) -> updates, and the settings of DEFAULTS that it reads."""

    updates: Callable[..., list[Update]]
    reads: tuple[str, ...] = ()


SOLVERS: dict[str, Solver] = {
    "euler": Solver(euler, ("churn", "guidance")),
    "heun": Solver(heun, ("churn", "guidance")),
    "ddim": Solver(ddim, ("eta", "boot")),
    "dbim": Solver(ddim, ("eta", "boot")),  # the same by its name on a bridge
    "dbim2": Solver(dbim2, ("boot",)),
    "dbim3": Solver(dbim3, ("boot",)),
    "dbm2": Solver(dbm2, ("boot",)),
    "ddpm": Solver(ddpm),
    "edm": Solver(edm, ("S_churn", "S_min", "S_max", "S_noise")),
    "one-step": Solver(one_step),
}


def check_settings(sampler: str, **settings: Any) -> None:
    """Raise ValueError for an unknown sampler or setting, a value out of range, or one that the sampler ignores."""
    if sampler not in SOLVERS:
        raise ValueError(f"sampler: expected one of {', '.join(SOLVERS)}, got {sampler!r}")
    for name, value in settings.items():
        if name not in DEFAULTS:
            raise ValueError(f"{name}: unknown setting; expected some of {', '.join(DEFAULTS)}")
        wanted = None
        if name not in SOLVERS[sampler].reads and value != DEFAULTS[name]:
            wanted = f"{str(DEFAULTS[name]).lower()} for {sampler}"
        elif name == "churn" and not 0 <= value < 1:
            wanted = "a number in [0, 1)"
        elif name == "eta" and not 0 <= value <= 1:
            wanted = "a number in [0, 1]"
        elif name == "guidance" and not math.isfinite(value):
            wanted = "a finite number"
        elif name.startswith("S_") and not value >= 0:
            wanted = "a number from 0"
        if wanted:
            raise ValueError(f"{name}: expected {wanted}, got {str(value).lower()}")


def nfe(sampler: str, steps: int, churn: float = 0.0) -> int:
    """Network calls that a sampler makes for one image on a grid of ``steps`` steps."""
    process = Diffusion(VE())
    settings = {"churn": churn} if "churn" in SOLVERS[sampler].reads else {}
    updates = SOLVERS[sampler].updates(process, time_grid(process, steps), **settings)
    return sum(update.t is not None for update in updates)


def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    process: Process,
    x_start: Tensor,
    ts: Tensor,
    sampler: str = "euler",
    noise: Callable[[Tensor], Tensor] | None = None,
    **settings: Any,
) -> Tensor:
    """Carry ``x_start`` [N, ...] along the times ``ts`` and return the state at the last one.

    ``denoise(x_t, t)`` returns the estimate of x_0 at times t [N]; nothing is clamped here. ``x_start`` is the state at
    the first time: a bridge's x_T, or noise. ``settings`` are those of DEFAULTS. ``noise(x)`` returns standard normal
    values like x; it is called only where its factor is not 0.

    The state is kept in float64, as EDM does: near T the factors of x, x_T and D are large and cancel. The network gets
    it in the precision of ``x_start``, and so is the result. Raises ValueError like ``check_settings``.
    """
    check_settings(sampler, **settings)
    solver, ts = SOLVERS[sampler], ts.cpu() if process.discrete else ts.double().cpu()
    updates = solver.updates(process, ts, **{name: settings[name] for name in solver.reads if name in settings})
    noise = torch.randn_like if noise is None else noise
    dtype, x_T = x_start.dtype, x_start.double()
    states = deque([x_T], maxlen=max(len(update.k_x) for update in updates))
    estimates: deque[Tensor] = deque(maxlen=max(len(update.k_D) for update in updates))
    for update in updates:
        if update.t is not None:
            x = states[0].to(dtype)
            t = torch.full(x.shape[:1], update.t, dtype=torch.int64 if process.discrete else dtype, device=x.device)
            estimates.appendleft(denoise(x, t).double())
        terms = [*zip(update.k_x, states, strict=False), *zip(update.k_D, estimates, strict=False), (update.k_T, x_T)]
        x = sum(factor * value for factor, value in terms if factor != 0)
        if update.k_eps > 0:
            x = x + update.k_eps * noise(x_start).double()
        states.appendleft(x)
    return states[0].to(dtype)


def _points(process: Process, ts: Tensor) -> list[Point]:
    columns = (ts, *process.abc(ts if ts.dtype == torch.float64 else ts.double()), log_snr(process, ts.double()))
    return [Point(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _step(start: Point, end: Point, k_D: Sequence[float], w: float = 0.0) -> Update:
    """The linear part from start to end; of the noise in x, ``sqrt(c^2 - w^2)`` is kept and ``w`` is drawn."""
    k_x = math.sqrt(max(end.c**2 - w**2, 0.0)) / start.c
    return Update(start.t, (k_x,), end.a - start.a * k_x, tuple(k_D), w)


def _first_order(start: Point, end: Point, w: float = 0.0) -> Update:
    update = _step(start, end, (), w)
    return update._replace(k_D=(end.b - start.b * update.k_x[0],))


def _booted(updates: list[Update], process: Process, ts: Tensor, boot: bool) -> list[Update]:
    """With ``boot``, the first state is a draw ``a x_T + b D + c eps`` in place of x_T: booting noise (DBIM).

    The estimate ``D(x_T, t)`` that it needs also serves the first step: no call is added.
    """
    if not boot:
        return updates
    (start,), first = _points(process, ts[:1]), updates[0]
    k_x = first.k_x[0]
    drawn = first._replace(
        k_x=(0.0,),
        k_T=first.k_T + k_x * start.a,
        k_D=(first.k_D[0] + k_x * start.b,),
        k_eps=math.hypot(first.k_eps, k_x * start.c),
    )
    return [drawn, *updates[1:]]


def _middle(process: Process, start: Point, end: Point) -> Point | None:
    """A point between two, for ``dbm2``; None where there is none."""
    if not math.isfinite(end.lam):
        return None
    if not process.discrete:
        return _points(process, torch.tensor([start.t * end.t], dtype=torch.float64).sqrt())[0]
    index = process.schedule.time_at(math.exp(-(start.lam + end.lam) / 2))
    return _points(process, torch.tensor([index]))[0] if index not in (start.t, end.t) else None


def phi(k: int, h: float) -> float:
    """``int_0^h exp(u - h) u^k du``, the phi function of exponential integrators times ``k! h^(k + 1)``."""
    return -math.expm1(-h) if k == 0 else h**k - k * phi(k - 1, h)


def _weights(nodes: Sequence[float], h: float) -> list[float]:
    """Weights of the values at ``nodes`` that give ``int_0^h exp(u - h) p(u) du`` for every polynomial through them."""
    powers = range(len(nodes))
    system = torch.tensor([[node**k for node in nodes] for k in powers], dtype=torch.float64)
    return torch.linalg.solve(system, system.new_tensor([phi(k, h) for k in powers])).tolist()
