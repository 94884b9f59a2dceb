"""Diffusion bridges: the noise schedules VP and VE and everything that follows from them.

A schedule states its signal scale ``s(t)``, its noise level ``sigma(t)`` relative to the signal, and its drift and
diffusion; the bridge marginal, the preconditioning and the sampler's drift are derived once in :class:`Bridge`.

Time runs from ``t_min`` (data) to ``T`` (endpoint). In ``abc``, ``c`` is a standard deviation. All coefficients are
computed in float64 and returned in the precision of ``t``.

DDBM: Zhou et al., Denoising Diffusion Bridge Models, ICLR 2024.  EDM: Karras et al., NeurIPS 2022.
"""

import torch
from torch import Tensor


class Bridge:
    """A diffusion bridge ``x_t = a x_T + b x_0 + c eps`` over a base process ``x_t = s (x_0 + sigma eps)``."""

    T: float
    t_min: float

    def s_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal scale ``s(t)`` and noise level ``sigma(t)`` of the base process; ``SNR = 1 / sigma^2``."""
        raise NotImplementedError

    def f_g2(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift factor ``f`` and squared diffusion ``g^2`` of the base process ``dx = f x dt + g dw``."""
        raise NotImplementedError

    def guided(self, guidance: float) -> tuple[float, float]:
        """Factors of Doob's h-term in the ODE and of its excess in the SDE for guidance ``w`` (see ``drift``)."""
        raise NotImplementedError

    def abc(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of the bridge marginal (DDBM eq. 7): ``x_t = a x_T + b x_0 + c eps``; same shape as ``t``."""
        s, sigma = self.s_sigma(t.double())
        s_T, sigma_T = self._end()
        r = (sigma / sigma_T) ** 2  # SNR(T) / SNR(t)
        a, b, c = r * s / s_T, (1 - r) * s, (1 - r).clamp(min=0).sqrt() * s * sigma
        return a.to(t.dtype), b.to(t.dtype), c.to(t.dtype)

    def scalings(
        self, t: Tensor, sigma_data: float = 0.5, sigma_data_end: float = 0.5, cov_xy: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Preconditioning ``c_skip, c_out, c_in, c_noise`` (DDBM eq. 12-14), same shape as ``t``.

        ``sigma_data``, ``sigma_data_end`` are the standard deviations of ``x_0`` and ``x_T``, ``cov_xy`` their
        covariance; ``c_in`` makes the variance of ``c_in x_t`` one.
        """
        a, b, c = self.abc(t.double())
        var_0, var_T = sigma_data**2, sigma_data_end**2
        A = a**2 * var_T + b**2 * var_0 + 2 * a * b * cov_xy + c**2
        c_in = A.rsqrt()
        c_skip = (b * var_0 + a * cov_xy) / A
        c_out = (a**2 * (var_T * var_0 - cov_xy**2) + var_0 * c**2).sqrt() * c_in
        c_noise = 250 * torch.log(t.double() + 1e-44)
        return c_skip.to(t.dtype), c_out.to(t.dtype), c_in.to(t.dtype), c_noise.to(t.dtype)

    def weight(self, t: Tensor, sigma_data: float = 0.5, sigma_data_end: float = 0.5, cov_xy: float = 0.0) -> Tensor:
        """Loss weight ``1 / c_out^2``: the network's own output is then regressed with unit weight (EDM, table 1)."""
        _, c_out, _, _ = self.scalings(t.double(), sigma_data, sigma_data_end, cov_xy)
        return (1 / c_out**2).to(t.dtype)

    def drift(self, t: float, guidance: float = 1.0, stochastic: bool = False) -> tuple[float, float, float]:
        """Reverse-time drift as factors of ``(x, x_T, D)`` at time ``0 < t < T``.

        With the score of the base process ``S0 = (s D - x) / (s sigma)^2`` and Doob's term
        ``H = ((s / s_T) x_T - x) / (s^2 (sigma_T^2 - sigma^2))`` (DDBM eq. 9, 10), the bridge score is ``S0 + H`` and

            ODE  f x - g^2/2 (S0 - k H),    SDE  f x - g^2 (S0 + m H),    (k, m) = self.guided(w).

        Guidance 1 is the model, ``k = 1`` and ``m = 0`` for every schedule.
        """
        time = torch.tensor(t, dtype=torch.float64)
        (s, sigma), (f, g2) = self.s_sigma(time), self.f_g2(time)
        s_T, sigma_T = self._end()
        k, m = self.guided(guidance)
        score = g2 if stochastic else g2 / 2
        h = -score * m if stochastic else score * k
        h = h / (sigma_T**2 - sigma**2)
        k_x = f + score / (s * sigma) ** 2 - h / s**2
        k_T = h / (s * s_T)
        k_D = -score / (s * sigma**2)
        return k_x.item(), k_T.item(), k_D.item()

    def _end(self) -> tuple[Tensor, Tensor]:
        return self.s_sigma(torch.tensor(self.T, dtype=torch.float64))


class VP(Bridge):
    """Variance preserving: ``g^2 = beta_min + beta_d t`` on ``[1e-4, 1]``."""

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

    def guided(self, guidance: float) -> tuple[float, float]:
        """The official VP code scales ``H`` itself: ODE ``S/2 - w H``, SDE ``S - w H`` with ``S = S0 + H``."""
        return 2 * guidance - 1, 1 - guidance


class VE(Bridge):
    """Variance exploding: ``sigma(t) = t`` on ``[0.002, sigma_max]``."""

    def __init__(self, sigma_max: float = 80.0) -> None:
        self.T, self.t_min = sigma_max, 0.002

    def s_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``s = 1``, ``sigma = t``."""
        return torch.ones_like(t), t

    def f_g2(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``f = 0``, ``g^2 = 2 t``."""
        return torch.zeros_like(t), 2 * t

    def guided(self, guidance: float) -> tuple[float, float]:
        """The official VE code scales ``H`` beside ``S0`` in the ODE and leaves the SDE alone."""
        return guidance, 0.0


class _Unscaled:
    """The ``_simple`` variants: no preconditioning (``D = F``) and unit weight."""

    def scalings(
        self, t: Tensor, sigma_data: float = 0.5, sigma_data_end: float = 0.5, cov_xy: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``c_skip = 0``, ``c_out = c_in = 1``; ``c_noise`` as in the scaled bridge."""
        *_, c_noise = super().scalings(t, sigma_data, sigma_data_end, cov_xy)
        return torch.zeros_like(t), torch.ones_like(t), torch.ones_like(t), c_noise

    def weight(self, t: Tensor, sigma_data: float = 0.5, sigma_data_end: float = 0.5, cov_xy: float = 0.0) -> Tensor:
        """One."""
        return torch.ones_like(t)


class VPSimple(_Unscaled, VP):
    """VP without preconditioning."""


class VESimple(_Unscaled, VE):
    """VE without preconditioning."""


BRIDGES: dict[str, type[Bridge]] = {"vp": VP, "ve": VE, "vp_simple": VPSimple, "ve_simple": VESimple}
