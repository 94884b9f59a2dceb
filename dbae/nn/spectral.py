"""Spectral normalisation (Miyato et al., ICLR 2018), with the parameter names of the released checkpoints.

PyTorch's own classic form, which gives the same numbers in float32, works through hooks and in autocast's precision,
too coarse for a norm; what replaced it has other names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.nn.layers import UpConv2d


class SpectralNorm(nn.Module):
    """Mixin for convolutions: their weight divided by an estimate of its largest singular value.

    ``weight_u`` and ``weight_v`` estimate the singular vectors of the weight as a matrix [out, rest]. In training mode
    every pass refines them by one power iteration.
    """

    out_dim = 0

    def __init__(self, *args: int, **kwargs: int | bool) -> None:
        super().__init__(*args, **kwargs)
        self.weight_orig = nn.Parameter(self._parameters.pop("weight").data)
        for name, length in zip(("weight_u", "weight_v"), self._matrix().shape, strict=True):
            self.register_buffer(name, F.normalize(torch.randn(length), dim=0, eps=1e-12))

    def normalised(self) -> Tensor:
        """The weight over its largest singular value. No operation here is one that autocast would take to half."""
        matrix = self._matrix()
        if self.training:
            with torch.no_grad():
                self.weight_v.copy_(F.normalize(_times(matrix.T, self.weight_u), dim=0, eps=1e-12))
                self.weight_u.copy_(F.normalize(_times(matrix, self.weight_v), dim=0, eps=1e-12))
        u, v = self.weight_u.clone(), self.weight_v.clone()  # the next pass may change them before the backward one
        return self.weight_orig / (u * _times(matrix, v)).sum()

    def _matrix(self) -> Tensor:
        return self.weight_orig.transpose(0, self.out_dim).flatten(1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector, in the precision of both."""
    return (matrix * vector).sum(1)


class SpectralConv2d(SpectralNorm, nn.Conv2d):
    """Convolution without bias."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.normalised(), None)


class SpectralUpConv2d(SpectralConv2d, UpConv2d):
    """The same of the doubled image."""


class SpectralConvTranspose2d(SpectralNorm, nn.ConvTranspose2d):
    """Transposed convolution without bias, of stride 1."""

    out_dim = 1

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.normalised())


def set_power_iteration(module: nn.Module, on: bool) -> None:
    """Let the spectral norms below ``module`` refine their estimate in the next training passes, or keep it.

    One refinement per optimizer step makes a step independent of how its batch is cut into micro-batches.
    """
    for layer in module.modules():
        if isinstance(layer, SpectralNorm):
            layer.train(on)
