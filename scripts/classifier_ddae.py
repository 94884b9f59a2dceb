"""A classifier of noisy images by features of a frozen DDAE, which is told the noise: an MLP for all noise levels.

examples:
  bash ddae/classifier_ddae.sh DDPM_ddpm workdir/DDPM_ddpm_cifar10/ema_0.9999_196000.pt
  bash ddae/classifier_ddae.sh EDM_small CKPT --compare workdir

Features of the configuration's block are computed anew in every epoch, of mirrored and cropped images under fresh noise
of a random level; the network stops after the block. Results go to sample_STEP/classifier_BLOCK/: state.pt,
noisy_classifier.json and recognition.png. Running the command again goes on where it stopped.
"""

import dataclasses
import os
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dbae import runtime
from dbae.config import RuntimeConfig, UserError
from dbae.io import Generators, fingerprint
from dbae.methods.ddae import DDAE, EDMDDAE
from dbae.nn.mlp import FeatureClassifier
from scripts.classifiers import Recipe, cosine
from scripts.cli import Parser, run
from scripts.common import load, parse, print_dry_run, result_folder
from scripts.noisy_classifier import FRAMEWORKS, ClassifierOptions, Job, NoisyTask, train_and_test
from scripts.options import ModelOptions


@dataclass(frozen=True)
class MLPOptions(ClassifierOptions, ModelOptions, RuntimeConfig):
    """Whose features, and how the classifier is trained. Raises UserError for values out of range."""

    def __post_init__(self) -> None:
        ModelOptions.__post_init__(self)
        self.check_training()


def task_of(model: DDAE, classes: int) -> NoisyTask:
    """The head, told the number of the noise level, on features that the frozen network makes at its own time."""
    framework, block = FRAMEWORKS["EDM" if isinstance(model, EDMDDAE) else "DDPM"], model.config.feature_block
    size, device = model.config.image_size, next(model.parameters()).device
    times = framework.times.to(device)

    def draw(n: int, device: torch.device) -> Tensor:
        return torch.randint(1, len(times), (n,), device=device)

    def see(x: Tensor, numbers: Tensor, generators: Generators) -> tuple[Tensor, Tensor]:
        return model.features(x, times[numbers], [block], generator=generators)[block], numbers

    width = see(torch.zeros(1, 3, size, size, device=device), draw(1, device), None)[0].shape[1]
    return NoisyTask(FeatureClassifier(width, classes), draw, see, {number: number for number in framework.tested})


def main(args: list[str] | None = None) -> None:
    """Parse, load the model, train and test."""
    offered = tuple(f.name for f in dataclasses.fields(MLPOptions) if f.name != "latent")
    options, about, _ = parse(Parser(__doc__), MLPOptions, "classifier", args, offered)
    if options.dry_run:
        output = result_folder(options.model_path, "classifier_BLOCK", out=options.out)
        return print_dry_run(options, about, output=output)
    device = runtime.setup(options.device)
    model = load(options, about, device)
    if not isinstance(model, DDAE):
        raise UserError(f"model_path: expected a DDAE, {options.model_path} is a {type(model).__name__}")
    optimizer = partial(torch.optim.Adam, lr=options.lr)
    recipe = Recipe(options.epochs, options.batch_size, optimizer, cosine(options.epochs), seed=options.seed)
    block, framework = model.config.feature_block, "EDM" if isinstance(model, EDMDDAE) else "DDPM"
    settings = {
        "classifier": "mlp", "framework": framework, "weights": fingerprint(options.model_path), **model.unstated,
        "block": block,
        "precision": model.precision, "lr": options.lr, "optimizer": "adam", **recipe.identity(),
    }  # fmt: skip
    folder = result_folder(options.model_path, f"classifier_{block}", out=options.out)
    step = os.path.basename(os.path.dirname(folder)).removeprefix("sample_")
    name = os.path.splitext(os.path.basename(options.config))[0] or model.method
    title = f"MLP on {block} of {name} at {step}, {options.dataset.partition(':')[0]}"
    job = Job(
        title, framework, partial(task_of, model), model.config.image_size, recipe, settings, folder,
        [options.model_path],
    )  # fmt: skip
    return train_and_test(job, options, device)


if __name__ == "__main__":
    run(main)
