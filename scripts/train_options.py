"""Options of training, and the presets in effect."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from datasets import build
from datasets.cache import PLACES
from datasets.tolerant import POLICIES
from dbae.checkpoint import read_config, stated_config
from dbae.config import TrainConfig, UserError, check_numbers, from_json, option
from dbae.methods import METHODS, DiffusionModel, LatentPrior, preset
from dbae.methods.presets import SIZES, choose
from scripts.cli import Parser, given, peek

TRAINED_ON = ("train", "all")


@dataclass(frozen=True)
class RunOptions:
    """Where a run reads and writes."""

    method: str = option("dbae", "what is trained: dbae, diffae, ddim or ddae; scripts.train_prior fits a prior")
    config: str = option("", "configuration of DDAE: a name like EDM_ddpm, or the path of an official yaml file")
    dataset: str = option(
        "",
        "ffhq, ffhq64, ffhq256, celeba, celebahq, bedroom, horse, cifar10, cifar100, tiny, toyfaces, sprites or "
        "folder:PATH",
    )
    preset: str | None = option(
        None,
        "networks and training of this size in place of the data set's own preset; by default data sets without one, "
        "like folder:PATH, get tiny on a CPU, and on a GPU base from 5,000 images of 64 px or as many pixels, else "
        "small; a run goes on with its own",
        SIZES,
    )
    data_root: str = option("data", "folder of the data sets")
    data_dir: str | None = option(None, "exact path of the data set instead")
    split: str | None = option(
        None, "images to train on: train, or all, with none held out (default: the run's, or train)", TRAINED_ON
    )
    split_range: str | None = option(None, "train on images A:B of the training split")
    workdir: str = option("workdir", "folder under which the run's own folder is made")
    epochs: int = option(0, "passes over the training images, in place of total_steps; 0: total_steps")
    data_moved: bool = option(False, "resume with the same images (names and sizes) from another path")
    resume_checkpoint: str | None = option(
        None,
        "start from this checkpoint where the run has none of its own, with its networks where config.json lies beside "
        "it",
    )
    device: str = option("auto", "auto, cpu or cuda")
    num_workers: int | None = option(
        None,
        "processes that read images, per training process (default: one less than there are cores, from 2 to 8)",
    )
    cache: str = option("none", "read all images at the start, into this memory; none: read them step by step", PLACES)
    on_bad_image: str = option("fail", "end at a bad image, or skip: put another in its place, and list it", POLICIES)
    timeout: float = option(10.0, "minutes that a process waits for the others before the run fails")
    quiet: bool = option(False, "print rows of progress.csv and warnings, nothing else")
    dry_run: bool = option(False, "print the resolved configuration and exit")
    check: int = option(0, "check arguments and data for N processes, and exit; 0: train")

    def __post_init__(self) -> None:
        METHODS[self.method].preset_row(self.row)
        check_numbers(self, from_zero=["num_workers", "epochs"])
        if not 0 < self.timeout <= 10_000:
            raise UserError(f"timeout: expected minutes above 0 and up to 10000, got {self.timeout}")
        start = self.resume_checkpoint
        if start and "://" not in start and not os.path.exists(start):
            raise UserError(f"resume_checkpoint: no such file: {start}")

    @property
    def row(self) -> str:
        """What names the presets: the configuration, where there is one, or the data set."""
        return self.config or self.dataset


def parse(description: str, args: list[str] | None = None) -> tuple[RunOptions, object, TrainConfig]:
    """Run options, and the preset with what was typed on top: the method's Config, and TrainConfig.

    A run that starts from another one's checkpoint has that one's networks.

    In the run options, ``preset`` is the size in effect, None where the data set's own row is, and ``split`` is set.
    """
    row = peek(args, "config")
    images = [name for name in METHODS if name != LatentPrior.method]  # which scripts.train_prior fits
    method = METHODS[peek(args, "method", "dbae", images)].variant(row)
    parser = Parser(description, "The preset overrides the defaults shown; --dry_run prints what results.")
    parser.add_config("run", RunOptions)
    parser.add_config("model", method.Config)
    parser.add_config("training", TrainConfig)
    typed = parser.parse_args(args)
    known = {"dataset": method.preset_row(row).get("dataset", "")} if row else {}
    options = RunOptions(**{**known, **given(typed, RunOptions), "method": method.method})
    start, fields = networks_of(options.resume_checkpoint, method), given(typed, method.Config)
    fixed = {"latent_dim", *method.CHECKED} - set(method.OVERRIDABLE)
    for name in sorted(fields.keys() & start.keys() & fixed):
        if fields[name] != start[name]:
            raise UserError(f"{name}: {options.resume_checkpoint} has {start[name]}, got {fields[name]}")
    fields = start | fields
    if options.preset is None and options.dataset.partition(":")[0] in method.SIZED:
        options = replace(options, preset=size_in_effect(method, options, fields))
    model = preset(method, method.Config, options.row, fields, options.preset)
    training = preset(method, TrainConfig, options.row, given(typed, TrainConfig), options.preset)
    return replace(options, split=options.split or _split_of_run(options, model)), model, training


def networks_of(checkpoint: str | None, method: type[DiffusionModel]) -> dict[str, Any]:
    """Fields of the method's Config that the configuration of a checkpoint states; none without one.

    Raises UserError for a checkpoint of another method, whose optimizer and steps are not this one's either.
    """
    content = stated_config(checkpoint) if checkpoint else None
    if content is None:
        return {}
    if (stated := content.get("method", "dbae")) != method.method:
        raise UserError(f"resume_checkpoint: {checkpoint} is of {stated}, got {method.method}")
    return asdict(from_json(method.Config, content["model"], f"the configuration of {checkpoint}"))


def size_in_effect(method: type[DiffusionModel], options: RunOptions, fields: Mapping[str, Any]) -> str:
    """The size of a run that does not name one: that of the run that is there already, or the one that suits.

    ``fields`` of the method's Config were typed. Runs of earlier versions do not say their size: it was base.
    """
    configs = {size: preset(method, method.Config, options.row, fields, size) for size in SIZES}
    image_size = configs["base"].image_size
    device = "cpu" if options.device == "auto" and not torch.cuda.is_available() else options.device.partition(":")[0]
    images = 0
    if device != "cpu":
        where = options.data_root, options.data_dir, options.split_range
        images = len(build(options.dataset, options.split or "train", image_size, *where))
    suits = choose(image_size, device, images)
    runs = [size for size in SIZES if _size_of_run(run_folder(options, configs[size])) == size]
    return suits if suits in runs or not runs else runs[0]


def _split_of_run(options: RunOptions, model: object) -> str:
    """What the run that is there was trained on: of a folder, in earlier versions, on all images."""
    content = read_config(run_folder(options, model))
    noted = content and content.get("data")
    noted = noted if isinstance(noted, dict) else {}
    before = "all" if content and options.dataset.startswith("folder:") else "train"
    return noted.get("split", before)


def _size_of_run(run_dir: str) -> str | None:
    content = read_config(run_dir)
    return content and content.get("preset", "base")


def run_folder(options: RunOptions, model: object) -> str:
    """``WORKDIR/{DATASET}{name of the model's configuration}``, as the official code names it.

    Where a configuration was named, ``WORKDIR/{CONFIG}_{DATASET}``.
    """
    kind, _, path = options.dataset.partition(":")
    name = f"folder-{os.path.basename(os.path.normpath(path))}-" if path else kind
    if options.config:
        stem = os.path.splitext(os.path.basename(options.config))[0]
        return f"{options.workdir.rstrip('/')}/{stem}_{name.rstrip('-')}"
    method = "" if options.method == "dbae" else f"{options.method}_"
    return f"{options.workdir.rstrip('/')}/{method}{name}{model.name}"
