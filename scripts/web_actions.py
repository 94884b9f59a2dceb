"""What the web page does: from what a visitor chose to what is shown. Knows no server, and no gradio."""

import dataclasses
import os
import secrets
import time
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from datasets.photos import read_photo
from dbae.config import UserError
from dbae.diffusion import DEFAULTS, SOLVERS
from dbae.methods.codes import attribute_step
from eval.classifier import AttributeClassifier
from scripts.edit_inputs import square
from scripts.figures import animation
from scripts.trained import TrainedModel

PIXELS = 50_000_000  # of the largest upload
SCALE = 0.3  # factor of sqrt(latent) w/|w| at a slider's end where the medians are unknown: the largest official one
HINT = "Upload an image, or choose a sample."


@dataclass(frozen=True)
class Seen:
    """The image that a visitor looks at, and what the model made of it; every tensor has one row."""

    crop: Tensor  # uint8 [1, 3, H, W]
    z: Tensor  # [1, latent], on the model's device
    made: Tensor  # uint8 [1, 3, H, W], the reconstruction
    cost: str


View = tuple[Seen | None, str | None, str | None, str | None, str, str]
NOTHING: View = (None, None, None, None, HINT, "")


@dataclass(frozen=True)
class Studio:
    """The model that all visitors share. Keeps nothing of theirs but the pictures it returns, as files in ``folder``.

    Every action takes the ``sampler`` and its ``steps``, and returns a line on what it cost as the last of its results.
    A bad choice raises UserError with a line for the visitor.
    """

    trained: TrainedModel
    classifier: AttributeClassifier | None
    folder: str

    @property
    def labels(self) -> list[str]:
        """What the classifier's attributes are called; none without a classifier."""
        return [name.replace("_", " ") for name in self.classifier.names] if self.classifier else []

    @property
    def medians(self) -> bool:
        """Whether the classifier knows how strong real images of both sides are, which is then the sliders' unit."""
        return None not in (self.classifier.median_logits, self.classifier.negative_logits)

    def check(self, path: str | None) -> bool:
        """Whether there is an upload. Raises UserError for a bad one."""
        return bool(path) and self._crop(path) is not None

    def look(self, path: str | None, sampler: str, steps: int) -> View:
        """What is kept of an upload; its crop, x_T and reconstruction; facts. NOTHING without an upload."""
        return self._view(self._crop(path), sampler, steps) if path else NOTHING

    def again(self, seen: Seen | None, sampler: str, steps: int) -> View:
        """The same of the image at hand, after a change of settings."""
        return self._view(seen.crop, sampler, steps) if seen else NOTHING

    def edit(
        self, seen: Seen | None, sampler: str, steps: int, fix_xT: bool, shown: list[str], *strengths: float
    ) -> tuple[str | None, str | None, str]:
        """Reconstruction and edited image. The first of the ``strengths`` are of the attributes ``shown``."""
        if seen is None:
            return None, None, ""
        made, cost = seen.made, seen.cost
        chosen = {name: strength for name, strength in zip(shown, strengths, strict=False) if strength}
        moves = {name: self._move(seen.z, name, strength) for name, strength in chosen.items()}
        idle = [name for name, move in moves.items() if not move.any()]
        if len(idle) < len(moves):
            trained, start = self._trained(sampler, steps), time.monotonic()
            _, made = trained.shift(seen.crop, seen.z, sum(moves.values())[None], fix_xT)
            made, cost = made[:, 0], _cost(trained, 1, start)
        if idle:
            cost = f"{', '.join(idle)}: already beyond the median in this direction, so it stays.  \n{cost}"
        return self._save("reconstruction", seen.made), self._save("edited", made), cost

    def _move(self, z: Tensor, label: str, strength: float) -> Tensor:
        """What a slider adds to the code z [1, latent]: in the classifier's medians, or in SCALE where it has none."""
        row = self.labels.index(label)
        step = attribute_step(self.classifier.weight[row])
        if not self.medians:
            return strength * SCALE * step[None]
        return self.classifier.scales(z, row, step, z.new_tensor([strength])) * step

    def interpolate(
        self, seen: Seen | None, path: str | None, sampler: str, steps: int, frames: int, way: str
    ) -> tuple[list[str], str, str]:
        """Frames and an animation from the image at hand to another upload."""
        if seen is None or not path:
            raise UserError("Choose both images first.")
        trained, start = self._trained(sampler, steps), time.monotonic()
        _, made = trained.interpolate(torch.cat([seen.crop, self._crop(path)]), frames, way)
        cost = _cost(trained, frames, start)
        animated = self._file("interpolation", "gif")
        animation(animated, made[None])
        return [self._save("frame", made[:, i]) for i in range(frames)], animated, cost

    def _trained(self, sampler: str, steps: int) -> TrainedModel:
        """The model with that sampling: as the page started where the sampler is the same, else as suits that.

        Samplers on the drift have the method's time grid, all others that of its few steps.
        """
        model, sampling = self.trained.model, self.trained.sampling
        if sampler != sampling.sampler:
            on_drift = "churn" in SOLVERS[sampler].reads
            suited = model.SAMPLING if on_drift or not model.FEW_STEPS else model.FEW_STEPS
            sampling = dataclasses.replace(sampling, sampler=sampler, grid=suited.grid, **DEFAULTS)
        sampling = dataclasses.replace(sampling, steps=steps)
        model.check_sampling(sampling)
        return dataclasses.replace(self.trained, sampling=sampling)

    def _crop(self, path: str) -> Tensor:
        """The model's square [1, 3, H, W] of an upload. UserError, with its name but not its folder, for a bad one."""
        name = os.path.basename(path)
        try:
            with Image.open(path) as image:
                large = image.width * image.height > PIXELS
        except Image.DecompressionBombError:
            large = True
        except Exception:  # reading says what is wrong with it
            large = False
        if large:
            raise UserError(f"{name}: expected an image of at most {PIXELS // 10**6} megapixels")
        try:
            return square(read_photo(path), self.trained.model.config.image_size)[None]
        except UserError as error:
            raise UserError(str(error).replace(path, name)) from None

    def _view(self, crop: Tensor, sampler: str, steps: int) -> View:
        trained, start = self._trained(sampler, steps), time.monotonic()
        z = trained.encode(crop)
        states, made = (part[:, 0] for part in trained.shift(crop, z, torch.zeros_like(z), fix_xT=True))
        seen = Seen(crop, z, made, _cost(trained, 1, start))
        paths = map(self._save, ("crop", "x_T", "reconstruction"), (crop, states, made))
        error = ((made.float() - crop.float()) / 255).square().mean()
        facts = (
            f"**Code:** {z.shape[1]} numbers for {crop.numel():,} of the crop  \n"
            f"**MSE of the reconstruction:** {error:.2e}"
        )
        return seen, *paths, facts, seen.cost

    def _save(self, what: str, images: Tensor) -> str:
        """Path of a new PNG of the only one of uint8 images [1, 3, H, W]."""
        path = self._file(what, "png")
        Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(path)
        return path

    def _file(self, what: str, ending: str) -> str:
        """A name that nobody else has or guesses: gradio rewrites equal pictures while they are being sent."""
        return os.path.join(self.folder, f"{what}_{secrets.token_hex(8)}.{ending}")


def _cost(trained: TrainedModel, images: int, start: float) -> str:
    calls = trained.model.nfe(trained.sampling)
    shown = f"{images} images, " * (images > 1) + f"{calls} network call{'s' * (calls > 1)}" + " each" * (images > 1)
    return f"Last call: {shown}, time grid {trained.sampling.grid}, {time.monotonic() - start:.2f} s"
