"""A diffusion model with an encoder: what DBAE and DiffAE share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dbae.config import UserError, check_choices, option, require_positive
from dbae.io import Generators, randn_like
from dbae.methods.base import Cond, DiffusionModel
from dbae.methods.codes import PATHS, attribute_step, draw_code
from dbae.nn.encoder import Encoder

Ends = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # images [N, 3, H, W] and codes [N, latent] of two ends

# Channel multipliers by image size. 64, 128 and 256 are the published ones; 32 is ours.
UNET_MULT = {32: (1, 2, 4), 64: (1, 2, 4, 8), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
ENCODER_MULT = {32: (1, 2, 4, 4), 64: (1, 2, 4, 8, 8), 128: (1, 1, 2, 3, 4, 4), 256: (1, 1, 2, 2, 4, 4, 4)}


@dataclass(frozen=True)
class AutoEncoderConfig:
    """What the networks of ADM's kind have. Raises UserError where the values do not fit together."""

    image_size: int = option(128, "height and width in pixels: 32, 64, 128 or 256")
    num_channels: int = option(128, "base width of the U-Net and the encoder, a multiple of norm_groups")
    channel_mult: tuple[int, ...] = option(
        (), "channel multipliers of the U-Net per resolution level (default: by image size)"
    )
    encoder_mult: tuple[int, ...] = option((), "the same for the encoder (default: by image size)")
    num_res_blocks: int = option(2, "residual blocks per level")
    attention_sizes: tuple[int, ...] = option((16,), "resolutions with attention in the U-Net")
    encoder_attention_sizes: tuple[int, ...] = option((16,), "the same for the encoder")
    norm_groups: int = option(32, "groups of every GroupNorm; 32 in all published models")
    latent_dim: int = option(512, "length of the code z")
    dropout: float = option(0.1, "dropout in the U-Net's residual blocks")

    def __post_init__(self) -> None:
        if self.image_size not in UNET_MULT:
            raise UserError(f"image_size: expected 32, 64, 128 or 256, got {self.image_size}")
        for name, by_size in (("channel_mult", UNET_MULT), ("encoder_mult", ENCODER_MULT)):
            if not getattr(self, name):
                object.__setattr__(self, name, by_size[self.image_size])
            factors = getattr(self, name)
            if min(factors) < 1 or self.image_size >> (len(factors) - 1) < 2:
                raise UserError(f"{name}: expected positive factors that fit {self.image_size} px, got {factors}")
        check_choices(self)
        for name in ("norm_groups", "num_res_blocks"):
            require_positive(name, getattr(self, name))
        if self.num_channels < 1 or self.num_channels % self.norm_groups:
            raise UserError(
                f"num_channels: expected a multiple of norm_groups {self.norm_groups}, got {self.num_channels}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout: expected a number in [0, 1), got {self.dropout}")

    def encoder(self, outputs: int) -> Encoder:
        """The semantic encoder, which is the same in all methods."""
        return Encoder(
            self.image_size, outputs, self.num_channels, self.encoder_mult, self.num_res_blocks,
            self.encoder_attention_sizes, self.norm_groups,
        )  # fmt: skip


