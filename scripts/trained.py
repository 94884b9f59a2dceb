"""The one driver of a trained model's images: reconstruction, encoding, editing and the web page all use it.

``TrainedModel`` sends images through a model, in batches, with random numbers by image, as uint8 in and out.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dbae.config import SampleConfig
from dbae.io import Generators, image_generators, randn_like, require_finite, to_float, to_uint8
from dbae.methods import AutoEncoder, DiffusionModel
from dbae.progress import progress_bar
from scripts.options import ModelOptions


@dataclass(frozen=True)
class TrainedModel:
    """A model with the settings that all images of a program share. Codes and states stay on its device.

    Images are uint8 [n, 3, H, W]. Image i draws its random numbers from (seed, i), whatever batch it is in.
    """

    model: DiffusionModel
    sampling: SampleConfig
    latent: str = "sample"  # or "mean": the code of a stochastic encoder
    seed: int = 0
    batch_size: int = 64

    @classmethod
    def of(cls, model: DiffusionModel, options: ModelOptions, sampling: SampleConfig | None = None) -> "TrainedModel":
        """With the settings that the options name. Raises UserError for a ``sampling`` that the model does not have."""
        if sampling:
            model.check_sampling(sampling)
        return cls(model, sampling or model.SAMPLING, options.latent, options.seed, options.batch_size)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def settings(self) -> dict[str, Any]:
        """The sampling as keywords of the model's functions."""
        return dataclasses.asdict(self.sampling)

    def identity(self) -> dict[str, Any]:
        """What results depend on beside the weights and the images, ready for JSON."""
        model = self.model
        return {
            **model.unstated,
            "latent": self.latent,
            "seed": self.seed,
            **{name: getattr(model.config, name) for name in model.OVERRIDABLE},
            "precision": model.precision,
            "autocast": sorted(model.amp),
            **self.sampling.as_dict(),
        }

    def untrained(self, seed: int) -> "TrainedModel":
        """The same with the weights that training begins with, by the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made = type(self.model)(self.model.config)
        made = made.to(self.device).eval().requires_grad_(False)
        made.unstated = self.model.unstated
        amp = self.model.amp
        made.use_amp(next(iter(amp.values()), None), "unet" if list(amp) == ["unet"] else "all")
        return dataclasses.replace(self, model=made)

    @torch.no_grad()
    def encode_arrays(self, images: Tensor, index: Sequence[int]) -> dict[str, Tensor]:
        """What the encoder computes for one batch of images numbered ``index``, and its code ``z``."""
        generators = image_generators(self.seed, index)
        arrays = self.model.encode_arrays(to_float(images.to(self.device)), generators)
        if "mu" in arrays:
            arrays = {"z": self.code(arrays, generators), **arrays}
        return arrays

    @torch.no_grad()
    def features(
        self, x: Tensor, t: float, blocks: Sequence[str], generators: Generators = None, draws: int = 1
    ) -> dict[str, Tensor]:
        """Averaged activations [n, C] of the network's ``blocks`` by name, for images x in [-1, 1] noised to time t.

        Each call of the network gives all blocks; they are means over ``draws`` of the noise. An autoencoder's network
        is told the images' code, drawn first where it is stochastic.
        """
        cond = None
        if isinstance(self.model, AutoEncoder):
            cond = self.model.condition(x, z=self.code(self.model.encode_arrays(x, generators), generators))
        found = [self.model.features(x, t, blocks, generator=generators, cond=cond) for _ in range(draws)]
        return {name: sum(each[name] for each in found) / draws for name in blocks}

    def code(self, arrays: Mapping[str, Tensor], generators: Generators = None) -> Tensor:
        """The code [n, d] in what the encoder computed, drawn or the mean where it is stochastic."""
        draws = "mu" in arrays and self.latent == "sample"
        return self.model.code(arrays, randn_like(arrays["mu"], generators) if draws else None)

    def encode(self, images: Tensor, index: Sequence[int] | None = None) -> Tensor:
        """Codes [n, latent] of any number of images, by default numbered from 0. UserError where one is not finite."""
        z = torch.cat([self.encode_arrays(*batch)["z"] for batch in self._batches(images, index)])
        return require_finite("codes", z)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, index: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """The states that decoding starts from, and reconstructions, on the CPU, of any number of images."""
        made = []
        for batch, numbers in self._batches(images, index):
            generators = image_generators(self.seed, numbers)
            x, sample = to_float(batch.to(self.device)), self.latent == "sample"
            made.append([to_uint8(y).cpu() for y in self.model.reconstruction(x, sample, generators, **self.settings)])
        return tuple(map(torch.cat, zip(*made, strict=True)))

    def interpolate(
        self, images: Tensor, frames: int, path: str, index: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """States and images [n - 1, frames, 3, H, W] on the CPU, from each image to the next."""
        x, z = to_float(images.to(self.device)), self.encode(images, index)
        fractions = torch.linspace(0, 1, frames, device=self.device)
        numbers, parts = torch.tensor(range(len(x)) if index is None else index), []
        for first, last, *ends in self._split(frames, numbers[:-1], numbers[1:], x[:-1], x[1:], z[:-1], z[1:]):
            drawn = [image_generators(self.seed, end.tolist()) for end in (first, last)]
            parts.append(self.model.interpolation(*ends, fractions, path, drawn, **self.settings))
        return self._render(parts)

    def keeps_xT(self, asked: bool | None) -> bool:
        """Whether an edit keeps x_T: as asked, or where the model infers it from the image and not from the code."""
        return self.model.INVERTS if asked is None else asked

    def shift(self, images: Tensor, z: Tensor, shifts: Tensor, fix_xT: bool) -> tuple[Tensor, Tensor]:
        """States and images [n, F, 3, H, W] on the CPU: codes z moved by ``shifts`` [F, latent] or [n, F, latent]."""
        x, shifts = to_float(images.to(self.device)), shifts.expand(len(z), -1, -1)
        parts = self._split(shifts.shape[1], x, z, shifts)
        return self._render(
            [self.model.shifted(*part, fix_xT, self._shared_noise(len(part[0])), **self.settings) for part in parts]
        )

    @torch.no_grad()
    def _render(self, parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """States and images [n, F, 3, H, W] on the CPU, of parts of the codes [n, F, latent] with their states.

        All share their noise, so only codes and states tell the frames apart.
        """
        z, x_T = map(torch.cat, zip(*parts, strict=True))
        shape, z, x_T = z.shape[:2], z.flatten(0, 1), x_T.flatten(0, 1)
        images = []
        with progress_bar(len(z), "image", "sample", enabled=len(z) > self.batch_size) as bar:
            for batch in zip(z.split(self.batch_size), x_T.split(self.batch_size), strict=True):
                x_0 = self.model.generate_from(*batch, self._shared_noise(len(batch[0])), **self.settings)
                images.append(to_uint8(x_0).cpu())
                bar.update(len(x_0))
        return to_uint8(x_T).cpu().unflatten(0, shape), torch.cat(images).unflatten(0, shape)

    def _batches(self, images: Tensor, index: Sequence[int] | None) -> Iterator[tuple[Tensor, Sequence[int]]]:
        index = range(len(images)) if index is None else index
        for first in range(0, len(images), self.batch_size):
            rows = slice(first, first + self.batch_size)
            yield images[rows], index[rows]

    def _shared_noise(self, n: int) -> list[torch.Generator]:
        return image_generators(self.seed, [0] * n)

    def _split(self, frames: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The same rows of tensors [n, ...], as many as make up a batch with ``frames`` each."""
        return zip(*(each.split(max(1, self.batch_size // frames)) for each in tensors), strict=True)
