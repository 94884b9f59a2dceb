"""The U-Nets of DDPM and DDPM++ as DDAE builds them: every residual block adds the embedding of time.

Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020.  DDPM++: Song et al., Score-Based Generative Modeling
through Stochastic Differential Equations, ICLR 2021.  DDAE: Xiang et al., Denoising Diffusion Autoencoders are Unified
Self-supervised Learners, ICCV 2023.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.nn.layers import RESAMPLING, Recomputed, StemConv2d, UpConv2d

GROUPS, LAST_GROUPS = 32, 8  # of every GroupNorm but the last, and of that


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of ``t`` [N] -> [N, dim] (``dim`` even), the sine half first, as in DDPM's code.

    Frequencies go from 1 to exactly 1/10000: ``10000^(-k / (dim/2 - 1))``.
    """
    half = dim // 2
    k = torch.arange(half, device=t.device, dtype=torch.float32)
    angles = t[:, None].float() * torch.exp(-math.log(10000.0) / (half - 1) * k)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """Times [N], and labels [N, label_dim] of an augmentation or None for zeros, -> [N, emb_channels]."""

    def __init__(self, emb_channels: int, label_dim: int = 0) -> None:
        super().__init__()
        self.width = emb_channels // 4
        self.aug_emb = nn.Linear(label_dim, self.width, bias=False) if label_dim else None
        self.lin1, self.lin2 = nn.Linear(self.width, emb_channels), nn.Linear(emb_channels, emb_channels)

    def forward(self, t: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = sinusoid(t, self.width).to(self.lin1.weight.dtype)
        if labels is not None:
            emb = emb + self.aug_emb(labels.to(emb.dtype))
        return self.lin2(F.silu(self.lin1(emb)))


class AdditiveResBlock(nn.Module):
    """Two convolutions with the embedding of time added between them; resamples both branches."""

    def __init__(
        self, in_channels: int, out_channels: int, emb_channels: int, dropout: float, resample: str | None = None
    ) -> None:
        super().__init__()
        conv, self.resample = RESAMPLING[resample]
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, in_channels), conv(in_channels, out_channels, 3, padding=1)
        self.time_emb = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.norm2 = nn.GroupNorm(GROUPS, out_channels)
        self.conv2 = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb(emb)[:, :, None, None]
        return self.shortcut(self.resample(x)) + self.conv2(F.silu(self.norm2(h)))


class LinearAttention(nn.Module):
    """Residual self-attention over positions by linear layers; rows of ``projection`` are (head, {q, k, v}, dim)."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // (head_channels or channels)
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.projection, self.output = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.projection(self.norm(x).flatten(2).transpose(1, 2))
        q, k, v = tokens.unflatten(2, (self.heads, 3, -1)).transpose(1, 3).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.output(h).transpose(1, 2).reshape(x.shape)


class Block(Recomputed, nn.Module):
    """A residual block and, where ``head_channels`` is not None, attention (0: one head of all channels)."""

    def __init__(
        self, in_channels: int, out_channels: int, emb_channels: int, dropout: float, head_channels: int | None
    ) -> None:
        super().__init__()
        self.res = AdditiveResBlock(in_channels, out_channels, emb_channels, dropout)
        self.attn = nn.Identity() if head_channels is None else LinearAttention(out_channels, head_channels)

    def run(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attn(self.res(x, emb))


class ConvResample(nn.Module):
    """DDPM's resampling: a convolution of stride 2, or of the doubled image; it does not see the time."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        stride = {} if up else {"stride": 2}
        self.conv = (UpConv2d if up else nn.Conv2d)(channels, channels, 3, padding=1, **stride)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x)


class ResidualResample(nn.Module):
    """DDPM++'s resampling: a residual block that resamples both branches."""

    def __init__(self, channels: int, up: bool, emb_channels: int, dropout: float) -> None:
        super().__init__()
        self.op = AdditiveResBlock(channels, channels, emb_channels, dropout, "up" if up else "down")

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x, emb)


