"""Layers that the U-Net, the encoder and the decoder share. Parameter names are those of the released checkpoints."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of ``t`` [N] -> [N, dim] (``dim`` even): the cosine half first, as in ADM (Dhariwal & Nichol, 2021)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zero_init(module: nn.Module) -> nn.Module:
    """Set all parameters to zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class StemConv2d(nn.Conv2d):
    """Convolution of few channels. On a GPU they are filled up with zeros to eight, as tensor cores want them."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.is_cuda:
            x, weight = with_channels(x, 8), with_channels(weight, 8)
        return super()._conv_forward(x, weight, bias)


def with_channels(x: Tensor, multiple: int) -> Tensor:
    """x [N, C, H, W] with channels of zeros up to the next ``multiple``."""
    return F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % multiple))


class DownConv2d(nn.Conv2d):
    """Convolution of the image halved by 2x2 average."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(F.avg_pool2d(x, 2), weight, bias)


class UpConv2d(nn.Conv2d):
    """3x3 convolution of the image doubled by nearest neighbour, x [N, in, H, W] -> [N, out, 2H, 2W].

    A 3x3 window of the doubled image covers four different pixels, so it is one transposed convolution of stride 2,
    whose 4x4 kernel is the full convolution of the 3x3 one with ones [2, 2]: 4/9 of the FLOPs, equal up to rounding.
    Under autocast the kernel is summed in the weight's precision, and rounded once.
    """

    def __init__(self, *args: int, **kwargs: int | bool) -> None:
        super().__init__(*args, **kwargs)
        taps = torch.eye(9).view(9, 1, 3, 3).flip(2, 3)
        kernels = F.conv_transpose2d(taps, torch.ones(1, 1, 2, 2))  # of each of the nine weights
        self.register_buffer("kernels", kernels.flatten(1), persistent=False)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):
            kernel = (weight.flatten(2) @ self.kernels).unflatten(2, (4, 4)).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


# How a block resamples: the 3x3 convolution that does so, and a function for the skip branch.
RESAMPLING: dict[str | None, tuple[type[nn.Conv2d], Callable[[Tensor], Tensor]]] = {
    None: (nn.Conv2d, nn.Identity()),
    "down": (DownConv2d, partial(F.avg_pool2d, kernel_size=2)),
    "up": (UpConv2d, partial(F.interpolate, scale_factor=2, mode="nearest")),
}


class ConvBlock(nn.Module):
    """``skip(x) + Conv(SiLU(GN(x)))``, the encoder's one-convolution residual block; resamples both branches."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, resample: str | None = None) -> None:
        super().__init__()
        conv, self.resample = RESAMPLING[resample]
        layers = nn.GroupNorm(groups, in_channels), nn.SiLU(), conv(in_channels, out_channels, 3, padding=1)
        self.in_layers = nn.Sequential(*layers)
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip_connection(self.resample(x)) + self.in_layers(x)


class ResBlock(ConvBlock):
    """ADM's two-convolution residual block; the embedding scales and shifts the second norm (AdaGN).

    With ``latent_dim`` a code scales it once more, and with it the shift (DiffAE).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        groups: int,
        dropout: float,
        resample: str | None = None,
        latent_dim: int = 0,
    ) -> None:
        super().__init__(in_channels, out_channels, groups, resample)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.cond_emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(latent_dim, out_channels)) if latent_dim else None
        conv = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, out_channels), nn.SiLU(), nn.Dropout(dropout), conv)

    def forward(self, x: Tensor, emb: Tensor, z: Tensor | None = None) -> Tensor:
        h = self.in_layers(x)
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        if self.cond_emb_layers is not None:
            h = h * (1 + self.cond_emb_layers(z)[:, :, None, None])
        return self.skip_connection(self.resample(x)) + self.out_layers[1:](h)


class Attention(nn.Module):
    """Residual self-attention over positions; channels of ``qkv`` are ordered (head, {q, k, v}, dim).

    ``pointwise`` is the class of the two 1x1 convolutions: the released U-Net stores 2-D kernels, the encoder 1-D ones.
    """

    def __init__(self, channels: int, heads: int, groups: int, pointwise: type[nn.Conv2d] | type[nn.Conv1d]) -> None:
        super().__init__()
        self.heads, self.spatial = heads, pointwise is nn.Conv2d
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = pointwise(channels, 3 * channels, 1)
        self.proj_out = zero_init(pointwise(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        shape = (batch, channels, height, width) if self.spatial else (batch, channels, height * width)
        qkv = self.qkv(self.norm(x).reshape(shape))
        q, k, v = qkv.reshape(batch, self.heads, 3, channels // self.heads, height * width).transpose(-1, -2).unbind(2)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(shape)
        return x + self.proj_out(h).reshape(x.shape)


Attention1d = partial(Attention, pointwise=nn.Conv1d)
Attention2d = partial(Attention, pointwise=nn.Conv2d)


class Recomputed:
    """A module with a method ``run``. With ``checkpointing``, training keeps the inputs of ``run`` alone.

    It computes the rest again for the gradient.
    """

    checkpointing = False

    def forward(self, *inputs: Tensor | None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.run, *inputs, use_reentrant=False)
        return self.run(*inputs)


class BlockSequential(Recomputed, nn.Sequential):
    """A ``Sequential`` that hands the embedding of time, and the code, to the blocks that take them."""

    def run(self, x: Tensor, emb: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, emb, z) if isinstance(layer, ResBlock) else layer(x)
        return x
