"""What the web page does: from what a visitor chose to what is shown. Knows no server, and no gradio."""

import os
import secrets
import time
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from dbae.attributes import AttributeClassifier
from dbae.config import SampleConfig, UserError
from dbae.sampler import nfe
from scripts import familiarity
from scripts.edit_actions import Edit, interpolate, manipulate
from scripts.edit_figure import animation, sheet, tile
from scripts.editing import Editor, PhotoFiles

PIXELS = 50_000_000  # of the largest upload
FIRST = ("Male", "Young", "Smiling", "Eyeglasses")  # attributes that have sliders at first
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

    editor: Editor
    classifier: AttributeClassifier | None
    known: Tensor | None  # percentiles of the training images' errors, as ``familiarity`` has them
    folder: str

    @property
    def labels(self) -> list[str]:
        """What the classifier's attributes are called; none without a classifier."""
        return [name.replace("_", " ") for name in self.classifier.names] if self.classifier else []

    @property
    def first(self) -> list[str]:
        """The attributes that have sliders at first."""
        return [label for label in FIRST if label in self.labels] or self.labels[: len(FIRST)]

    def look(self, path: str | None, sampler: str, steps: int) -> View:
        """What is kept of an upload; its crop, endpoint and reconstruction; facts. NOTHING without an upload."""
        return self._view(self._crop(path), sampler, steps) if path else NOTHING

    def again(self, seen: Seen | None, sampler: str, steps: int) -> View:
        """The same of the image at hand, after a change of settings."""
        return self._view(seen.crop, sampler, steps) if seen else NOTHING

    def edit(
        self, seen: Seen | None, sampler: str, steps: int, fix_xT: bool, shown: list[str], *scales: float
    ) -> tuple[str | None, str | None, str]:
        """Reconstruction and edited image. ``scales`` has one number per attribute; those not ``shown`` count as 0."""
        if seen is None:
            return None, None, ""
        moves = [(row, scales[row]) for row, label in enumerate(self.labels) if label in shown and scales[row]]
        if not moves:
            return self._save("reconstruction", seen.made), self._save("edited", seen.made), seen.cost
        editor, start = self._editor(sampler, steps), time.monotonic()
        z = seen.z + torch.stack([scale * self.classifier.step(row) for row, scale in moves]).sum(dim=0)
        ((_, made),) = manipulate(editor, [Edit("edited", ("",), seen.z, z[:, None])], fix_xT)
        cost = _cost(editor.sampling, 1, start)
        return self._save("reconstruction", seen.made), self._save("edited", made[:, 0]), cost

    def interpolate(
        self, seen: Seen | None, path: str | None, sampler: str, steps: int, frames: int, way: str
    ) -> tuple[list[str], str, str]:
        """Frames and an animation from the image at hand to another upload."""
        if seen is None or not path:
            raise UserError("Choose both images first.")
        editor, start = self._editor(sampler, steps), time.monotonic()
        z = torch.cat([seen.z, editor.encode(self._crop(path))])
        _, made = interpolate(editor, z, frames, way)
        cost = _cost(editor.sampling, frames, start)
        strip = [self._save("frame", made[:, i]) for i in range(frames)]
        animated = self._file("interpolation", "gif")
        animation(animated, sheet(made[None]))
        return strip, animated, cost

    def _editor(self, sampler: str, steps: int) -> Editor:
        return replace(self.editor, sampling=SampleConfig(sampler=sampler, steps=steps))

    def _crop(self, path: str) -> Tensor:
        """The model's square [1, 3, H, W] of an upload. UserError, with its name but not its folder, for a bad one."""
        name = os.path.basename(path)
        if _is_large(path):
            raise UserError(f"{name}: expected an image of at most {PIXELS // 10**6} megapixels")
        try:
            return PhotoFiles([path], {}).crops(self.editor.model.config.image_size)
        except UserError as error:
            raise UserError(str(error).replace(path, name)) from None

    def _view(self, crop: Tensor, sampler: str, steps: int) -> View:
        editor, start = self._editor(sampler, steps), time.monotonic()
        z = editor.encode(crop)
        endpoints, made = editor.generate(z)
        seen = Seen(crop, z, made, _cost(editor.sampling, 1, start))
        paths = map(self._save, ("crop", "endpoint", "reconstruction"), (crop, endpoints, made))
        return seen, *paths, self._facts(seen), seen.cost

    def _facts(self, seen: Seen) -> str:
        """Markdown: length of the code, error, and whether the image is far from what the model has seen."""
        error = ((seen.made.float() - seen.crop.float()) / 255).square().mean()
        lines = [
            f"**Code:** {seen.z.shape[1]} numbers for {seen.crop.numel():,} of the crop",
            f"**Reconstruction error:** {error:.4f} (mean square of pixels from 0 to 1)",
        ]
        if self.known is not None:
            found = familiarity.errors(self.editor, seen.crop)
            under = max(0, int((self.known < found).sum()) - 1)
            usual = f"{under} % of the training images have a smaller error."
            lines.append("**Familiarity:** " + next(familiarity.warnings(["This image"], found, self.known), usual))
        return "  \n".join(lines)

    def _save(self, what: str, images: Tensor) -> str:
        """Path of a new PNG of the only one of uint8 images [1, 3, H, W]."""
        path = self._file(what, "png")
        _, pixels = tile(what, images[0])
        Image.fromarray(pixels).save(path)
        return path

    def _file(self, what: str, ending: str) -> str:
        """A name that nobody else has or guesses: gradio rewrites equal pictures while they are being sent."""
        return os.path.join(self.folder, f"{what}_{secrets.token_hex(8)}.{ending}")


def _is_large(path: str) -> bool:
    """Whether an image announces more than PIXELS. Reading says what is wrong with one that cannot be opened."""
    try:
        with Image.open(path) as image:
            return image.width * image.height > PIXELS
    except Image.DecompressionBombError:
        return True
    except Exception:
        return False


def _cost(sampling: SampleConfig, images: int, start: float) -> str:
    calls = nfe(sampling.steps, sampling.sampler)
    shown = f"{images} images, " * (images > 1) + f"{calls} network call{'s' * (calls > 1)}" + " each" * (images > 1)
    return f"Last call: {shown}, {time.monotonic() - start:.2f} s"
