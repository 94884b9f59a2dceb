"""The diffusion transformer, for codes of images (Peebles & Xie, Scalable Diffusion Models with Transformers, 2023).

Tensor names are those of the released files. Row ``classes`` of the table of classes is that of no class.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.nn.layers import Recomputed, timestep_embedding

TIME_CHANNELS = 256  # of the sinusoid
MLP_RATIO, EPS = 4, 1e-6


def position_embedding(width: int, side: int) -> Tensor:
    """Sinusoids of the positions in a grid of ``side x side``, row by row: [side^2, width], ``width`` divisible by 4.

    The first half of the channels tells the column, the second one the row: of each first sines, then cosines, of
    frequencies ``10000^(-k / (width/4))``. Computed in float64.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([axis.repeat(side, 1), axis.repeat_interleave(side, dim=0)], dim=1).float()


def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: a LayerNorm without weights of tokens [N, L, C], scaled and shifted by [N, C]."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale[:, None]) + shift[:, None]


def modulation(width: int, chunks: int) -> nn.Sequential:
    """SiLU and the linear layer from the condition to ``chunks`` shifts, scales and gates.

    They are zero at first, so that a residual branch starts closed (adaLN-Zero).
    """
    layer = nn.Linear(width, chunks * width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.SiLU(), layer)


class PatchEmbed(nn.Module):
    """x [N, C, H, W] -> tokens [N, L, width], one a patch, row by row."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Indices of a chain [N], as they are -> [N, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t, TIME_CHANNELS).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Classes [N] int64, of which ``classes`` is none -> [N, width]."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class SelfAttention(nn.Module):
    """Self-attention over tokens [N, L, width]; rows of ``qkv`` are ordered ({q, k, v}, head, dim)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with the tanh form of GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DiTBlock(Recomputed, nn.Module):
    """Attention and MLP, each between an adaLN and a gate from the condition c [N, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.mlp = SelfAttention(width, heads), MLP(width)
        self.adaLN_modulation = modulation(width, 6)

    def run(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate[:, None] * self.attn(norm(x, shift, scale))
        return x + gate_mlp[:, None] * self.mlp(norm(x, shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """Tokens [N, L, width] -> values of their patches [N, L, patch^2 x channels]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear, self.adaLN_modulation = nn.Linear(width, out), modulation(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(norm(x, *self.adaLN_modulation(c).chunk(2, dim=1)))


class DiT(nn.Module):
    """``F(x, t, y)``: codes x [N, C, H, W], t [N] from 0, classes y [N] or None for none -> [N, 2 C, H, W].

    The output is the noise and, in the second half of the channels, what the variance is made of. The defaults are
    those of DiT-XL/2 for images of 256 px. Its blocks are ``layer-0``, ``layer-1``, ...
    """

    def __init__(
        self,
        size: int = 32,  # of codes
        patch: int = 2,
        channels: int = 4,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.patch, self.no_class = patch, classes
        self.register_buffer("pos_embed", position_embedding(width, size // patch)[None])
        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder, self.y_embedder = TimestepEmbedder(width), LabelEmbedder(classes, width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch**2 * 2 * channels)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, blocks: Sequence[str] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """The output; or, of the named ``blocks``, means over tokens [N, width], stopping after the last of them."""
        if y is None:
            y = torch.full_like(t, self.no_class, dtype=torch.int64)
        c = self.t_embedder(t) + self.y_embedder(y)
        rows = x.shape[2] // self.patch
        x, found = self.x_embedder(x) + self.pos_embed, {}
        for i, block in enumerate(self.blocks):
            x = block(x, c)
            if blocks is not None and f"layer-{i}" in blocks:
                found[f"layer-{i}"] = x.float().mean(dim=1)
                if len(found) == len(blocks):
                    return found
        patches = self.final_layer(x, c).unflatten(2, (self.patch, self.patch, -1)).unflatten(1, (rows, -1))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [N, C, row, in patch, column, in patch]
