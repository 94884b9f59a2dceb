"""The encoder of Stable Diffusion's autoencoder: from images to the posterior of codes (Rombach et al., CVPR 2022).

Tensor names are those of the files in the format of ``diffusers``.
"""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

GROUPS, EPS = 32, 1e-6  # of every GroupNorm
LOG_VARIANCE = (-30.0, 20.0)  # what it is clamped to
OLDER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of the attention's layers


class VAEResBlock(nn.Module):
    """Two convolutions, each after GroupNorm and SiLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(GROUPS, channels, EPS) for channels in (in_channels, out_channels))
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class VAEDownsample(nn.Module):
    """Convolution of stride 2, of the image with one more column on the right and one more row below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class VAEAttention(nn.Module):
    """Residual self-attention of one head over positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, channels, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # [N, 1 head, positions, C]
        h = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](h)[:, 0].transpose(1, 2).reshape(x.shape)


class VAELevel(nn.Module):
    """Two residual blocks and, in all levels but the last one, a downsampling."""

    def __init__(self, in_channels: int, out_channels: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([VAEResBlock(in_channels, out_channels), VAEResBlock(out_channels, out_channels)])
        self.downsamplers = nn.ModuleList([] if last else [VAEDownsample(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for module in [*self.resnets, *self.downsamplers]:
            x = module(x)
        return x


class VAEMiddle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([VAEResBlock(channels, channels), VAEResBlock(channels, channels)])
        self.attentions = nn.ModuleList([VAEAttention(channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class VAENetwork(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] -> [N, 2 x channels, H / 2^(levels - 1), W / 2^(levels - 1)]."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            VAELevel(widths[max(i - 1, 0)], width, last=i == len(widths) - 1) for i, width in enumerate(widths)
        )
        self.mid_block = VAEMiddle(widths[-1])
        self.conv_norm_out = nn.GroupNorm(GROUPS, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class VAEEncoder(nn.Module):
    """The posterior of codes: x [N, 3, H, W] in [-1, 1] -> mean and log-variance, each [N, channels, H/8, W/8].

    The defaults are those of Stable Diffusion; a size is halved once less than there are ``widths``. Codes that its
    diffusion models take are 0.18215 times a draw.
    """

    def __init__(self, channels: int = 4, widths: Sequence[int] = (128, 256, 512, 512)) -> None:
        super().__init__()
        self.encoder, self.quant_conv = VAENetwork(channels, widths), nn.Conv2d(2 * channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE)


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``VAEEncoder`` takes of the whole autoencoder's tensors, with today's names of the attention's layers."""
    found = {name: tensor for name, tensor in state.items() if name.startswith(("encoder.", "quant_conv."))}
    for older, name in OLDER_NAMES.items():
        found = {key.replace(f"attentions.0.{older}.", f"attentions.0.{name}."): found[key] for key in found}
    return found
