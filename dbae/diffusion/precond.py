"""Preconditioning: how the estimate ``D`` of ``x_0`` is made from what the network ``F`` returns.

    D(x_t, t) = c_skip x_t + c_out F(c_in x_t, c_noise),    loss = weight mean((D - x_0)^2)

The weight is ``1 / c_out^2``: the network's own target is then regressed with unit weight (EDM, table 1).

EDM: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dbae.diffusion.process import Process, float_dtype

TIME_SCALE = 250.0  # of the log of time, as the bridge models feed it to their network


class Preconditioning:
    """Coefficients around a network; a subclass has ``coefficients(process, t)``, all four at float64 times.

    Results have the shape and precision of ``t``, or the default precision where ``t`` holds integers.
    """

    def scalings(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``c_skip, c_out, c_in, c_noise``."""
        return tuple(value.to(float_dtype(t)) for value in self.coefficients(process, t.double()))

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """Loss weight ``1 / c_out^2``."""
        return (1 / self.coefficients(process, t.double())[1] ** 2).to(float_dtype(t))


@dataclass
class Karras(Preconditioning):
    """Unit variance of the network's input and target: DDBM eq. 12-14, which for ``a = 0`` is EDM's.

    ``sigma_data`` and ``sigma_data_end`` are the standard deviations of ``x_0`` and ``x_T``, ``cov_xy`` is their
    covariance, and ``c_noise = log_scale log t`` (EDM: 0.25).
    """

    sigma_data: float = 0.5
    sigma_data_end: float = 0.5
    cov_xy: float = 0.0
    log_scale: float = TIME_SCALE

    def coefficients(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b, c = process.abc(t)
        var_0, var_T, cov = self.sigma_data**2, self.sigma_data_end**2, self.cov_xy
        A = a**2 * var_T + b**2 * var_0 + 2 * a * b * cov + c**2  # variance of x_t
        c_in = A.rsqrt()
        c_skip = (b * var_0 + a * cov) / A
        c_out = (a**2 * (var_T * var_0 - cov**2) + var_0 * c**2).sqrt() * c_in
        return c_skip, c_out, c_in, self.log_scale * torch.log(t + 1e-44)


@dataclass
class Epsilon(Preconditioning):
    """The network predicts the noise: ``D = (x_t - c F) / b`` (DDPM). Its error is the loss.

    It is given the time, over ``time_scale`` where that is not 1 (DDAE: the length of the chain).
    """

    time_scale: float = 1.0

    def coefficients(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, b, c = process.abc(t)
        return 1 / b, -c / b, torch.ones_like(t), t / self.time_scale


class Identity(Preconditioning):
    """The network predicts ``x_0`` from ``x_t``, as they are; ``c_noise`` as in ``Karras`` (DBAE's ``_simple``)."""

    def coefficients(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t), torch.ones_like(t), TIME_SCALE * torch.log(t + 1e-44)
