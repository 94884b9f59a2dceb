"""What every program that uses a trained model shares: loading, and the one driver of its images.

``TrainedModel`` sends images through a model, in batches, with random numbers by image, as uint8 in and out:
reconstruction, encoding, editing and the web page all use it.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets import build
from datasets.base import ImageDataset
from dbae import runtime
from dbae.checkpoint import NAME, load_model, stated_config, step_of
from dbae.config import RuntimeConfig, SampleConfig, UserError
from dbae.io import Generators, image_generators, randn_like, require_finite, to_float, to_uint8
from dbae.methods import METHODS, AutoEncoder, DiffusionModel, LatentPrior, preset
from dbae.progress import progress_bar
from scripts.cli import Parser, given, peek, print_options
from scripts.options import DataOptions, ModelOptions


def parse(
    parser: Parser, cls: type, title: str, args: list[str] | None = None, only: tuple[str, ...] = ()
) -> tuple[Any, dict[str, Any], Any]:
    """Options of class ``cls`` (a ModelOptions), what was typed about the model, and the whole namespace.

    ``only`` some of the options are offered where it names any. The method is that of the weight file's run, or the
    one typed, in the variant that the configuration is of; the data set is that of the configuration, or the one typed.
    """
    path = peek(args, "model_path") or peek(args, "model")
    content = stated_config(path) if path else None
    name = peek(args, "method", "dbae", METHODS)
    row = peek(args, "config")
    stated = content.get("method", "dbae") if content else name
    method = METHODS[stated].variant(row)
    if method is LatentPrior:
        raise UserError(f"model_path: expected a model of images, {path} is a latent prior")
    if peek(args, "method") and METHODS[name].__module__ != METHODS[stated].__module__:  # else variants of one method
        raise UserError(f"method: {path} is of {stated}, got {name}; use the commands of {stated}")
    if row and method.ROWS != "config":
        raise UserError(f"config: expected with a model of DDAE, {path} is of {method.method}")
    parser.add_config(title, cls, only)
    parser.add_config("model (checked against the checkpoint)", method.Config, method.CHECKED)
    typed = parser.parse_args(args)
    known = {"dataset": method.preset_row(row).get("dataset", "")} if row else {}
    options = cls(**{**known, **given(typed, cls), "method": method.method})
    return options, given(typed, method.Config, method.CHECKED), typed


def parse_sampling(
    parser: Parser, cls: type, title: str, args: list[str] | None = None, only: tuple[str, ...] = ()
) -> tuple[Any, dict[str, Any], Any, type[DiffusionModel], SampleConfig]:
    """The same with options of sampling: also the method, and its way to sample with what was typed on top."""
    parser.add_config("sampling", SampleConfig)
    options, about, typed = parse(parser, cls, title, args, only)
    method = METHODS[options.method]
    return options, about, typed, method, method.sampling(**given(typed, SampleConfig))


def load(options: ModelOptions, about: dict[str, Any], device: torch.device | None = None) -> DiffusionModel:
    """The model, checked against everything typed about it, and as fast as the options say on ``device``.

    For ``--compile auto`` see ``compile_for``.
    """
    dataset = None if "image_size" in about or options.row.startswith("folder:") else options.row
    model = load_model(options.model_path, options.method, dataset, device, **about)
    warn_of_training_images(options)
    if device and isinstance(options, RuntimeConfig):
        model.use_amp(runtime.amp_dtype(options.precision, device), options.autocast)
        runtime.use_compile(model, options.compile, device, calls=0)
    return model


def warn_of_training_images(options: ModelOptions) -> None:
    """Say where own images outside the training part may be among those that the model was trained on.

    The parts of a folder are made anew of what is in it: one image more or less, or other labels, shuffle them.
    """
    trained = (stated_config(options.model_path) or {}).get("data")
    if not (options.dataset.startswith("folder:") and isinstance(trained, dict) and trained.get("parts")):
        return
    try:
        data = build(options.dataset, trained["split"], size=1, split_range=trained["split_range"])
    except UserError:  # what is wrong is said where it matters
        return
    if data.place != trained["path"]:
        return
    if data.digest(times=False) != trained["images_digest"]:
        fix = "a parts.csv there keeps parts as they are"
        runtime.warn0(
            f"{data.title}: its training images are others now than when the model was trained, and some of those may "
            f"be in valid and test; {fix}"
        )
    elif trained["split"] == "all" and getattr(options, "split", "") not in ("train", "all"):
        runtime.warn0(f"{data.title}: the model was trained on all of its images, valid and test among them")


def compile_for(model: DiffusionModel, options: RuntimeConfig, calls: int) -> None:
    """With ``--compile auto``: compile the networks if that pays for so many ``calls`` x images of all processes."""
    if options.compile == "auto":
        runtime.use_compile(model, "auto", next(model.parameters()).device, calls / runtime.world())


def load_autoencoder(options: ModelOptions, about: dict[str, Any], device: torch.device | None = None) -> AutoEncoder:
    """The same. Raises UserError for a model that cannot decode a code."""
    model = load(options, about, device)
    if not isinstance(model, AutoEncoder):
        raise UserError(f"model_path: expected an autoencoder, {options.model_path} is a {type(model).__name__}")
    return model


def build_data(options: DataOptions, size: int, whole: bool = False) -> ImageDataset:
    """The images that the options name, at the model's size; ``whole`` is as in ``datasets.build``."""
    data = build(
        options.dataset, options.split, size, options.data_root, options.data_dir, options.split_range,
        whole=whole and options.limit is None,
    )  # fmt: skip
    return data.part(range(min(len(data), options.limit))) if options.limit else data


def feature_time(model: DiffusionModel, time: float | None = None) -> float:
    """The time at which features are taken: the one asked for, or the method's. UserError for none, or one it lacks."""
    if time is None and not hasattr(model, "FEATURES"):
        raise UserError(f"time: expected one, as {model.method} has none of its own for features")
    return check_time(model, model.FEATURES[1] if time is None else time)


def check_time(model: DiffusionModel, time: float, name: str = "time") -> float:
    """The time. Raises UserError for one that training does not draw; options of another ``name`` hold several."""
    process, one = model.process, name == "time"
    last = process.T - 1 if process.discrete else process.t_start
    if not process.t_min <= time <= last or (process.discrete and time != int(time)):
        kind = f"{'a ' * one}{'whole ' * process.discrete}number{'s' * (not one)}"
        raise UserError(f"{name}: expected {kind} from {process.t_min:g} to {last:g}, got {time:g}")
    return float(time)


def result_folder(model_path: str, *names: str, out: str | None = None) -> str:
    """Folder of results: ``sample_{step}/NAME/...``, for other names of files ``sample_{stem}``.

    It is beside the checkpoint, or below ``out``.
    """
    folder, name = os.path.split(model_path)
    which = step_of(name) if NAME.fullmatch(name) else os.path.splitext(name)[0]
    return os.path.join(out or folder, f"sample_{which}", *names)


def print_dry_run(options: ModelOptions, about: dict[str, Any], **more: Any) -> None:
    """Print the resolved configuration; without the weight file, the data set's preset stands for its model."""
    method = METHODS[options.method]
    if os.path.exists(options.model_path):
        model = load(options, about).config
    else:
        print(f"note: no such file yet: {options.model_path}; showing the preset's model", file=sys.stderr)
        model = preset(method, method.Config, options.row, about)
    print_options(options, model=dataclasses.asdict(model), **more)


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
