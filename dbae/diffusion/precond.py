"""Preconditionings: how the network's output F becomes the estimate ``D = c_skip x_t + c_out F(c_in x_t, c_noise)``.

EDM: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022.
"""

import torch
from torch import Tensor

from dbae.diffusion.process import Process

Scalings = tuple[Tensor, Tensor, Tensor, Tensor]


class Preconditioning:
    """``c_skip, c_out, c_in, c_noise`` and the loss weight at times t, float64 inside, in t's precision outside."""

    def scalings(self, process: Process, t: Tensor) -> Scalings:
        """``c_skip, c_out, c_in, c_noise`` like t (float32 for indices)."""
        dtype = t.dtype if t.is_floating_point() else torch.get_default_dtype()
        return tuple(k.to(dtype) for k in self._scalings(process, t.double()))

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """Loss weight ``1 / c_out^2``: the network's own output is then regressed with unit weight (EDM, table 1)."""
        dtype = t.dtype if t.is_floating_point() else torch.get_default_dtype()
        _, c_out, _, _ = self._scalings(process, t.double())
        return (1 / c_out**2).to(dtype)

    def _scalings(self, process: Process, t: Tensor) -> Scalings:
        raise NotImplementedError


class Karras(Preconditioning):
    """EDM's, extended to a bridge (DDBM eq. 12-14): inputs and the network's target have variance one.

    ``sigma_data``, ``sigma_data_end`` are the standard deviations of ``x_0`` and ``x_T``, ``cov_xy`` their covariance.
    ``c_noise = log_scale log t``: 250 in DDBM and DBAE, 1/4 in EDM.
    """

    def __init__(
        self, sigma_data: float = 0.5, sigma_data_end: float = 0.5, cov_xy: float = 0.0, log_scale: float = 250.0
    ) -> None:
        self.var_0, self.var_T, self.cov_xy, self.log_scale = sigma_data**2, sigma_data_end**2, cov_xy, log_scale

    def _scalings(self, process: Process, t: Tensor) -> Scalings:
        a, b, c = process.abc(t)
        A = a**2 * self.var_T + b**2 * self.var_0 + 2 * a * b * self.cov_xy + c**2
        c_in = A.rsqrt()
        c_skip = (b * self.var_0 + a * self.cov_xy) / A
        c_out = (a**2 * (self.var_T * self.var_0 - self.cov_xy**2) + self.var_0 * c**2).sqrt() * c_in
        return c_skip, c_out, c_in, self.log_scale * torch.log(t + 1e-44)


class Identity(Preconditioning):
    """None (``D = F``), with unit weight: the ``_simple`` variants of the official code."""

    def _scalings(self, process: Process, t: Tensor) -> Scalings:
        return torch.zeros_like(t), torch.ones_like(t), torch.ones_like(t), 250 * torch.log(t + 1e-44)


class Epsilon(Preconditioning):
    """Noise prediction: ``D = (x_t - c F) / b``, and the weighted loss is the error of the noise. ``c_noise = t``."""

    def _scalings(self, process: Process, t: Tensor) -> Scalings:
        _, b, c = process.abc(t)
        return 1 / b, -c / b, torch.ones_like(b), t
