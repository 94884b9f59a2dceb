"""Noise schedules: how much signal and noise ``x_t = b x_0 + c eps`` holds at time ``t``.

With the signal scale ``s = b`` and the noise level ``sigma = c / b`` the same is ``x_t = s (x_0 + sigma eps)``, so the
signal-to-noise ratio is ``1 / sigma^2``. Time runs from the data up to ``T``. VP and VE are continuous and know the
drift of their process; LinearBeta and ConstantBeta are the chains of DDPM, whose time is a whole number.
"""

import torch
from torch import Tensor


class Schedule:
    """Signal and noise over time; ``sigma`` grows with ``t``. Training draws times from ``t_min`` to ``T``.

    All methods take times or noise levels of any shape and return tensors of that shape. A subclass has ``s_sigma(t)``;
    ``signal_noise(t)``, which is ``b = s`` and ``c = s sigma``, finite where ``sigma`` is not; and ``time_at(sigma)``.
    Where it is continuous also ``f_g2(t)``, the drift factor ``f = d log s / dt`` and squared diffusion
    ``g^2 = s^2 d sigma^2 / dt`` of ``dx = f x dt + g dw``, and ``guided(w)``: the factors of a bridge's h-term
    (``Bridge.drift``), whose official guidance differs by schedule.
    """

    T: float
    t_min: float
    discrete = False


class VariancePreserving(Schedule):
    """``b^2 + c^2 = 1``: a subclass has ``log_s(t)``, from 0 (data) down to minus infinity (pure noise)."""

    def s_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``sigma^2 = 1 / s^2 - 1``."""
        log_s = self.log_s(t)
        return log_s.exp(), torch.expm1(-2 * log_s).sqrt()

    def signal_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``c^2 = 1 - b^2``."""
        log_s = self.log_s(t)
        return log_s.exp(), (-torch.expm1(2 * log_s)).sqrt()


class VP(VariancePreserving):
    """Variance preserving with ``g^2 = beta_min + beta_d t``, for ``t`` in [1e-4, 1]."""

    T, t_min = 1.0, 1e-4

    def __init__(self, beta_d: float = 2.0, beta_min: float = 0.1) -> None:
        self.beta_d, self.beta_min = beta_d, beta_min

    def log_s(self, t: Tensor) -> Tensor:
        return -self.beta_d * t**2 / 4 - self.beta_min * t / 2

    def time_at(self, sigma: Tensor) -> Tensor:
        """The positive root of ``beta_d t^2 / 2 + beta_min t = log(1 + sigma^2)``."""
        L = torch.log1p(sigma**2)
        return 2 * L / (self.beta_min + (self.beta_min**2 + 2 * self.beta_d * L).sqrt())

    def f_g2(self, t: Tensor) -> tuple[Tensor, Tensor]:
        g2 = self.beta_min + self.beta_d * t
        return -g2 / 2, g2

    def guided(self, guidance: float) -> tuple[float, float]:
        """The official VP code scales ``H`` itself: ODE ``S/2 - w H``, SDE ``S - w H`` with ``S = S0 + H``."""
        return 2 * guidance - 1, 1 - guidance


class VE(Schedule):
    """Variance exploding: ``s = 1`` and ``sigma = t``, for ``t`` in [0.002, sigma_max]; EDM's schedule, too."""

    t_min = 0.002

    def __init__(self, sigma_max: float = 80.0) -> None:
        self.T = sigma_max

    def s_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    signal_noise = s_sigma

    def time_at(self, sigma: Tensor) -> Tensor:
        return sigma

    def f_g2(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), 2 * t

    def guided(self, guidance: float) -> tuple[float, float]:
        """The official VE code scales ``H`` beside ``S0`` in the ODE and leaves the SDE alone."""
        return guidance, 0.0


class Discrete(VariancePreserving):
    """A chain of ``betas``: ``b^2`` at index ``t`` is the product of ``1 - beta`` up to and with that index (DDPM).

    Indices are ``start`` .. T - 1, ``start`` 0 or 1. Beside them ``start - 1`` is the data (``b = 1, c = 0``) and ``T``
    is pure noise (``b = 0, c = 1``). Results are float64, whatever the type of ``t``.
    """

    discrete = True

    def __init__(self, betas: Tensor, start: int = 0) -> None:
        self.t_min, self.T = start, start + len(betas)
        log_s = torch.log1p(-betas).cumsum(0) / 2
        self._set_table(torch.cat([log_s.new_tensor([0.0]), log_s, log_s.new_tensor([-torch.inf])]))

    def _set_table(self, table: Tensor) -> None:
        """``table`` [steps + 2] is ``log s`` from the index before ``t_min`` to ``T``."""
        self._tables = {table.device: table}  # a copy on each device that has asked for one

    def log_s(self, t: Tensor) -> Tensor:
        if t.device not in self._tables:
            self._tables[t.device] = self._tables[torch.device("cpu")].to(t.device)
        return self._tables[t.device][t.long() + 1 - self.t_min]

    def time_at(self, sigma: Tensor) -> Tensor:
        """The index, int64, whose noise level is nearest to ``sigma``."""
        _, levels = self.s_sigma(torch.arange(self.t_min, self.T, device=sigma.device))
        return (sigma[..., None] - levels).abs().argmin(-1) + self.t_min


class LinearBeta(Discrete):
    """Betas evenly from ``first`` to ``last`` (DDPM; the images of DiffAE and, with ``start`` 1, of DDAE)."""

    def __init__(self, steps: int = 1000, first: float = 1e-4, last: float = 0.02, start: int = 0) -> None:
        super().__init__(torch.linspace(first, last, steps, dtype=torch.float64, device="cpu"), start)


class ConstantBeta(Discrete):
    """The same beta everywhere (DiffAE's latent prior)."""

    def __init__(self, steps: int = 1000, beta: float = 0.008) -> None:
        super().__init__(torch.full((steps,), beta, dtype=torch.float64, device="cpu"))
