"""Processes over a noise schedule: a diffusion, which ends in noise, and a bridge, which ends in an image x_T.

Both have Gaussian marginals ``x_t = a x_T + b x_0 + c eps``, where ``c`` is a standard deviation; a diffusion is a
bridge with ``a = 0``. Coefficients are computed in float64 and returned in the precision of ``t``.

DDBM: Zhou et al., Denoising Diffusion Bridge Models, ICLR 2024.
"""

import torch
from torch import Tensor

from dbae.diffusion.schedules import Schedule


class Process:
    """Marginals and reverse-time drift of a process over ``schedule``, from its ``t_min`` to its ``T``."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.discrete = schedule, schedule.discrete
        self.T, self.t_min = schedule.T, schedule.t_min
        self.t_start = schedule.T  # where a time grid begins

    def abc(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients ``a, b, c`` of the marginal at times t, in their shape and precision (indices: float32)."""
        dtype = t.dtype if t.is_floating_point() else torch.get_default_dtype()
        return tuple(k.to(dtype) for k in self._abc(t if self.discrete else t.double()))

    def _abc(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def marginal(self, x0: Tensor, t: Tensor, noise: Tensor, x_T: Tensor | None = None) -> Tensor:
        """``x_t = a x_T + b x_0 + c eps`` for images [N, ...] at times [N]; a diffusion has no x_T."""
        a, b, c = (k.view(-1, *[1] * (x0.ndim - 1)) for k in self.abc(t))
        x_t = b * x0 + c * noise
        return x_t if x_T is None else a * x_T + x_t

    def draw_times(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Uniform times [n] for training: float32 in [t_min, T), or int64 indices of a chain."""
        if self.discrete:
            return torch.randint(0, self.T, (n,), device=device)
        return self.t_min + (self.T - self.t_min) * torch.rand(n, device=device)

    def drift(self, t: float, guidance: float = 1.0, stochastic: bool = False) -> tuple[float, float, float]:
        """Reverse-time drift as factors of ``(x, x_T, D)`` at time ``0 < t < T``.

        With the score of the base process ``S0 = (s D - x) / (s sigma)^2`` and Doob's term
        ``H = ((s / s_T) x_T - x) / (s^2 (sigma_T^2 - sigma^2))`` (DDBM eq. 9, 10), the bridge score is ``S0 + H`` and

            ODE  f x - g^2/2 (S0 - k H),    SDE  f x - g^2 (S0 + m H),    (k, m) = schedule.guided(w).

        Guidance 1 is the model, ``k = 1`` and ``m = 0`` for every schedule. A diffusion has no H.
        """
        time = torch.tensor(t, dtype=torch.float64)
        f, g2 = self.schedule.f_g2(time)
        s, sigma = self.schedule.s_sigma(time)
        score = g2 if stochastic else g2 / 2
        h_x, h_T = self._h_term(s, sigma, score, guidance, stochastic)
        k_x = f + score / (s * sigma) ** 2 - h_x
        k_D = -score / (s * sigma**2)
        return float(k_x), float(h_T), float(k_D)

    def _h_term(
        self, s: Tensor, sigma: Tensor, score: Tensor, guidance: float, stochastic: bool
    ) -> tuple[Tensor | float, Tensor | float]:
        """Doob's term in the drift: what is subtracted from the factor of x, and the factor of x_T."""
        raise NotImplementedError


class Diffusion(Process):
    """``x_t = b x_0 + c eps``."""

    def _abc(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, c = self.schedule.signal_noise(t)
        return torch.zeros_like(b), b, c

    def _h_term(
        self, s: Tensor, sigma: Tensor, score: Tensor, guidance: float, stochastic: bool
    ) -> tuple[float, float]:
        if guidance != 1:
            raise ValueError(f"guidance: expected 1 for a diffusion, which has no h-term, got {guidance}")
        return 0.0, 0.0


class Bridge(Process):
    """``x_t = a x_T + b x_0 + c eps``, which ends in x_T. Raises ValueError for a discrete schedule."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        if schedule.discrete:
            raise ValueError(f"bridge: expected a continuous schedule, got {type(schedule).__name__}")
        s_T, sigma_T = schedule.s_sigma(torch.tensor(schedule.T, dtype=torch.float64, device="cpu"))
        self.s_T, self.sigma_T = s_T.item(), sigma_T.item()
        self.t_start = schedule.T - 1e-4  # the bridge is singular at T itself; the official sampler starts here

    def _abc(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """DDBM eq. 7."""
        s, sigma = self.schedule.s_sigma(t)
        r = (sigma / self.sigma_T) ** 2  # SNR(T) / SNR(t)
        return r * s / self.s_T, (1 - r) * s, (1 - r).clamp(min=0).sqrt() * s * sigma

    def _h_term(
        self, s: Tensor, sigma: Tensor, score: Tensor, guidance: float, stochastic: bool
    ) -> tuple[Tensor, Tensor]:
        k, m = self.schedule.guided(guidance)
        h = (-score * m if stochastic else score * k) / (self.sigma_T**2 - sigma**2)
        return h / s**2, h / (s * self.s_T)
