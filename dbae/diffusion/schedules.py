"""Noise schedules: the base process ``x_t = s (x_0 + sigma eps)`` from the data (t_min) to the end (T).

A continuous schedule has a time in [t_min, T]; a discrete one has the indices 0 ... steps - 1 of a chain, and two more:
-1 is the data, ``steps`` is pure noise. All that follows from a schedule is in ``process``.
"""

import torch
from torch import Tensor


class Schedule:
    """Signal scale and noise level as functions of time, in the precision of t (float64 inside the library)."""

    discrete = False
    T: float
    t_min: float

    def s_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal scale ``s(t)`` and noise level ``sigma(t)`` relative to the signal; ``SNR = 1 / sigma^2``."""
        raise NotImplementedError

    def signal_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of ``x_t = b x_0 + c eps``: ``b = s``, ``c = s sigma``."""
        s, sigma = self.s_sigma(t)
        return s, s * sigma

    def f_g2(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift factor ``f`` and squared diffusion ``g^2`` of ``dx = f x dt + g dw``; continuous schedules only."""
        raise ValueError(f"{type(self).__name__} is a chain without a drift; expected ddim, ddpm, edm, dbim2 or dbim3")

    def time_at(self, sigma: float) -> float:
        """The time, or the nearest index, at which the noise level is ``sigma``."""
        raise NotImplementedError

    def guided(self, guidance: float) -> tuple[float, float]:
        """Factors of Doob's h-term in a bridge's ODE, and of its excess in the SDE, for guidance w (``Bridge.drift``).

        1 is the model, for every schedule; other values mean what they mean in the official code.
        """
        raise ValueError(f"guidance: {type(self).__name__} has none")


class VP(Schedule):
    """Variance preserving: ``g^2 = beta_min + beta_d t`` on [1e-4, 1]."""

    def __init__(self, beta_d: float = 2.0, beta_min: float = 0.1) -> None:
        self.beta_d, self.beta_min = beta_d, beta_min
        self.T, self.t_min = 1.0, 1e-4

    def s_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``log s = -beta_d t^2/4 - beta_min t/2``, ``sigma^2 = exp(beta_d t^2/2 + beta_min t) - 1``."""
        log_s = -self.beta_d * t**2 / 4 - self.beta_min * t / 2
        return log_s.exp(), torch.expm1(-2 * log_s).sqrt()

    def f_g2(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``f = d log s / dt``, ``g^2 = -2 f``."""
        g2 = self.beta_min + self.beta_d * t
        return -g2 / 2, g2

    def time_at(self, sigma: float) -> float:
        """The positive root of ``beta_d t^2/2 + beta_min t = log(1 + sigma^2)``."""
        level = torch.tensor(sigma, dtype=torch.float64).square().log1p().item()
        root = (self.beta_min**2 + 2 * self.beta_d * level) ** 0.5
        return 2 * level / (self.beta_min + root)

    def guided(self, guidance: float) -> tuple[float, float]:
        """The official VP code scales ``H`` itself: ODE ``S/2 - w H``, SDE ``S - w H`` with ``S = S0 + H``."""
        return 2 * guidance - 1, 1 - guidance


class VE(Schedule):
    """Variance exploding: ``sigma = t`` on [0.002, sigma_max]."""

    def __init__(self, sigma_max: float = 80.0) -> None:
        self.T, self.t_min = sigma_max, 0.002

    def s_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``s = 1``, ``sigma = t``."""
        return torch.ones_like(t), t

    def f_g2(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``f = 0``, ``g^2 = 2 t``."""
        return torch.zeros_like(t), 2 * t

    def time_at(self, sigma: float) -> float:
        """sigma itself."""
        return sigma

    def guided(self, guidance: float) -> tuple[float, float]:
        """The official VE code scales ``H`` beside ``S0`` in the ODE and leaves the SDE alone."""
        return guidance, 0.0


class DiscreteSchedule(Schedule):
    """A chain of ``steps`` noise levels, ``q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i)`` (DDPM eq. 2)."""

    discrete = True

    def __init__(self, betas: Tensor) -> None:
        """``betas`` [steps] are float64."""
        kept = torch.cumprod(1 - betas, dim=0)  # alpha-bar of DDPM, the square of the signal scale
        self.alphas = torch.cat([kept.new_ones(1), kept, kept.new_zeros(1)])  # with the data, and pure noise
        self.steps = len(betas)
        self.T, self.t_min = self.steps, 0

    def signal_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``b = sqrt(alpha-bar)``, ``c = sqrt(1 - alpha-bar)`` at indices -1 ... steps."""
        self.alphas = self.alphas.to(t.device)  # copied to a device once
        alpha = self.alphas[t.long() + 1]
        return alpha.sqrt(), (1 - alpha).sqrt()

    def s_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``s = b``, ``sigma = c / b``: infinite for pure noise."""
        b, c = self.signal_noise(t)
        return b, c / b

    def time_at(self, sigma: float) -> int:
        """The index of the chain whose log noise level is nearest."""
        _, levels = self.s_sigma(torch.arange(self.steps, device=self.alphas.device))
        return int((levels.log() - torch.tensor(sigma, dtype=torch.float64).log()).abs().argmin())


class LinearBeta(DiscreteSchedule):
    """DDPM's images: betas from ``first`` to ``last`` in even steps."""

    def __init__(self, steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> None:
        super().__init__(torch.linspace(first, last, steps, dtype=torch.float64, device="cpu"))


class ConstantBeta(DiscreteSchedule):
    """DiffAE's codes: one beta for all steps."""

    def __init__(self, steps: int = 1000, beta: float = 0.008) -> None:
        super().__init__(torch.full((steps,), beta, dtype=torch.float64, device="cpu"))
