"""The semantic encoder: DiffAE's half U-Net without time (Preechakul et al., CVPR 2022)."""

from collections.abc import Sequence

from torch import Tensor, nn

from dbae.nn.layers import Attention1d, BlockSequential, ConvBlock, StemConv2d


class Encoder(nn.Module):
    """x [N, 3, H, W] in [-1, 1] -> [N, outputs]: the code, or the raw statistics of a stochastic one."""

    def __init__(
        self,
        image_size: int,
        outputs: int,
        width: int,  # of the first level; the others have it times their factor in channel_mult
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_sizes: Sequence[int],
        groups: int,  # of every GroupNorm
    ) -> None:
        super().__init__()
        widths = [width * factor for factor in channel_mult]
        channels = widths[0]
        self.input_blocks = nn.ModuleList([BlockSequential(StemConv2d(3, channels, 3, padding=1))])
        for level, level_width in enumerate(widths):
            attended = image_size >> level in attention_sizes
            for _ in range(num_res_blocks):
                layers = [ConvBlock(channels, level_width, groups)]
                self.input_blocks.append(BlockSequential(*layers, *[Attention1d(level_width, 1, groups)] * attended))
                channels = level_width
            if level < len(widths) - 1:
                self.input_blocks.append(BlockSequential(ConvBlock(channels, channels, groups, "down")))

        self.middle_block = BlockSequential(
            ConvBlock(channels, channels, groups),
            Attention1d(channels, 1, groups),
            ConvBlock(channels, channels, groups),
        )
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
