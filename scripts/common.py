"""What every program that uses a trained model shares: its command line, loading the model and the images, folders."""

import dataclasses
import os
import sys
from typing import Any

import torch

from datasets import build
from datasets.base import ImageDataset
from dbae import runtime
from dbae.checkpoint import NAME, load_model, stated_config, step_of
from dbae.config import RuntimeConfig, SampleConfig, UserError
from dbae.methods import METHODS, AutoEncoder, DiffusionModel, LatentPrior, preset
from scripts.cli import Parser, given, peek, print_options
from scripts.options import DataOptions, ModelOptions


def parse(
    parser: Parser,
    cls: type,
    title: str,
    args: list[str] | None = None,
    only: tuple[str, ...] = (),
    sampled: bool = False,
) -> tuple[Any, dict[str, Any], Any]:
    """Options of class ``cls`` (a ModelOptions), what was typed about the model, and the whole namespace.

    ``only`` some of the options are offered where it names any, and those of sampling if it is ``sampled``. The method
    is that of the weight file's run, or the one typed, in the variant that the configuration is of; the data set is
    that of the configuration, or the one typed.
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
    if sampled:
        parser.add_config("sampling", SampleConfig, defaults=method.SAMPLING)
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
    options, about, typed = parse(parser, cls, title, args, only, sampled=True)
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


def print_dry_run(
    options: ModelOptions, about: dict[str, Any], sampling: SampleConfig | None = None, **more: Any
) -> None:
    """Print the resolved configuration; without the weight file, the data set's preset stands for its model.

    Raises UserError for a ``sampling`` that the model of the file does not have.
    """
    method = METHODS[options.method]
    if os.path.exists(options.model_path):
        model = load(options, about)
        if sampling:
            model.check_sampling(sampling)
        config = model.config
    else:
        print(f"note: no such file yet: {options.model_path}; showing the preset's model", file=sys.stderr)
        config = preset(method, method.Config, options.row, about)
    shown = {"sampling": sampling.as_dict()} if sampling else {}
    print_options(options, model=dataclasses.asdict(config), **shown, **more)
