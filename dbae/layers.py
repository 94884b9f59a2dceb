"""Layers that the U-Net and the encoder share. Parameter names are those of the released checkpoints."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def resampling(kind: str | None) -> nn.Module:
    """Halve by 2x2 average ("down"), double by nearest neighbour ("up"), or keep (None)."""
    return {None: nn.Identity(), "down": nn.AvgPool2d(2), "up": nn.Upsample(scale_factor=2, mode="nearest")}[kind]


class ConvBlock(nn.Module):
    """``skip(x) + Conv(SiLU(GN(x)))``, the encoder's one-convolution residual block; resamples both branches."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, resample: str | None = None) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, in_channels), nn.SiLU(), conv)
        self.resample = resampling(resample)
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        return self.skip_connection(self.resample(x)) + h


class ResBlock(ConvBlock):
    """ADM's two-convolution residual block; the embedding scales and shifts the second norm (AdaGN)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        groups: int,
        dropout: float,
        resample: str | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, groups, resample)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        conv = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.out_layers = nn.Sequential(nn.GroupNorm(groups, out_channels), nn.SiLU(), nn.Dropout(dropout), conv)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
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


class BlockSequential(nn.Sequential):
    """A ``Sequential`` that hands the embedding to the blocks that take one."""

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x
