"""The endpoint decoder ``x_T = Dec(z)``: a FastGAN-style generator (Liu et al., ICLR 2021).

Weights are divided by their largest singular value (Miyato et al., ICLR 2018): torch's own classic spectral norm, which
has the tensor names of the released files. A norm wants float32: the caller keeps this network out of autocast.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from dbae.nn.layers import UpConv2d

WIDTHS = {4: 16, 8: 8, 16: 4, 32: 2, 64: 2, 128: 1, 256: 0.5}  # feature maps at each size, times the base width
EXCITED_BY = {64: 4, 128: 8}  # skip-layer excitation: the features of one size are scaled by a gate from another


def initial_layer(latent_dim: int, width: int) -> nn.Sequential:
    """z [N, latent, 1, 1] -> [N, width, 4, 4]."""
    conv = spectral_norm(nn.ConvTranspose2d(latent_dim, 2 * width, 4, bias=False))
    return nn.Sequential(OrderedDict(init=nn.Sequential(conv, nn.BatchNorm2d(2 * width), nn.GLU(dim=1))))


def skip_layer_excitation(in_channels: int, out_channels: int) -> nn.Sequential:
    """A gate in (0, 1) [N, out, 1, 1] for the features of a large map, from those of a small one."""
    layers = nn.Sequential(
        nn.AdaptiveAvgPool2d(4),
        spectral_norm(nn.Conv2d(in_channels, out_channels, 4, bias=False)),
        nn.SiLU(),
        spectral_norm(nn.Conv2d(out_channels, out_channels, 1, bias=False)),
        nn.Sigmoid(),
    )
    return nn.Sequential(OrderedDict(main=layers))


def up_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Double the size: nearest upsampling, 3x3 convolution to twice the width, BatchNorm, GLU."""
    return nn.Sequential(
        nn.Identity(),  # released files count the upsampling
        spectral_norm(UpConv2d(in_channels, 2 * out_channels, 3, padding=1, bias=False)),
        nn.BatchNorm2d(2 * out_channels),
        nn.GLU(dim=1),
    )


class Decoder(nn.Module):
    """z [N, latent] -> x_T [N, 3, H, W], unbounded (no tanh). BatchNorm uses batch statistics in training."""

    def __init__(self, image_size: int, latent_dim: int, base_width: int) -> None:
        super().__init__()
        width = {size: int(factor * base_width) for size, factor in WIDTHS.items()}
        self.sizes = [size for size in WIDTHS if 4 < size <= image_size]
        self.init = initial_layer(latent_dim, width[4])
        for size in self.sizes:
            self.add_module(f"feat_{size}", up_block(width[size // 2], width[size]))
            if size in EXCITED_BY:
                self.add_module(f"se_{size}", skip_layer_excitation(width[EXCITED_BY[size]], width[size]))
        if 256 not in self.sizes:  # in every released file and never used: kept, without gradient
            self.feat_256 = up_block(width[128], width[256]).requires_grad_(False)
        self.add_module(f"to_{image_size}", spectral_norm(nn.Conv2d(width[image_size], 3, 1, bias=False)))

    def forward(self, z: Tensor) -> Tensor:
        h = self.init(z[:, :, None, None])
        features: dict[int, Tensor] = {4: h}
        for size in self.sizes:
            h = self.get_submodule(f"feat_{size}")(h)
            if size in EXCITED_BY:
                h = h * self.get_submodule(f"se_{size}")(features[EXCITED_BY[size]])
            features[size] = h
        return self.get_submodule(f"to_{self.sizes[-1]}")(h)
