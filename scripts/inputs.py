"""What every program that reads a trained model and a data set has in common."""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbae.config import COMPILE, HALVES, PRECISIONS, ModelConfig, UserError, option, preset, require_positive
from scripts.bad_images import POLICIES
from scripts.cli import Parser, given

if TYPE_CHECKING:
    import torch

    from datasets.base import ImageDataset
    from dbae.methods.dbae import DBAE

MODEL_OPTIONS = ("image_size", "schedule", "stochastic", "end_data")


@dataclass(frozen=True)
class ModelInputs:
    """A checkpoint, and how images pass through it. Raises UserError for values out of range."""

    dataset: str = option("", "ffhq, celeba, celebahq, bedroom, horse, toyfaces or folder:PATH")
    model_path: str = option("", "weight file: ema_RATE_STEP.pt or model_STEP.pt", alias="model")
    data_root: str = option("data", "folder of the data sets")
    data_dir: str | None = option(None, "exact path of the data set instead")
    batch_size: int = option(64, "images that pass through the model together, on each process")
    latent: str = option("sample", "code of a stochastic encoder", ("sample", "mean"))
    seed: int = option(0, "seed of every random number")
    device: str = option("auto", "auto, cpu or cuda")
    num_workers: int = option(0, "processes that read images")
    dry_run: bool = option(False, "print the resolved configuration and exit")
    check: int = option(0, "check arguments, weights and data for N processes, and exit; 0: run")

    def __post_init__(self) -> None:
        for name in ("dataset", "model_path"):
            if not getattr(self, name):
                raise UserError(f"{name}: expected one, got none")
        preset(ModelConfig, self.dataset, {})  # an unknown data set ends here
        require_positive("batch_size", self.batch_size)
        for name in ("seed", "num_workers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: expected a whole number from 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class Inputs(ModelInputs):
    """A checkpoint, and the images to read. Raises UserError for values out of range."""

    split: str = option("train", "part of the data set", ("train", "valid", "test"))
    split_range: str | None = option(None, "cut A:B out of the split")
    limit: int | None = option(None, "only the first N images")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is not None:
            require_positive("limit", self.limit)


@dataclass(frozen=True)
class SweepInputs(Inputs):
    """The same for programs that go through all images, one of which may be bad."""

    on_bad_image: str = option("fail", "end at a bad image, or skip it and list it at the end", POLICIES)

    @property
    def whole(self) -> bool:
        """Whether the split's last image must be there."""
        return self.on_bad_image == "fail" and self.limit is None


@dataclass(frozen=True)
class Precision:
    """What a model computes in: options of the same names as in training."""

    precision: str = option("auto", "auto: bf16, fp16 or fp32, the best the device has", PRECISIONS)
    half: str = option(
        "all", "networks that half precision is for: all, or unet alone as in the official code", tuple(HALVES)
    )


@dataclass(frozen=True)
class Speed(Precision):
    """The same for programs that sample many batches of one size."""

    compile: str = option("false", "compile the networks, which takes a minute or more: true, or graphs", COMPILE)


def parse(parser: Parser, cls: type, title: str, args: list[str] | None) -> tuple[Any, dict[str, Any], Any]:
    """Options of class ``cls`` (a ModelInputs), what was typed about the model, and the whole namespace."""
    parser.add_config(title, cls)
    parser.add_config("model (checked against the checkpoint)", ModelConfig, MODEL_OPTIONS)
    typed = parser.parse_args(args)
    return cls(**given(typed, cls)), given(typed, ModelConfig), typed


def load(options: ModelInputs, about: dict[str, Any], device: "torch.device | None" = None) -> "DBAE":
    """The model, checked against everything typed about it, and as fast as the options say on ``device``."""
    from dbae.checkpoint import load_model
    from dbae.performance import half_dtype, use_compile, use_half

    size = about.get("image_size")
    dataset = None if size or options.dataset.startswith("folder:") else options.dataset
    typed = {name: value for name, value in about.items() if name != "image_size"}
    model = load_model(options.model_path, dataset, device=device, **typed)
    if size and size != model.config.image_size:
        raise UserError(f"image_size: {options.model_path} is for {model.config.image_size} px, got {size}")
    if device and isinstance(options, Precision):
        use_half(model, half_dtype(options.precision, device), options.half)
    if device and isinstance(options, Speed):
        use_compile(model, options.compile, device)
    return model


def build_data(options: Inputs, size: int, whole: bool = False) -> "ImageDataset":
    """The images that the options name, at the model's size; ``whole`` is as in ``datasets.build``."""
    from datasets import build

    return build(
        options.dataset, options.split, size, options.data_root, options.data_dir, options.split_range, whole=whole
    )


def result_folder(model_path: str, *names: str) -> str:
    """Folder of results beside a checkpoint: ``sample_{step}/NAME/...``."""
    from dbae.checkpoint import step_of

    return os.path.join(os.path.dirname(model_path), f"sample_{step_of(model_path)}", *names)


def print_dry_run(options: ModelInputs, about: dict[str, Any], **more: Any) -> None:
    """Print the resolved configuration; without the weight file, the data set's preset stands for its model."""
    if os.path.exists(options.model_path):
        model = load(options, about).config
    else:
        print(f"note: no such file yet: {options.model_path}; showing the preset's model", file=sys.stderr)
        model = preset(ModelConfig, options.dataset, about)
    print(json.dumps(dataclasses.asdict(options) | {"model": dataclasses.asdict(model)} | more, indent=2))
