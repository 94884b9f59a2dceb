"""The semantic encoder: DiffAE's half U-Net without time (Preechakul et al., CVPR 2022)."""

from torch import Tensor, nn

from dbae.config import ModelConfig
from dbae.nn.layers import Attention1d, BlockSequential, ConvBlock, StemConv2d


class Encoder(nn.Module):
    """x [N, 3, H, W] in [-1, 1] -> [N, latent], or [N, 2 latent] raw statistics where the encoder is stochastic."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        widths = [config.num_channels * factor for factor in config.encoder_mult]
        channels = widths[0]
        self.input_blocks = nn.ModuleList([BlockSequential(StemConv2d(3, channels, 3, padding=1))])
        for level, width in enumerate(widths):
            attended = config.image_size >> level in config.encoder_attention_sizes
            for _ in range(config.num_res_blocks):
                layers = [ConvBlock(channels, width, groups)] + [Attention1d(width, 1, groups)] * attended
                self.input_blocks.append(BlockSequential(*layers))
                channels = width
            if level < len(widths) - 1:
                self.input_blocks.append(BlockSequential(ConvBlock(channels, channels, groups, "down")))

        self.middle_block = BlockSequential(
            ConvBlock(channels, channels, groups),
            Attention1d(channels, 1, groups),
            ConvBlock(channels, channels, groups),
        )
        outputs = 2 * config.latent_dim if config.stochastic else config.latent_dim
        self.out = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, outputs, 1),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        for module in self.input_blocks:
            x = module(x)
        return self.out(self.middle_block(x))
