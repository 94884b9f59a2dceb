"""The diffusion bridge autoencoder: z = Enc(x_0), x_T = Dec(z), and a bridge from x_T back to x_0 given z.

Images are [N, 3, H, W] in [-1, 1], float32. Time runs from ``bridge.t_min`` (data) to ``bridge.T`` (endpoint).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dbae.bridge import BRIDGES
from dbae.config import ModelConfig
from dbae.io import Generators, randn_like
from dbae.methods.editing import PATHS, along, step
from dbae.nn.decoder import Decoder
from dbae.nn.encoder import Encoder
from dbae.nn.unet import UNet
from dbae.sampler import sample as sample_bridge
from dbae.sampler import time_grid


class DBAE(nn.Module):
    """Encoder, endpoint decoder and denoising U-Net around one bridge."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.bridge = BRIDGES[config.schedule]()
        self.encoder, self.decoder, self.unet = Encoder(config), Decoder(config), UNet(config)
        self.half: dict[str, torch.dtype] = {}  # what a network computes in, by its name; else it is float32
        for network in (self.encoder, self.unet):  # not the decoder, whose BatchNorm is slow so on a CPU
            network.to(memory_format=torch.channels_last)

    def encode(self, x: Tensor, sample: bool | None = None, generator: Generators = None) -> Tensor:
        """Code z [N, latent] of images x.

        A stochastic encoder draws ``z = mu + sigma eps`` as the official code does, or returns ``mu`` for
        ``sample=False``. ``generator`` is one generator, or one per image. Raises ValueError for a wrong shape.
        """
        if not self.config.stochastic:
            return self._compute("encoder", self._checked(x))
        mu, log_sigma = self.encode_stats(x)
        if sample is False:
            return mu
        return mu + (log_sigma.exp() + 0.01) * randn_like(mu, generator)

    def encode_stats(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``mu`` and ``log_sigma`` [N, latent] of the stochastic encoder, soft-clamped to (-5, 5).

        The standard deviation of z is ``exp(log_sigma) + 0.01``. Raises ValueError for a deterministic encoder.
        """
        if not self.config.stochastic:
            raise ValueError("encode_stats: expected a model with a stochastic encoder, this one is deterministic")
        mu, log_sigma = (5 * torch.tanh(self._compute("encoder", self._checked(x)) / 5)).chunk(2, dim=1)
        return mu, log_sigma

    def encode_arrays(self, x: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """What the encoder computes, without any draw: ``z``, or ``mu`` and ``log_sigma`` of a stochastic one."""
        return dict(zip(("mu", "log_sigma"), self.encode_stats(x))) if self.config.stochastic else {"z": self.encode(x)}

    def code(self, arrays: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """The code in what ``encode_arrays`` gave: with ``noise`` [N, latent] a draw, without it the mean."""
        if "z" in arrays:
            return arrays["z"]
        return arrays["mu"] if noise is None else arrays["mu"] + (arrays["log_sigma"].exp() + 0.01) * noise

    def decode(self, z: Tensor) -> Tensor:
        """Endpoint image x_T [N, 3, H, W] of codes z [N, latent]; not bounded to [-1, 1]."""
        return self._compute("decoder", z)

    def denoise(self, x_t: Tensor, t: Tensor, x_T: Tensor, z: Tensor) -> Tensor:
        """Estimate of x_0 at times t [N] in (0, T]: the preconditioned network (DDBM eq. 11), not clamped."""
        scalings = self.bridge.scalings(t, self.config.sigma_data, self.config.end_data)
        c_skip, c_out, c_in, c_noise = scalings
        inputs = torch.cat([_per_image(c_in) * x_t, x_T], dim=1)
        F_x = self._compute("unet", inputs, c_noise, z)
        return _per_image(c_skip) * x_t + _per_image(c_out) * F_x

    def loss(self, x0: Tensor, t: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Training loss [N], unreduced: ``w(t) mean((D - x_0)^2)`` at ``t ~ U(t_min, T)``.

        Gradients reach the decoder through the bridge mean and the concatenated x_T, and the encoder through the
        decoder and through the conditioning on z.
        """
        bridge = self.bridge
        z = self.encode(x0)
        x_T = self.decode(z)
        if t is None:
            t = bridge.t_min + (bridge.T - bridge.t_min) * torch.rand(len(x0), device=x0.device)
        noise = torch.randn_like(x0) if noise is None else noise
        a, b, c = bridge.abc(t)
        x_t = _per_image(a) * x_T + _per_image(b) * x0 + _per_image(c) * noise
        D_x = self.denoise(x_t, t, x_T, z)
        weight = bridge.weight(t, self.config.sigma_data, self.config.end_data)
        return weight * (D_x - x0).square().mean(dim=(1, 2, 3))

    forward = loss  # so that one wrapped call covers encoder, decoder and U-Net

    def reconstruct(
        self,
        x: Tensor,
        steps: int = 100,
        sampler: str = "euler",
        churn: float = 0.0,
        rho: float = 7.0,
        guidance: float = 1.0,
        sample: bool | None = None,
        generator: Generators = None,
        grid: str = "karras",
        eta: float = 0.0,
        boot: bool = False,
    ) -> Tensor:
        """Encode images x and decode the code alone: reconstructions like x, in [-1, 1]. See ``generate_from``."""
        with torch.no_grad():
            z = self.encode(x, sample, generator)
        return self.generate_from(z, None, steps, sampler, churn, rho, guidance, generator, grid, eta, boot)

    @torch.no_grad()
    def generate_from(
        self,
        z: Tensor,
        x_T: Tensor | None = None,
        steps: int = 100,
        sampler: str = "euler",
        churn: float = 0.0,
        rho: float = 7.0,
        guidance: float = 1.0,
        generator: Generators = None,
        grid: str = "karras",
        eta: float = 0.0,
        boot: bool = False,
    ) -> Tensor:
        """Images [N, 3, H, W] in [-1, 1] of codes z, from the endpoint ``x_T`` (default: ``decode(z)``).

        ``steps``, ``sampler``, ``churn``, ``rho``, ``guidance``, ``grid``, ``eta`` and ``boot`` are those of
        ``dbae.sampler``. The estimate of x_0 is clamped to [-1, 1] at every call. Noise (``churn``, ``eta`` or
        ``boot``) comes from ``generator``. Raises ValueError for settings that do not fit the sampler.
        """
        x_T = self.decode(z) if x_T is None else x_T
        ts = time_grid(self.bridge, steps, rho, grid)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return self.denoise(x_t, t, x_T, z).clamp(-1, 1)

        def noise(x: Tensor) -> Tensor:
            return randn_like(x, generator)

        x_0 = sample_bridge(denoise, self.bridge, x_T, ts, sampler, churn, guidance, noise, eta, boot)
        return x_0.clamp(-1, 1)

    def interpolate(
        self,
        x_1: Tensor,
        x_2: Tensor,
        frames: int = 11,
        path: str = "linear",
        sample: bool | None = None,
        generator: Generators = None,
        **sampling: Any,
    ) -> Tensor:
        """Images [N, frames, 3, H, W] in [-1, 1] along the codes from x_1 to x_2, both [N, 3, H, W].

        The first and last frame reconstruct x_1 and x_2. ``path`` is ``linear`` or ``spherical``; ``sampling`` goes to
        ``generate_from``. With one generator per image, the frames of a pair share their noise.
        """
        with torch.no_grad():
            z_1, z_2 = self.encode(x_1, sample, generator), self.encode(x_2, sample, generator)
        z = PATHS[path](z_1, z_2, torch.linspace(0, 1, frames, device=z_1.device))
        return self._frames(z, None, generator, sampling)

    def manipulate(
        self,
        x: Tensor,
        direction: Tensor,
        scales: Sequence[float],
        fix_xT: bool = True,
        sample: bool | None = None,
        generator: Generators = None,
        **sampling: Any,
    ) -> Tensor:
        """Images [N, len(scales), 3, H, W] in [-1, 1] of codes ``z + scale sqrt(latent) w / |w|``; x is [N, 3, H, W].

        ``direction`` is w [latent], such as a row of a linear classifier. ``fix_xT`` keeps the endpoint of the unedited
        code, as the official code does. ``sampling`` and ``generator`` are those of ``interpolate``.
        """
        with torch.no_grad():
            z = self.encode(x, sample, generator)
            x_T = self.decode(z) if fix_xT else None
        edited = along(z, step(direction.to(z)), torch.as_tensor(scales, dtype=z.dtype, device=z.device))
        return self._frames(edited, x_T, generator, sampling)

    def _frames(self, z: Tensor, x_T: Tensor | None, generator: Generators, sampling: dict[str, Any]) -> Tensor:
        """Images of codes [N, frames, latent], all frames of an image from its endpoint and its generator."""
        frames = z.shape[1]
        x_T = x_T if x_T is None else x_T.repeat_interleave(frames, dim=0)
        if isinstance(generator, Sequence):
            generator = [each.clone_state() for each in generator for _ in range(frames)]
        x_0 = self.generate_from(z.flatten(0, 1), x_T, generator=generator, **sampling)
        return x_0.unflatten(0, (-1, frames))

    def _compute(self, name: str, *inputs: Tensor) -> Tensor:
        """What a network gives, in the inputs' precision, computed in the network's own.

        A copy, because a CUDA graph writes its next result to the same place.
        """
        dtype = self.half.get(name)
        with torch.autocast(inputs[0].device.type, dtype) if dtype else nullcontext():
            return self.get_submodule(name)(*inputs).to(inputs[0].dtype, copy=True)

    def _checked(self, x: Tensor) -> Tensor:
        size = self.config.image_size
        if x.ndim != 4 or x.shape[1:] != (3, size, size):
            raise ValueError(f"images: expected [N, 3, {size}, {size}] in [-1, 1], got {list(x.shape)}")
        return x


def _per_image(coefficient: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, 1]."""
    return coefficient[:, None, None, None]
