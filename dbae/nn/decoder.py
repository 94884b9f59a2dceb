"""The endpoint decoder ``x_T = Dec(z)``: a FastGAN-style generator (Liu et al., ICLR 2021)."""

from torch import Tensor, nn

from dbae.config import ModelConfig
from dbae.nn.spectral import SpectralConv2d, SpectralConvTranspose2d, SpectralUpConv2d

WIDTHS = {4: 16, 8: 8, 16: 4, 32: 2, 64: 2, 128: 1, 256: 0.5}  # feature maps at each size, times the base width
GATES = {64: 4, 128: 8}  # skip-layer excitation: the features of one size are gated by those of another


class Stem(nn.Module):
    """z [N, latent, 1, 1] -> [N, width, 4, 4]."""

    def __init__(self, latent_dim: int, width: int) -> None:
        super().__init__()
        conv = SpectralConvTranspose2d(latent_dim, 2 * width, 4, bias=False)
        self.init = nn.Sequential(conv, nn.BatchNorm2d(2 * width), nn.GLU(dim=1))

    def forward(self, z: Tensor) -> Tensor:
        return self.init(z)


class Gate(nn.Module):
    """A gate in (0, 1) [N, out, 1, 1] for the features of a large map from those of a small one (SLE)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            SpectralConv2d(in_channels, out_channels, 4, bias=False),
            nn.SiLU(),
            SpectralConv2d(out_channels, out_channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, small: Tensor) -> Tensor:
        return self.main(small)


def up_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Double the size: nearest upsampling, 3x3 convolution to twice the width, BatchNorm, GLU."""
    return nn.Sequential(
        nn.Identity(),  # released files count the upsampling
        SpectralUpConv2d(in_channels, 2 * out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * out_channels),
        nn.GLU(dim=1),
    )


class Decoder(nn.Module):
    """z [N, latent] -> x_T [N, 3, H, W], unbounded (no tanh). BatchNorm uses batch statistics in training."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = {size: int(factor * config.decoder_channels) for size, factor in WIDTHS.items()}
        self.sizes = [size for size in WIDTHS if 4 < size <= config.image_size]
        self.init = Stem(config.latent_dim, width[4])
        for size in self.sizes:
            self.add_module(f"feat_{size}", up_block(width[size // 2], width[size]))
            if size in GATES:
                self.add_module(f"se_{size}", Gate(width[GATES[size]], width[size]))
        if 256 not in self.sizes:  # in every released file and never used: kept, without gradient
            self.feat_256 = up_block(width[128], width[256]).requires_grad_(False)
        last = SpectralConv2d(width[config.image_size], 3, 1, bias=False)
        self.add_module(f"to_{config.image_size}", last)

    def forward(self, z: Tensor) -> Tensor:
        h = self.init(z[:, :, None, None])
        features: dict[int, Tensor] = {4: h}
        for size in self.sizes:
            h = self.get_submodule(f"feat_{size}")(h)
            if size in GATES:
                h = h * self.get_submodule(f"se_{size}")(features[GATES[size]])
            features[size] = h
        return self.get_submodule(f"to_{self.sizes[-1]}")(h)
