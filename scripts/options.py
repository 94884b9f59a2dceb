"""Options in groups, which programs put together: how they compute, which images they read, which model they use."""

from dataclasses import dataclass
from typing import Any

from datasets import CHOICES
from dbae.config import UserError, check_numbers, option
from dbae.methods import METHODS


def check_given(options: Any, *names: str) -> None:
    """Raise UserError where one of these options is missing or empty."""
    for name in names:
        if not getattr(options, name):
            raise UserError(f"{name}: expected one, got none")


@dataclass(frozen=True)
class ProgramOptions:
    """How a program computes, and how far it goes."""

    seed: int = option(0, "seed of every random number")
    device: str = option("auto", "auto, cpu or cuda")
    overwrite: bool = option(False, "replace results of other settings that are there already")
    dry_run: bool = option(False, "print the resolved configuration and exit")
    check: int = option(0, "check arguments, weights and data for N processes, and exit; 0: run")


@dataclass(frozen=True)
class ImageOptions:
    """Where images are, and how they are read."""

    data_root: str = option("data", "folder of the data sets")
    data_dir: str | None = option(None, "exact path of the data set instead")
    num_workers: int | None = option(
        None, "processes that read images (default: one less than there are cores, from 2 to 8)"
    )


@dataclass(frozen=True)
class ModelOptions(ImageOptions, ProgramOptions):
    """A checkpoint, and how images pass through it. Raises UserError for values out of range."""

    method: str = option("dbae", "method of an official file; other files state theirs")
    config: str = option("", "configuration of DDAE: a name like EDM_ddpm, or the path of an official yaml file")
    dataset: str = option(
        "",
        "ffhq, ffhq64, ffhq256, celeba, celebahq, bedroom, horse, cifar10, cifar100, tiny, toyfaces, sprites "
        "or folder:PATH",
    )
    model_path: str = option(
        "", "weight file: ema_RATE_STEP.pt, model_STEP.pt, or another name, also .safetensors", alias="model"
    )
    batch_size: int = option(64, "images that pass through the model together, on each process")
    latent: str = option("sample", "code of a stochastic encoder", ("sample", "mean"))
    out: str | None = option(None, "folder to write to in place of the checkpoint's, which may be read-only")

    def __post_init__(self) -> None:
        check_given(self, "dataset", "model_path")
        if self.config or METHODS[self.method].ROWS == "dataset":
            METHODS[self.method].preset_row(self.row)  # an unknown data set ends here
        check_numbers(self, ["batch_size"], ["seed", "num_workers"])
        if self.seed >= 2**63:
            raise UserError(f"seed: expected a whole number below 2^63, got {self.seed}")

    @property
    def row(self) -> str:
        """What names the presets: the configuration, where there is one, or the data set."""
        return self.config or self.dataset


@dataclass(frozen=True)
class DataOptions(ModelOptions):
    """A checkpoint, and the images to read. Raises UserError for values out of range."""

    split: str = option("train", "part of the data set; all: the whole", CHOICES)
    split_range: str | None = option(None, "cut A:B out of the split")
    limit: int | None = option(None, "only the first N images")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ["limit"])