class Middle(Recomputed, nn.Module):
    """Residual block, attention, residual block, at the smallest resolution."""

    def __init__(self, channels: int, emb_channels: int, dropout: float, head_channels: int) -> None:
        super().__init__()
        self.res1, self.res2 = (AdditiveResBlock(channels, channels, emb_channels, dropout) for _ in range(2))
        self.attn = LinearAttention(channels, head_channels)

    def run(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.res2(self.attn(self.res1(x, emb)), emb)


class DDPMUNet(nn.Module):
    """``F(x, c_noise, labels)``: x [N, 3, H, W], c_noise [N], labels [N, label_dim] or None -> [N, 3, H, W].

    Its blocks are ``out_1``, ``out_2``, ...: the residual blocks of the way up with their attention, from the deepest.
    """

    def __init__(
        self,
        image_size: int,
        width: int,  # of the first level; the others have it times their factor in channel_mult
        channel_mult: Sequence[int],
        num_res_blocks: int,  # per level, one more on the way up
        attention_sizes: Sequence[int],  # resolutions with attention; the middle has it, too
        head_channels: int,  # of attention; 0: one head
        dropout: float,
        residual_resampling: bool,  # DDPM++, or by plain convolutions (DDPM)
        label_dim: int = 0,  # of labels of an augmentation; 0: none
    ) -> None:
        super().__init__()
        emb_channels, widths = 4 * width, [width * factor for factor in channel_mult]
        heads = [head_channels if image_size >> level in attention_sizes else None for level in range(len(widths))]

        def block(in_channels: int, level: int) -> Block:
            return Block(in_channels, widths[level], emb_channels, dropout, heads[level])

        def resampling(channels: int, up: bool) -> nn.Module:
            if residual_resampling:
                return ResidualResample(channels, up, emb_channels, dropout)
            return ConvResample(channels, up)

        self.time_emb = TimeEmbedding(emb_channels, label_dim)
        self.image_proj = StemConv2d(3, width, 3, padding=1)

        # Down: what every module gives is kept for the way up
        channels, skips, self.down = width, [width], nn.ModuleList()
        for level, level_width in enumerate(widths):
            for _ in range(num_res_blocks):
                self.down.append(block(channels, level))
                channels = level_width
                skips.append(channels)
            if level < len(widths) - 1:
                self.down.append(resampling(channels, up=False))
                skips.append(channels)

        self.middle = Middle(channels, emb_channels, dropout, head_channels)

        # Up: all but what resamples also take what the module at their height on the way down gave
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(num_res_blocks + 1):
                self.up.append(block(channels + skips.pop(), level))
                channels = widths[level]
            if level > 0:
                self.up.append(resampling(channels, up=True))

        self.norm, self.final = nn.GroupNorm(LAST_GROUPS, channels), nn.Conv2d(channels, 3, 3, padding=1)

    def named_blocks(self) -> list[tuple[str, nn.Module]]:
        """Names and modules of the blocks whose features are asked for, in the order in which they are computed."""
        blocks = [module for module in self.up if isinstance(module, Block)]
        return [(f"out_{k}", module) for k, module in enumerate(blocks, start=1)]

    def keep_until(self, block: str) -> None:
        """Drop all that ``block`` does not depend on, labels included; the network then has no other output.

        Raises KeyError for a name that is none of the blocks.
        """
        last = list(self.up).index(dict(self.named_blocks())[block])
        self.up = self.up[: last + 1]
        self.norm = self.final = self.time_emb.aug_emb = None

    def levels(self) -> list[list[nn.Module]]:
        """The modules that are there, by level, in the order in which they are computed.

        The first convolution and the embedding of time; each resolution of the way down, with what leaves it; the
        middle; each resolution of the way up.
        """
        levels: list[list[nn.Module]] = [[self.image_proj, self.time_emb]]
        for path in (self.down, [self.middle], self.up):
            levels.append([])
            for k, module in enumerate(path, start=1):
                levels[-1].append(module)
                if isinstance(module, (ConvResample, ResidualResample)) and k < len(path):
                    levels.append([])
        ends = [self.norm, self.final] if self.final is not None else []
        return [*levels, ends] if ends else levels

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, blocks: Sequence[str] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """The output; or, of the named ``blocks``, their activations [N, C, h, w], stopping after the last of them."""
        emb, x = self.time_emb(c_noise, labels), self.image_proj(x)
        skips = [x]
        for module in self.down:
            x = module(x, emb)
            skips.append(x)
        x, k, found = self.middle(x, emb), 0, {}
        for module in self.up:
            if not isinstance(module, Block):
                x = module(x, emb)
                continue
            x, k = module(torch.cat([x, skips.pop()], dim=1), emb), k + 1
            if blocks is not None and f"out_{k}" in blocks:
                found[f"out_{k}"] = x
                if len(found) == len(blocks):
                    return found
        return self.final(F.silu(self.norm(x)))
