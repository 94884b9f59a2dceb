"""MLPs on vectors that are told a time: the network of a latent prior, and a classifier of a diffusion's features.

The prior: Preechakul et al., Diffusion Autoencoders, CVPR 2022. The classifier: Xiang et al., ICCV 2023 (DDAE).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.nn.layers import timestep_embedding
from dbae.nn.unet_ddpm import TimeEmbedding

TIME_CHANNELS = 64  # of the sinusoid


class ScaledLayer(nn.Module):
    """``SiLU(LayerNorm(Linear(x) (1 + scale)))`` with the scale from the embedding of time; the last one is linear."""

    def __init__(self, in_width: int, out_width: int, emb_channels: int, last: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(in_width, out_width)
        self.last = last
        if not last:
            self.linear_emb = nn.Linear(emb_channels, out_width)
            self.norm = nn.LayerNorm(out_width)
            for layer in (self.linear, self.linear_emb):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.linear(x)
        return h if self.last else F.silu(self.norm(h * (1 + self.linear_emb(F.silu(emb)))))


class SkipMLP(nn.Module):
    """``F(x, c_noise)``: x [N, dim], c_noise [N] -> [N, dim]. Every layer but the first takes ``cat[h, x]``."""

    def __init__(self, dim: int, width: int, layers: int) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(TIME_CHANNELS, dim), nn.SiLU(), nn.Linear(dim, dim))
        widths = [0, *[width] * (layers - 1)]  # of h, as each layer takes it
        self.layers = nn.ModuleList(
            ScaledLayer(h + dim, dim if i == layers - 1 else width, dim, i == layers - 1) for i, h in enumerate(widths)
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        emb = self.time_embed(timestep_embedding(c_noise, TIME_CHANNELS).to(x.dtype))
        h = self.layers[0](x, emb)
        for layer in self.layers[1:]:
            h = layer(torch.cat([h, x], dim=1), emb)
        return h


class FeatureClassifier(nn.Module):
    """Class logits of features of noised images: f [N, dim] and times of their noise t [N], 1, 2, ... -> [N, classes].

    A linear probe is for one noise level, this one for all of them. ``dim`` is divisible by 8.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.time_emb = TimeEmbedding(dim)
        self.cls = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, classes))

    def forward(self, f: Tensor, t: Tensor) -> Tensor:
        return self.cls(f + self.time_emb(t))
