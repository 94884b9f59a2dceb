"""Time grids, the decreasing times at which a sampler calls the network: each is even in some scale of time."""

import torch
from torch import Tensor

from dbae.diffusion.process import Process


def _karras_scale(process: Process, t: Tensor, rho: float) -> Tensor:
    # An index says nothing of the noise, so over a chain sigma takes the place of time
    return (process.schedule.s_sigma(t)[1] if process.discrete else t) ** (1 / rho)


GRIDS = {  # the scale in which times are even, and its inverse
    "karras": (_karras_scale, lambda process, u, rho: u**rho),
    "uniform": (lambda process, t, rho: t, lambda process, u, rho: u),
    "logsnr": (lambda process, t, rho: process.log_snr(t), lambda process, u, rho: process.time_at(u)),
}


def time_grid(process: Process, steps: int = 100, rho: float = 7.0, grid: str = "karras") -> Tensor:
    """Decreasing times [steps + 1] on the CPU that end at the data.

    In continuous time, float64: from ``T`` (a bridge, singular there: from ``T - 1e-4``) to ``t_min``, and then 0;
    ``karras`` is even in ``t^(1/rho)`` (EDM eq. 5), ``uniform`` in time, ``logsnr`` in ``log(b / c)``.
    Over a discrete schedule, int64: ``uniform`` is ``index_grid``; ``karras`` and ``logsnr`` are the distinct indices
    nearest to even spacing in ``sigma^(1/rho)`` and in ``log(b / c)`` from the last of the schedule to the first, and
    then the data's.
    Raises ValueError for an unknown grid, a number of steps that the schedule does not have, or a ``rho`` so extreme or
    steps so many that times are not finite or neighbours are equal in float32, a network's precision.
    """
    if grid not in GRIDS:
        raise ValueError(f"grid: expected one of {', '.join(GRIDS)}, got {grid!r}")
    if process.discrete and grid == "uniform":
        return index_grid(process, steps)
    scale, inverse = GRIDS[grid]
    ramp = torch.arange(steps, dtype=torch.float64, device="cpu") / max(steps - 1, 1)
    if not process.discrete:
        high, low = scale(process, ramp.new_tensor([process.t_start, process.t_min]), rho)
        ts = torch.cat([inverse(process, high + ramp * (low - high), rho), ramp.new_zeros(1)])
        if not (ts.isfinite().all() and (ts.float().diff() < 0).all()):
            raise ValueError(
                f"rho, steps: expected finite times apart in float32, got rho {rho:g}, {steps} steps, {grid}"
            )
        return ts

    first, length = process.t_min, process.T - process.t_min
    if steps > length:
        raise ValueError(f"steps: expected at most {length}, the length of the schedule, got {steps}")
    levels = scale(process, torch.arange(first, process.T, dtype=torch.float64, device="cpu"), rho)
    if not (levels.isfinite().all() and (levels.diff() != 0).all()):
        raise ValueError(f"rho: expected one that tells the noise levels apart, got {rho:g}")
    wanted = levels[-1] + ramp * (levels[0] - levels[-1])
    indices = [length]
    for i, index in enumerate((wanted[:, None] - levels).abs().argmin(1).tolist()):
        # Below the one before, and high enough that those to come have an index each
        indices.append(max(min(index, indices[-1] - 1), steps - 1 - i))
    return torch.tensor([*indices[1:], -1], device="cpu") + first


def index_grid(process: Process, steps: int) -> Tensor:
    """DiffAE's spacing of a discrete schedule in ``steps`` steps: int64 indices [steps + 1] on the CPU.

    They are ..., 2s, s, 0 for the smallest stride s that gives ``steps`` of them, and then -1, the data; each one more
    for a schedule that starts at 1. Raises ValueError, naming the nearest possible numbers, where no stride gives
    ``steps`` indices.
    """
    first, length = process.t_min, process.T - process.t_min
    strides = {len(range(0, length, stride)): stride for stride in range(length - 1, 0, -1)}
    if steps not in strides:
        near, next_near = sorted(strides, key=lambda n: abs(n - steps))[:2]
        nearest = f"{near} or {next_near} (the nearest even spacings of {length} indices)"
        raise ValueError(f"steps: expected {nearest}, got {steps}")
    return torch.tensor([*list(range(0, length, strides[steps]))[::-1], -1], device="cpu") + first


def inverted(process: Process, ts: Tensor, retraced: bool = False) -> Tensor:
    """The times ``ts`` [steps + 1] of a discrete schedule the other way, for inversion.

    DiffAE takes the data for the state at the first of them and goes up to pure noise, ``T``. The sampler then starts
    from that as if it were the state at its first time, and ends below the first index. ``retraced``, the times are the
    sampler's own, from the data to where it starts, so that there and back it takes the same steps.
    Raises ValueError for a schedule in continuous time.
    """
    if not process.discrete:
        raise ValueError(f"inversion: expected a discrete schedule, got {type(process.schedule).__name__}")
    return ts.flip(0) if retraced else torch.cat([ts[:-1].flip(0), ts.new_tensor([process.T])])
