"""The denoising U-Net of ADM (Dhariwal & Nichol, 2021), conditioned on the noisy image, the endpoint, time and code."""

import torch
from torch import Tensor, nn

from dbae.config import ModelConfig
from dbae.nn.layers import Attention2d, BlockSequential, ResBlock, StemConv2d, timestep_embedding, zero_init


class UNet(nn.Module):
    """``F(x, c_noise, z)``: x [N, 6, H, W] = cat(c_in x_t, x_T), c_noise [N], z [N, latent] -> [N, 3, H, W]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width = config.num_channels
        emb_channels = 4 * self.width
        widths = [self.width * factor for factor in config.channel_mult]
        attended = [config.image_size >> level in config.attention_sizes for level in range(len(widths))]

        def block(in_channels: int, out_channels: int, resample: str | None = None) -> ResBlock:
            return ResBlock(in_channels, out_channels, emb_channels, config.norm_groups, config.dropout, resample)

        def attention(channels: int) -> nn.Module:
            return Attention2d(channels, max(channels // config.head_channels, 1), config.norm_groups)

        self.time_embed = nn.Sequential(
            nn.Linear(self.width, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.label_emb = nn.Linear(config.latent_dim, emb_channels)

        channels = widths[0]
        self.input_blocks = nn.ModuleList([BlockSequential(StemConv2d(6, channels, 3, padding=1))])
        skips = [channels]
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                layers = [block(channels, width)] + [attention(width)] * attended[level]
                self.input_blocks.append(BlockSequential(*layers))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(BlockSequential(block(channels, channels, "down")))
                skips.append(channels)

        self.middle_block = BlockSequential(block(channels, channels), attention(channels), block(channels, channels))

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(config.num_res_blocks + 1):
                layers = [block(channels + skips.pop(), width)] + [attention(width)] * attended[level]
                channels = width
                if level > 0 and i == config.num_res_blocks:
                    layers.append(block(channels, channels, "up"))
                self.output_blocks.append(BlockSequential(*layers))

        last = zero_init(nn.Conv2d(channels, 3, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(config.norm_groups, channels), nn.SiLU(), last)

    def forward(self, x: Tensor, c_noise: Tensor, z: Tensor) -> Tensor:
        emb = self.time_embed(timestep_embedding(c_noise, self.width).to(x.dtype)) + self.label_emb(z)
        skips = []
        for module in self.input_blocks:
            x = module(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for module in self.output_blocks:
            x = module(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)
