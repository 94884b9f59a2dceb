"""Time grids: the decreasing times at which a sampler calls the network, ending with the data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dbae.diffusion.process import Process

GRIDS = ("karras", "uniform", "logsnr")


def log_snr(process: Process, t: Tensor) -> Tensor:
    """``lam = log(b / c)`` at times t, half the log of the signal-to-noise ratio; it falls with t."""
    _, b, c = process.abc(t)
    return (b / c).log()


def time_grid(process: Process, steps: int = 100, rho: float = 7.0, grid: str = "karras") -> Tensor:
    """Decreasing times [steps + 1] from the start of sampling to ``t_min`` and then the data.

    ``grid`` is ``karras``, uniform in ``t^(1 / rho)`` (EDM eq. 5; the official one), ``uniform`` in time, or
    ``logsnr``, uniform in ``log(b / c)``. Float64, ending in 0; of a chain int64, ending in -1: ``uniform`` is then
    ``index_grid``, and the others are the nearest indices, different ones (karras: in ``sigma^(1 / rho)``). Raises
    ValueError for an unknown grid, and for more steps than a chain has.
    """
    if grid not in GRIDS:
        raise ValueError(f"grid: expected one of {', '.join(GRIDS)}, got {grid!r}")
    if process.discrete:
        return index_grid(process, steps) if grid == "uniform" else _nearest_indices(process, steps, rho, grid)
    ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    if grid == "logsnr":
        high, low = log_snr(process, ramp.new_tensor([process.t_start, process.t_min]))
        ts = _time_at_log_snr(process, high + ramp * (low - high))
    else:
        power = rho if grid == "karras" else 1.0
        high, low = process.t_start ** (1 / power), process.t_min ** (1 / power)
        ts = (high + ramp * (low - high)) ** power
    return torch.cat([ts, ts.new_zeros(1)])


def index_grid(process: Process, steps: int, invert: bool = False) -> Tensor:
    """Indices [steps + 1] of a chain in even steps, int64: DiffAE's spacing, the smallest stride that gives ``steps``.

    Decreasing to 0 and then -1, the data; with ``invert`` increasing from 0 and then to pure noise. Raises ValueError,
    naming the nearest numbers, where no stride gives so many steps.
    """
    total = process.T
    possible = {len(range(0, total, stride)): stride for stride in range(total, 0, -1)}
    if not process.discrete or steps not in possible:
        below = max((n for n in possible if n < steps), default=None)
        above = min((n for n in possible if n > steps), default=None)
        near = " or ".join(str(n) for n in (below, above) if n)
        raise ValueError(f"steps: expected a number of even steps of the chain's {total}, such as {near}, got {steps}")
    indices = torch.arange(0, total, possible[steps])
    if invert:
        return torch.cat([indices, indices.new_tensor([total])])
    return torch.cat([indices.flip(0), indices.new_tensor([-1])])


def _time_at_log_snr(process: Process, lam: Tensor) -> Tensor:
    """Inverse of ``log_snr`` between ``t_min`` and ``T``, by bisection to float64 precision; same shape as ``lam``."""
    low, high = torch.full_like(lam, process.t_min), torch.full_like(lam, process.T)
    for _ in range(60):
        middle = (low + high) / 2
        earlier = log_snr(process, middle) > lam
        low, high = torch.where(earlier, middle, low), torch.where(earlier, high, middle)
    return (low + high) / 2


def _nearest_indices(process: Process, steps: int, rho: float, grid: str) -> Tensor:
    total = process.T
    if not 1 <= steps <= total:
        raise ValueError(f"steps: expected 1 to {total}, the steps of the chain, got {steps}")
    _, sigma = process.schedule.s_sigma(torch.arange(total))
    level = sigma ** (1 / rho) if grid == "karras" else sigma.log()
    ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    wanted = level[-1] + ramp * (level[0] - level[-1])
    nearest = (level - wanted[:, None]).abs().argmin(dim=1).tolist()
    return torch.tensor([*_distinct(nearest), -1])


def _distinct(indices: Sequence[int]) -> list[int]:
    """The same, moved as little as makes them strictly decreasing and not negative."""
    found: list[int] = []
    for place, index in enumerate(indices):
        below = found[-1] - 1 if found else index
        found.append(max(min(index, below), len(indices) - 1 - place))
    return found
