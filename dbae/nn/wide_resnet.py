"""The wide residual network, told the noise level of its images, as the DDAE paper's classifier has it.

Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016; Xiang et al., ICCV 2023 (DDAE), for the noise level. Tensor
names are those of the official DDAE code.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOURIER, EMB_CHANNELS = 128, 512  # frequencies, and width of the embedding of the noise level
FREQUENCY_STD = 16.0  # of the fixed random frequencies
STEM, MAX_GROUPS = 16, 32  # channels of the first convolution; largest number of groups of a norm


def norm_relu(channels: int) -> nn.Sequential:
    """GroupNorm of ``channels / 4`` groups, 32 at most, and ReLU."""
    return nn.Sequential(nn.GroupNorm(min(channels // 4, MAX_GROUPS), channels), nn.ReLU())


class FourierFeatures(nn.Module):
    """Noise levels [N] -> [N, 2 x 128]: sines, then cosines, of ``2 pi W u`` with fixed random ``W``."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("W", FREQUENCY_STD * torch.randn(FOURIER))

    def forward(self, u: Tensor) -> Tensor:
        angles = 2 * math.pi * u[:, None].float() * self.W
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class WideBlock(nn.Module):
    """A residual block that is normed first: two convolutions, with the embedding added between them.

    The shortcut has no weights: where widths differ the input is averaged by the stride and gets channels of zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, first: bool) -> None:
        super().__init__()
        self.stride, self.first, self.more = stride, first, out_channels - in_channels
        self.init_bn = norm_relu(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.time_emb = nn.Sequential(nn.SiLU(), nn.Linear(EMB_CHANNELS, out_channels))
        self.bn_2 = norm_relu(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        a = self.init_bn(x)
        h = self.conv1(a) + self.time_emb(emb)[:, :, None, None]
        h = self.conv2(self.bn_2(h))
        if self.first:  # the network's first block goes on from its normed input
            x = a
        if self.more:
            x = F.pad(F.avg_pool2d(x, self.stride), (0, 0, 0, 0, 0, self.more))
        return x + h


class WideGroup(nn.Module):
    """``n`` blocks of one width, of which the first one changes width and resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, n: int, first: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            WideBlock(in_channels if i == 0 else out_channels, out_channels, stride if i == 0 else 1, first and i == 0)
            for i in range(n)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, emb)
        return x


class WideResNet(nn.Module):
    """Class logits of noised images: x [N, 3, H, W] of any scale, u [N] -> [N, classes].

    ``u`` tells the noise level: t/1000 of a chain (VP), or ln sigma (VE). WRN-28-10 has depth 28 (6 n + 4) and widths
    160, 320 and 640. Every image is brought to mean 0 and standard deviation 1 first. Weights start as Kaiming-normal
    values (fan in), biases as torch has them.
    """

    def __init__(self, classes: int, depth: int = 28, widen: int = 10) -> None:
        super().__init__()
        n, widths = (depth - 4) // 6, [STEM * widen * factor for factor in (1, 2, 4)]
        self.time_emb = FourierFeatures()
        self.time_emb_mlp = nn.Sequential(
            nn.Linear(2 * FOURIER, EMB_CHANNELS), nn.SiLU(), nn.Linear(EMB_CHANNELS, EMB_CHANNELS)
        )
        self.init_conv = nn.Conv2d(3, STEM, 3, padding=1, bias=False)
        self.group1 = WideGroup(STEM, widths[0], 1, n, first=True)
        self.group2 = WideGroup(widths[0], widths[1], 2, n, first=False)
        self.group3 = WideGroup(widths[1], widths[2], 2, n, first=False)
        self.pre_pool_bn = norm_relu(widths[2])
        self.final_linear = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        emb = self.time_emb_mlp(self.time_emb(u).to(self.init_conv.weight.dtype))
        std, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True)
        least = x[0].numel() ** -0.5  # of the standard deviation, so that a plain image stays finite
        h = self.init_conv((x - mean) / std.clamp(min=least))
        for group in (self.group1, self.group2, self.group3):
            h = group(h, emb)
        return self.final_linear(self.pre_pool_bn(h).mean(dim=(2, 3)))
