"""A web page for a trained model: upload an image, see its code's reconstruction, edit it, interpolate.

example:
  python -m scripts.web --model ckpt/toyfaces/det/ema_0.9999_016000.pt

The page is for this machine alone unless --host or --share say otherwise. Uploads are deleted after an hour, and all of
them when the page ends. Editing needs a linear probe of the model, as infer_class_dbae.sh writes it.
"""

import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dbae.config import SAMPLERS, ModelConfig, SampleConfig, UserError, option
from scripts.cli import Parser, given, run
from scripts.inputs import MODEL_OPTIONS, ModelInputs, Precision, load, print_dry_run

if TYPE_CHECKING:
    from scripts.web_actions import Studio

UPLOAD = "20mb"  # the largest file
WAITING = 32  # calls that may wait for the model
PAGE_OPTIONS = (
    *("model_path", "dataset", "classifier", "latent", "sampler", "steps", "batch_size", "seed", "device"),
    *("host", "port", "share", "dry_run"),
)


@dataclass(frozen=True)
class PageOptions(ModelInputs, Precision):
    """A model, and where its page is. Raises UserError for values out of range."""

    dataset: str = option("folder:.", "data set of a released file, which has no config.json")
    latent: str = option("mean", "code of a stochastic encoder", ("sample", "mean"))
    classifier: str | None = option(None, "best.pt of a linear probe (default: beside the checkpoint, or its probe's)")
    sampler: str = option("euler", "sampler that the page starts with", tuple(SAMPLERS))
    steps: int = option(20, "steps that the page starts with")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for everybody who reaches this machine")
    port: int = option(7860, "port to listen on")
    share: bool = option(False, "also make a public address, through a server of gradio's makers")

    def __post_init__(self) -> None:
        super().__post_init__()
        SampleConfig(sampler=self.sampler, steps=self.steps)
        if not 0 < self.port < 1 << 16:
            raise UserError(f"port: expected a number from 1 to {(1 << 16) - 1}, got {self.port}")


def main() -> None:
    """Parse, load, serve."""
    parser = Parser(__doc__.split("\n")[0], __doc__.split("\n", 1)[1])
    parser.add_config("page", PageOptions, PAGE_OPTIONS)
    parser.add_config("model (checked against the checkpoint)", ModelConfig, MODEL_OPTIONS)
    typed = parser.parse_args()
    options, about = PageOptions(**given(typed, PageOptions)), given(typed, ModelConfig)
    if options.dry_run:
        return print_dry_run(options, about)
    if find_spec("gradio") is None:
        raise UserError('gradio is missing: pip install "gradio>=6.31"')
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the folder goes, too
    with tempfile.TemporaryDirectory(prefix="dbae_web_") as folder:
        serve(studio(options, about, folder), options)
    return None


def studio(options: PageOptions, about: dict[str, Any], folder: str) -> "Studio":
    """The model with all that the page needs beside it; its pictures go to ``folder``."""
    from datasets.toyfaces import ATTRIBUTES
    from dbae import distributed
    from dbae.attributes import read_classifier
    from scripts import familiarity
    from scripts.edit_options import find_classifier
    from scripts.editing import Editor
    from scripts.web_actions import Studio

    device = distributed.setup(options.device)
    model = load(options, about, device)
    try:
        path = find_classifier(options.model_path, options.classifier)
    except UserError:
        classifier = None
    else:
        classifier = read_classifier(path, model.config.latent_dim, ATTRIBUTES).to(device)
    editor = Editor(model, SampleConfig(), options.latent, options.seed, options.batch_size)
    return Studio(editor, classifier, familiarity.percentiles(options.model_path), folder)


def serve(studio: "Studio", options: PageOptions) -> None:
    """Show the page until Ctrl-C. Nothing is sent to anybody, and gradio's files are in the studio's folder."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": studio.folder}
    from scripts.web_page import build, looks

    page = build(studio, options.sampler, options.steps).queue(api_open=False, max_size=WAITING)
    where = {"server_name": options.host, "server_port": options.port, "share": options.share}
    kept = {"run_history": False, "enable_monitoring": False, "max_file_size": UPLOAD}
    try:
        _, local, public = page.launch(
            **where, **kept, **looks(), footer_links=[], quiet=True, prevent_thread_lock=True
        )
    except OSError:
        raise UserError(f"port: expected a free one on {options.host}, got {options.port}") from None
    print("open", public or local, "(Ctrl-C ends the page)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    run(main)