class AutoEncoder(DiffusionModel):
    """A diffusion model conditioned on a code z of the image. Subclasses also define ``start`` and ``infer_xT``."""

    SIZE_DEPENDENT: ClassVar[tuple[str, ...]] = ("channel_mult", "encoder_mult")

    stochastic = False  # whether the encoder gives mean and spread of a code

    # Of a method

    def condition(
        self, x0: Tensor | None = None, y: Tensor | None = None, z: Tensor | None = None, x_T: Tensor | None = None
    ) -> Cond:
        """What the network sees beside x_t, from the images or from their codes, and from where sampling starts."""
        raise NotImplementedError

    def start(self, z: Tensor, generator: Generators = None) -> Tensor:
        """Initial state x_T [N, 3, H, W] given the code alone (DBAE: Dec(z); DiffAE: noise)."""
        raise NotImplementedError

    def infer_xT(self, x: Tensor, z: Tensor | None = None, generator: Generators = None, **settings: Any) -> Tensor:
        """The x_T that reconstructs the images x with codes z (DBAE: Dec(z); DiffAE: DDIM inversion).

        ``settings`` are fields of SampleConfig.
        """
        raise NotImplementedError

    def between(
        self, ends: Ends, z: Tensor, fractions: Tensor, generators: Sequence[Generators], **settings: Any
    ) -> Tensor:
        """States [N, F, 3, H, W] at ``fractions`` of the way between two images and their codes, with codes z.

        The ``generators`` are for the x_T of either image, where they are drawn.
        """
        raise NotImplementedError

    # Codes

    def encode(self, x: Tensor, sample: bool | None = None, generator: Generators = None) -> Tensor:
        """Code z [N, latent] of images x.

        A stochastic encoder draws it as the official code does, or gives its mean for ``sample=False``. ``generator``
        is one generator, or one per image. Raises ValueError for a wrong shape.
        """
        arrays = self.encode_arrays(x)
        draws = "mu" in arrays and sample is not False
        return self.code(arrays, randn_like(arrays["mu"], generator) if draws else None)

    def encode_arrays(self, x: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """What the encoder outputs, to be kept: ``z``, or ``mu`` and ``log_sigma`` of a stochastic one."""
        h = self.compute("encoder", self.checked(x))
        if not self.stochastic:
            return {"z": h}
        mu, log_sigma = (5 * torch.tanh(h / 5)).chunk(2, dim=1)  # soft-clamped to (-5, 5)
        return {"mu": mu, "log_sigma": log_sigma}

    def encode_stats(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``mu`` and ``log_sigma`` [N, latent] of the stochastic encoder. Raises ValueError for a deterministic one."""
        if not self.stochastic:
            raise ValueError("encode_stats: expected a model with a stochastic encoder, this one is deterministic")
        return tuple(self.encode_arrays(x).values())

    def code(self, arrays: Mapping[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """z from what ``encode_arrays`` gave: a draw with standard normal ``noise`` [N, latent], the mean without."""
        return arrays["z"] if "z" in arrays else draw_code(arrays["mu"], arrays["log_sigma"], noise)

    # Images

    @torch.no_grad()
    def preview(self, images: Tensor) -> list[tuple[str, Tensor]]:
        """Inputs, the states that decoding starts from, and 10-step reconstructions."""
        z = self.encode(images, sample=False)
        x_T = self.infer_xT(images, z, steps=10)
        return [("input", images), ("x_T", x_T), ("reconstruction", self.generate_from(z, x_T, steps=10))]

    @torch.no_grad()
    def generate_from(
        self, z: Tensor, x_T: Tensor | None = None, generator: Generators = None, **settings: Any
    ) -> Tensor:
        """Images [N, 3, H, W] in [-1, 1] of codes z, from the state ``x_T`` (default: ``start``).

        ``settings`` are fields of SampleConfig, such as ``steps`` and ``sampler``. Raises UserError for settings that
        do not fit the sampler.
        """
        sampling = self.sampling(**settings)
        x_T = self.start(z, generator) if x_T is None else x_T
        return self.sample(x_T, self.condition(z=z, x_T=x_T), sampling, generator)

    @torch.no_grad()
    def reconstruction(
        self, x: Tensor, sample: bool | None = None, generator: Generators = None, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """States x_T [N, 3, H, W] of images x, and reconstructions from them and the codes."""
        z = self.encode(x, sample, generator)
        x_T = self.infer_xT(x, z, generator, **settings)
        return x_T, self.generate_from(z, x_T, generator, **settings)

    def reconstruct(
        self, x: Tensor, sample: bool | None = None, generator: Generators = None, **settings: Any
    ) -> Tensor:
        """Encode images x and decode them again: images like x. See ``encode`` and ``generate_from``."""
        return self.reconstruction(x, sample, generator, **settings)[1]

    @torch.no_grad()
    def interpolation(
        self,
        x_1: Tensor,
        x_2: Tensor,
        z_1: Tensor,
        z_2: Tensor,
        fractions: Tensor,
        path: str = "linear",
        generators: Sequence[Generators] = (None, None),
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """Codes [N, F, latent] and states [N, F, 3, H, W] between images x_1 with codes z_1 and x_2 with z_2.

        ``fractions`` [F] or [N, F] of the way are from 0 to 1. The ``generators`` are as in ``between``.
        """
        z = PATHS[path](z_1, z_2, fractions)
        return z, self.between(((x_1, z_1), (x_2, z_2)), z, fractions, generators, **settings)

    @torch.no_grad()
    def shifted(
        self,
        x: Tensor,
        z: Tensor,
        shifts: Tensor,
        fix_xT: bool = True,
        generator: Generators = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """Codes [N, F, latent] of images x, z moved by ``shifts`` [F, latent] or [N, F, latent], and their states.

        ``fix_xT`` keeps the state of the unedited code, as the official code does.
        """
        edited = z[:, None] + shifts
        if fix_xT:
            return edited, self.infer_xT(x, z, generator, **settings)[:, None].expand(-1, edited.shape[1], -1, -1, -1)
        x_T = self.start(edited.flatten(0, 1), _repeated(generator, edited.shape[1]))
        return edited, x_T.unflatten(0, edited.shape[:2])

    def render(self, z: Tensor, x_T: Tensor, generator: Generators = None, **settings: Any) -> Tensor:
        """Images [N, F, 3, H, W] of codes [N, F, latent] from states; with one generator each, images share noise."""
        frames = z.shape[1]
        x_0 = self.generate_from(z.flatten(0, 1), x_T.flatten(0, 1), _repeated(generator, frames), **settings)
        return x_0.unflatten(0, (-1, frames))

    @torch.no_grad()
    def interpolate(
        self,
        x_1: Tensor,
        x_2: Tensor,
        frames: int = 11,
        path: str = "linear",
        sample: bool | None = None,
        generator: Generators = None,
        **settings: Any,
    ) -> Tensor:
        """Images [N, frames, 3, H, W] in [-1, 1] along the codes from x_1 to x_2, whose reconstructions are the ends.

        ``path`` is linear or spherical; ``settings`` go to ``generate_from``. With one generator per image, the frames
        of a pair share their noise.
        """
        z_1, z_2 = (self.encode(x, sample, generator) for x in (x_1, x_2))
        fractions = torch.linspace(0, 1, frames, device=z_1.device)
        states = self.interpolation(x_1, x_2, z_1, z_2, fractions, path, (generator, generator), **settings)
        return self.render(*states, generator, **settings)

    @torch.no_grad()
    def manipulate(
        self,
        x: Tensor,
        direction: Tensor,
        scales: Sequence[float],
        fix_xT: bool = True,
        sample: bool | None = None,
        generator: Generators = None,
        **settings: Any,
    ) -> Tensor:
        """Images [N, len(scales), 3, H, W] in [-1, 1] of codes ``z + scale sqrt(latent) w / |w|``.

        ``direction`` is w [latent], such as a row of a linear classifier. The rest is as in ``interpolate``.
        """
        w = attribute_step(direction.to(x))
        shifts = torch.as_tensor(scales, dtype=w.dtype, device=w.device)[:, None] * w
        z = self.encode(x, sample, generator)
        return self.render(*self.shifted(x, z, shifts, fix_xT, generator, **settings), generator, **settings)


def _repeated(generator: Generators, frames: int) -> Generators:
    """Of one generator per image, one for each of its frames, which draw the same."""
    if isinstance(generator, Sequence):
        return [each.clone_state() for each in generator for _ in range(frames)]
    return generator
