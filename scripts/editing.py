"""What interpolation, manipulation, the editor of own images and the web page share: codes in, pictures out."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.photos import Photo, photo_paths, read_landmarks, read_photo
from dbae.config import SampleConfig, UserError
from dbae.io import image_generators, to_float, to_uint8
from dbae.progress import progress_bar
from scripts.inputs import build_data

if TYPE_CHECKING:
    from dbae.methods.dbae import DBAE
    from scripts.edit_options import PictureOptions


@dataclasses.dataclass
class Editor:
    """A model with the settings that every picture of a session shares. Codes and images stay on its device."""

    model: "DBAE"
    sampling: SampleConfig
    latent: str = "sample"
    seed: int = 0
    batch_size: int = 64

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes [n, latent] of uint8 images [n, 3, H, W]; image i of a stochastic encoder draws from (seed, i)."""
        codes = []
        for start in range(0, len(images), self.batch_size):
            x = to_float(images[start : start + self.batch_size].to(self.device))
            generators = image_generators(self.seed, range(start, start + len(x)), self.device)
            codes.append(self.model.encode(x, self.latent == "sample", generators))
        return torch.cat(codes)

    @torch.no_grad()
    def generate(
        self, z: Tensor, x_T: Tensor | None = None, noise: Sequence[int] | None = None, desc: str = "sample"
    ) -> tuple[Tensor, Tensor]:
        """Endpoints and images, uint8 [n, 3, H, W] on the CPU, of codes [n, latent].

        Endpoints are ``Dec(z)`` unless given. Row i draws its noise from (seed, noise[i]); by default all rows share
        theirs, so that only the code tells frames apart.
        """
        noise = [0] * len(z) if noise is None else noise
        endpoints, images = [], []
        with progress_bar(len(z), "image", desc, enabled=len(z) > self.batch_size) as bar:
            for start in range(0, len(z), self.batch_size):
                rows = slice(start, start + self.batch_size)
                ends = self.model.decode(z[rows]) if x_T is None else x_T[rows]
                generators = image_generators(self.seed, noise[rows], self.device)
                x_0 = self.model.generate_from(z[rows], ends, generator=generators, **self.sampling.arguments)
                endpoints.append(to_uint8(ends).cpu())
                images.append(to_uint8(x_0).cpu())
                bar.update(len(x_0))
        return torch.cat(endpoints), torch.cat(images)

    def frames(self, z: Tensor, x_T: Tensor | None = None, desc: str = "sample") -> tuple[Tensor, Tensor]:
        """The same for codes [n, frames, latent] and endpoints [n, 3, H, W]: two uint8 [n, frames, 3, H, W]."""
        ends = x_T if x_T is None else x_T.repeat_interleave(z.shape[1], dim=0)
        made = self.generate(z.flatten(0, 1), ends, desc=desc)
        endpoints, images = (part.unflatten(0, z.shape[:2]) for part in made)
        return endpoints, images


@dataclasses.dataclass(frozen=True)
class PhotoFiles:
    """Photos by path, read one at a time, so that many large ones take no memory."""

    paths: list[str]
    landmarks: dict[str, Any]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> list[str]:
        """What results are called: file names without extension, numbered where two are equal."""
        stems = [os.path.splitext(os.path.basename(path))[0] for path in self.paths]
        return [f"{stem}_{i}" if stems.count(stem) > 1 else stem for i, stem in enumerate(stems)]

    def read(self, i: int) -> Photo:
        """Photo ``i``, its square aligned where there are landmarks."""
        return read_photo(self.paths[i], self.landmarks.get(os.path.basename(self.paths[i])))

    def crops(self, size: int) -> Tensor:
        """Crops as uint8 [n, 3, size, size]."""
        photos = tqdm(range(len(self)), "read", unit="photo", disable=len(self) < 64)
        return torch.stack([torch.from_numpy(np.array(self.read(i).crop(size))).permute(2, 0, 1) for i in photos])


def find_photos(items: Sequence[str], landmarks: str | None) -> PhotoFiles:
    """Photos in files and folders. Raises UserError where a ``landmarks`` file leaves one out."""
    points = read_landmarks(landmarks) if landmarks else {}
    paths = photo_paths(items)
    missing = next((path for path in paths if landmarks and os.path.basename(path) not in points), None)
    if missing:
        raise UserError(f"landmarks: {landmarks} has none for {os.path.basename(missing)}")
    return PhotoFiles(paths, points)


def read_images(options: "PictureOptions", default: Sequence[str], size: int) -> tuple[list[str], Tensor]:
    """Names and uint8 crops [n, 3, size, size] of the images that the options name, or of ``default``."""
    if not options.indices:
        photos = find_photos(options.images or default, options.landmarks)
        return photos.names, photos.crops(size)
    data = build_data(options, size)
    wrong = next((i for i in options.indices if not 0 <= i < len(data)), None)
    if wrong is not None:
        raise UserError(f"indices: expected numbers from 0 to {len(data) - 1}, got {wrong}")
    return [data.name_of(i) for i in options.indices], torch.stack([data[i][0] for i in options.indices])
