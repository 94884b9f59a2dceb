"""A web page for a trained model: upload an image, see its code's reconstruction, edit it, interpolate.

examples:
  python -m scripts.web --model ckpt/toyfaces/det/ema_0.9999_016000.pt
  python -m scripts.web --model ckpt/toyfaces/det/ema_0.9999_016000.pt --also ckpt/toyfaces/diffae/ema_0.9999_016000.pt

The page is for this machine alone unless --host or --share say otherwise. Uploads are deleted after an hour, and all of
them when the page ends. Editing needs a linear probe of the model, as infer_class_dbae.sh writes it. The sampling
options are what the page starts with (without any: the method's own way of few steps); a visitor chooses sampler and
steps.
"""

import dataclasses
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from dbae import runtime
from dbae.checkpoint import load_model
from dbae.config import RuntimeConfig, SampleConfig, UserError, option
from dbae.methods import AutoEncoder, DiffusionModel
from scripts.cli import Parser, given, run
from scripts.common import load_autoencoder, parse_sampling, print_dry_run
from scripts.edit_inputs import find_classifier
from scripts.options import ModelOptions
from scripts.trained import TrainedModel
from scripts.web_actions import Studio

OFFERED = (
    *("method", "model_path", "dataset", "classifier", "also", "latent", "batch_size", "seed", "device"),
    *("precision", "autocast", "host", "port", "share", "dry_run"),
)
STEPS = 20  # that the page starts with where a sampler was named alone


@dataclass(frozen=True)
class PageOptions(ModelOptions, RuntimeConfig):
    """A model, and where its page is. Raises UserError for values out of range."""

    dataset: str = option("folder:.", "data set of an official file, which has no config.json")
    latent: str = option("mean", "code of a stochastic encoder", ("sample", "mean"))
    classifier: str | None = option(None, "best.pt of a linear probe (default: beside the checkpoint, or its probe's)")
    also: tuple[str, ...] = option(
        (), "weight files of more models, of any method with a code, each in a tab of its own"
    )
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for everybody who reaches this machine")
    port: int = option(7860, "port to listen on")
    share: bool = option(False, "also make a public address, through a server of gradio's makers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.port < 1 << 16:
            raise UserError(f"port: expected a number from 1 to {(1 << 16) - 1}, got {self.port}")


def main(args: list[str] | None = None) -> None:
    """Parse, load, serve."""
    options, about, typed, method, sampling = parse_sampling(Parser(__doc__), PageOptions, "page", args, OFFERED)
    sampling = starting(method, sampling, set(given(typed, SampleConfig)))
    if options.dry_run:
        return print_dry_run(options, about, sampling)
    if find_spec("gradio") is None:
        raise UserError('gradio is missing: pip install "gradio>=6.31"')
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the folder goes, too
    with tempfile.TemporaryDirectory(prefix="dbae_web_") as folder:
        first = open_studio(options, about, sampling, folder)
        others = [dataclasses.replace(options, model_path=path, classifier=None) for path in options.also]
        more = [studio_of(each, loaded(each, first.trained.device), None, folder) for each in others]
        serve(named([first, *more], [options.model_path, *options.also]), options)
    return None


def named(studios: Sequence[Studio], paths: Sequence[str]) -> dict[str, Studio]:
    """The studios by their models' classes, with the folder's name where there are several of one."""
    kinds = [type(studio.trained.model).__name__ for studio in studios]
    folders = [os.path.basename(os.path.dirname(os.path.abspath(path))) for path in paths]
    names = [kind if kinds.count(kind) == 1 else f"{kind}, {where}" for kind, where in zip(kinds, folders, strict=True)]
    if len(set(names)) < len(names):
        raise UserError(f"also: expected models in folders of different names, got {', '.join(paths)}")
    return dict(zip(names, studios, strict=True))


def starting(method: type[DiffusionModel], sampling: SampleConfig, typed: set[str]) -> SampleConfig:
    """What the page starts with: the method's few steps where at most their number was ``typed``, or that sampling."""
    if method.FEW_STEPS and typed <= {"steps"}:
        return dataclasses.replace(method.FEW_STEPS, steps=sampling.steps if typed else method.FEW_STEPS.steps)
    return sampling if "steps" in typed else dataclasses.replace(sampling, steps=STEPS)


def open_studio(options: PageOptions, about: dict[str, Any], sampling: SampleConfig, folder: str) -> Studio:
    """The model with all that the page needs beside it; its pictures go to ``folder``."""
    return studio_of(options, load_autoencoder(options, about, runtime.setup(options.device)), sampling, folder)


def loaded(options: PageOptions, device: torch.device) -> DiffusionModel:
    """A further model, of whatever method, in the precision of the page."""
    model = load_model(options.model_path, device=device)
    model.use_amp(runtime.amp_dtype(options.precision, device), options.autocast)
    return model


def studio_of(options: PageOptions, model: DiffusionModel, sampling: SampleConfig | None, folder: str) -> Studio:
    """A model with what the page needs; it starts with ``sampling``, or its method's few steps."""
    if not isinstance(model, AutoEncoder):
        raise UserError(f"also: expected a model with a code, {options.model_path} is {type(model).__name__}")
    trained = TrainedModel.of(model, options, sampling or starting(type(model), model.SAMPLING, set()))
    return Studio(trained, find_classifier(trained, options.model_path, options.classifier, options.out), folder)


def serve(studios: dict[str, Studio], options: PageOptions) -> None:
    """Show the page until Ctrl-C. Nothing is sent to anybody, and gradio's files are in the studio's folder."""
    folder = next(iter(studios.values())).folder
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read at gradio's import
    from scripts.web_page import build, looks

    page = build(studios).queue(api_open=False, max_size=32)
    where = {"server_name": options.host, "server_port": options.port, "share": options.share}
    kept = {"run_history": False, "enable_monitoring": False, "max_file_size": "20mb"}
    shown = {"footer_links": [], "quiet": True, "prevent_thread_lock": True}
    try:
        _, local, public = page.launch(**where, **kept, **shown, **looks())
    except OSError:
        raise UserError(f"port: expected a free one on {options.host}, got {options.port}") from None
    print("open", public or local, "(Ctrl-C ends the page)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    run(main)
