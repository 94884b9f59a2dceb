"""The denoising U-Net of ADM (Dhariwal & Nichol, 2021), conditioned on time and, where there is one, on a code."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from dbae.nn.layers import BlockSequential, ResBlock, StemConv2d, timestep_embedding, zero_init


class UNet(nn.Module):
    """``F(x, c_noise, z)``: x [N, in_channels, H, W], c_noise [N], z [N, latent] or None -> [N, 3, H, W].

    Its blocks are ``input_blocks.i``, ``middle_block`` and ``output_blocks.i``, in the order of ``named_blocks``.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        width: int,  # of the first level; the others have it times their factor in channel_mult
        channel_mult: Sequence[int],
        num_res_blocks: int,  # per level, one more on the way up
        attention_sizes: Sequence[int],  # resolutions with attention; the middle has it, too
        attention: Callable[[int], nn.Module],  # its layer for a number of channels
        groups: int,  # of every GroupNorm
        dropout: float,
        emb_channels: int,  # of the embedding of time
        latent_dim: int = 0,  # 0: no code
        scales: bool = False,  # whether the code scales the norm of every block (DiffAE), or is added to the embedding
    ) -> None:
        super().__init__()
        self.width = width
        widths = [width * factor for factor in channel_mult]
        attended = [image_size >> level in attention_sizes for level in range(len(widths))]

        def block(in_channels: int, out_channels: int, resample: str | None = None) -> ResBlock:
            code = latent_dim if scales else 0
            return ResBlock(in_channels, out_channels, emb_channels, groups, dropout, resample, code)

        self.time_embed = nn.Sequential(
            nn.Linear(width, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.label_emb = nn.Linear(latent_dim, emb_channels) if latent_dim and not scales else None

        # Down
        channels = widths[0]
        self.input_blocks = nn.ModuleList([BlockSequential(StemConv2d(in_channels, channels, 3, padding=1))])
        skips = [channels]
        for level, level_width in enumerate(widths):
            for _ in range(num_res_blocks):
                layers = [block(channels, level_width)] + [attention(level_width)] * attended[level]
                self.input_blocks.append(BlockSequential(*layers))
                channels = level_width
                skips.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(BlockSequential(block(channels, channels, "down")))
                skips.append(channels)

        self.middle_block = BlockSequential(block(channels, channels), attention(channels), block(channels, channels))

        # Up: every block also takes what the one at its height on the way down gave
        self.output_blocks = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                layers = [block(channels + skips.pop(), level_width)] + [attention(level_width)] * attended[level]
                channels = level_width
                if level > 0 and i == num_res_blocks:
                    layers.append(block(channels, channels, "up"))
                self.output_blocks.append(BlockSequential(*layers))

        last = zero_init(nn.Conv2d(channels, 3, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), last)

    def named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Names and modules of all blocks, in the order in which they are computed."""
        yield from ((f"input_blocks.{i}", module) for i, module in enumerate(self.input_blocks))
        yield "middle_block", self.middle_block
        yield from ((f"output_blocks.{i}", module) for i, module in enumerate(self.output_blocks))

    def forward(
        self, x: Tensor, c_noise: Tensor, z: Tensor | None = None, blocks: Sequence[str] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """The output; or, of the named ``blocks``, their activations [N, C, h, w], stopping after the last of them."""
        emb = self.time_embed(timestep_embedding(c_noise, self.width).to(x.dtype))
        if self.label_emb is not None:
            emb = emb + self.label_emb(z)
        skips, found = [], {}
        for name, module in self.named_blocks():
            if name.startswith("output"):
                x = torch.cat([x, skips.pop()], dim=1)
            x = module(x, emb, z)
            if name.startswith("input"):
                skips.append(x)
            if blocks is not None and name in blocks:
                found[name] = x
                if len(found) == len(blocks):
                    return found
        return self.out(x)
