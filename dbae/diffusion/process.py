"""Processes over a noise schedule: the plain diffusion, and the diffusion bridge that ends in a given ``x_T``.

DDBM: Zhou et al., Denoising Diffusion Bridge Models, ICLR 2024.
"""

import torch
from torch import Tensor

from dbae.diffusion.schedules import Schedule


class Process:
    """A family of marginals ``x_t = a x_T + b x_0 + c eps`` over times from ``t_min`` (data) to ``T``.

    All is computed in float64. A subclass has ``coefficients(t)``: ``a, b, c`` at float64 times; ``time_at(log_snr)``,
    the inverse of ``log_snr`` (over a chain the nearest index); and where its drift has an h-term, ``drift``.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.T, self.t_min, self.discrete = schedule.T, schedule.t_min, schedule.discrete
        self.t_start = schedule.T  # where time grids begin

    def abc(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``a, b, c`` like ``t``; in the default precision where that holds integers."""
        return tuple(value.to(float_dtype(t)) for value in self.coefficients(t.double()))

    def marginal(self, x0: Tensor, t: Tensor, noise: Tensor, x_T: Tensor | None = None) -> Tensor:
        """``x_t`` for ``x0`` [N, ...] at times ``t`` [N] and ``noise`` like ``x0``; a bridge reads ``x_T``."""
        a, b, c = (value.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1)) for value in self.coefficients(t.double()))
        return b * x0 + c * noise if isinstance(self, Diffusion) else a * x_T + b * x0 + c * noise

    def draw_times(self, n: int, device: torch.device | str | None = None) -> Tensor:
        """Times [n] of training, uniform: float32 from ``t_min`` to ``T``, or int64 indices below ``T``."""
        if self.discrete:
            return torch.randint(self.t_min, self.T, (n,), device=device)
        return self.t_min + (self.T - self.t_min) * torch.rand(n, device=device)

    def log_snr(self, t: Tensor) -> Tensor:
        """``lambda = log(b / c)``, half the log of the signal-to-noise ratio, of the shape of ``t``."""
        _, b, c = self.abc(t)
        return b.log() - c.log()

    def drift(self, t: Tensor, guidance: float = 1.0, stochastic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Reverse-time drift at float64 times ``t`` as factors of ``(x, x_T, D)``, each of the shape of ``t``.

        ``D`` is the estimate of ``x_0``. With the score ``S0 = (s D - x) / (s sigma)^2`` the drift is
        ``f x - g^2 S0 / 2`` in the probability-flow ODE and ``f x - g^2 S0`` in the SDE, for ``stochastic``.
        Raises ValueError for a discrete schedule, and for a guidance other than 1, which is a bridge's.
        """
        if self.discrete:
            got = type(self.schedule).__name__
            raise ValueError(f"expected a schedule in continuous time, got {got}: edm and ddim sample it")
        if guidance != 1:
            raise ValueError(f"guidance: expected 1 for a diffusion, which has no endpoint, got {guidance}")
        (s, sigma), (f, g2) = self.schedule.s_sigma(t), self.schedule.f_g2(t)
        score = g2 if stochastic else g2 / 2
        return f + score / (s * sigma) ** 2, torch.zeros_like(t), -score / (s * sigma**2)


class Diffusion(Process):
    """The process of the schedule itself: ``x_t = b x_0 + c eps``."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, c = self.schedule.signal_noise(t)
        return torch.zeros_like(b), b, c

    def time_at(self, log_snr: Tensor) -> Tensor:
        """Where ``sigma = exp(-lambda)``."""
        return self.schedule.time_at((-log_snr).exp())


class Bridge(Process):
    """The process of a continuous schedule conditioned on its end ``x_T`` (DDBM). Raises ValueError for others."""

    def __init__(self, schedule: Schedule) -> None:
        if schedule.discrete:
            raise ValueError(f"Bridge: expected a schedule in continuous time, got {type(schedule).__name__}")
        super().__init__(schedule)
        self.t_start = self.T - 1e-4  # the bridge is singular at T; the official sampler starts here
        end = schedule.s_sigma(torch.tensor(self.T, dtype=torch.float64, device="cpu"))
        self.s_T, self.sigma_T = (value.item() for value in end)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """DDBM eq. 7, with ``r = SNR(T) / SNR(t)``: ``a = r s/s_T``, ``b = (1-r) s``, ``c^2 = (1-r) s^2 sigma^2``."""
        s, sigma = self.schedule.s_sigma(t)
        r = (sigma / self.sigma_T) ** 2
        return r * s / self.s_T, (1 - r) * s, (1 - r).clamp(min=0).sqrt() * s * sigma

    def time_at(self, log_snr: Tensor) -> Tensor:
        """Where ``1 / sigma^2 = (b/c)^2 + 1 / sigma_T^2``."""
        return self.schedule.time_at(((2 * log_snr).exp() + self.sigma_T**-2).rsqrt())

    def drift(self, t: Tensor, guidance: float = 1.0, stochastic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Reverse-time drift at float64 times ``0 < t < T`` as factors of ``(x, x_T, D)``.

        To the score ``S0`` of the base process Doob's h-transform adds
        ``H = ((s / s_T) x_T - x) / (s^2 (sigma_T^2 - sigma^2))`` (DDBM eq. 9, 10), and

            ODE  f x - g^2/2 (S0 - k H),    SDE  f x - g^2 (S0 + m H),    (k, m) = schedule.guided(w).

        Guidance 1 is the model: ``k = 1`` and ``m = 0`` for every schedule.
        """
        k_x, k_T, k_D = super().drift(t, stochastic=stochastic)
        (s, sigma), (_, g2) = self.schedule.s_sigma(t), self.schedule.f_g2(t)
        k, m = self.schedule.guided(guidance)
        h = (-m * g2 if stochastic else k * g2 / 2) / (self.sigma_T**2 - sigma**2)
        return k_x - h / s**2, k_T + h / (s * self.s_T), k_D


def float_dtype(t: Tensor) -> torch.dtype:
    """The precision in which coefficients at times ``t`` are returned: that of ``t``, or the default for indices."""
    return t.dtype if t.is_floating_point() else torch.get_default_dtype()
