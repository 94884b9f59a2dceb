"""A wide residual network that classifies noisy images and is told the noise: WRN-28-10, from nothing.

examples:
  bash ddae/classifier_wrn.sh DDPM                 on CIFAR-10 under the noise levels of DDPM (VP)
  bash ddae/classifier_wrn.sh EDM --dataset cifar100
  bash ddae/classifier_wrn.sh DDPM --depth 10 --width 1 --epochs 10 --warm_epoch 1     small enough for a CPU

Results go to WORKDIR/WRN-DEPTH-WIDTH_MODE_DATASET/: state.pt, noisy_classifier.json and recognition.png. Running the
command again goes on where it stopped.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import cos, pi

import torch
from torch import Tensor

from dbae import runtime
from dbae.config import UserError, check_choices, check_numbers, option
from dbae.io import Generators, randn_like
from dbae.methods.ddae import CHAIN, P_MEAN, P_STD
from dbae.nn.wide_resnet import WideResNet
from scripts.classifiers import Recipe
from scripts.cli import options_of, print_options, run
from scripts.noisy_classifier import FRAMEWORKS, ClassifierOptions, Job, NoisyTask, train_and_test
from scripts.options import ImageOptions, ProgramOptions

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


@dataclass(frozen=True)
class WRNOptions(ClassifierOptions, ImageOptions, ProgramOptions):
    """Which network, on which images and noise. Raises UserError for values out of range."""

    mode: str = option("DDPM", "noise levels: of DDPM (VP), or of EDM (VE)", tuple(FRAMEWORKS))
    dataset: str = option("cifar10", "cifar10, cifar100, tiny, toyfaces or folder:PATH, with classes")
    image_size: int = option(32, "height and width in pixels (tiny: 64)")
    depth: int = option(28, "convolutions in a row, 6 n + 4: 10, 16, 22, 28, ...")
    width: int = option(10, "factor of the channels 16, 32 and 64")
    epochs: int = option(200, "passes over the training images")
    warm_epoch: int = option(5, "of them the first, in which the learning rate rises")
    lr: float = option(0.1, "highest learning rate, whatever the number of processes")
    workdir: str = option("workdir", "folder under which the classifier's own folder is made")

    def __post_init__(self) -> None:
        check_choices(self)
        self.check_training()
        check_numbers(self, ["image_size"], ["seed", "num_workers"])
        if self.image_size % 4:
            raise UserError(f"image_size: expected a multiple of 4, got {self.image_size}")
        if self.depth < 10 or (self.depth - 4) % 6:
            raise UserError(f"depth: expected 6 n + 4, like 10, 16 or 28, got {self.depth}")
        if self.width < 1 or (self.width > 8 and self.width % 2):
            raise UserError(f"width: expected 1 to 8 or an even number, got {self.width}")
        if not 0 <= self.warm_epoch < self.epochs:
            raise UserError(f"warm_epoch: expected 0 to {self.epochs - 1}, below the epochs, got {self.warm_epoch}")

    @property
    def folder(self) -> str:
        """Of the results."""
        kind, _, path = self.dataset.partition(":")
        data = f"folder-{os.path.basename(os.path.normpath(path))}" if path else kind
        return os.path.join(self.workdir, f"WRN-{self.depth}-{self.width}_{self.mode}_{data}")


def recursive_cosine(epochs: int, warmup: int) -> Callable[[float], float]:
    """Factor of the learning rate by epoch: a linear rise to 1, then the official cosine.

    That goes from epoch to epoch by the ratio of the cosine's values over all ``epochs``. It starts from 1 in the last
    epoch of the rise, where the cosine is a little below, and so stays above it by the same factor to the end.
    """

    def half(epoch: int) -> float:
        return (1 + cos(pi * epoch / epochs)) / 2

    def factor(done: float) -> float:
        epoch = int(done)
        return (epoch + 1) / warmup if epoch < warmup else half(epoch) / half(max(warmup - 1, 0))

    return factor


def task_of(options: WRNOptions, classes: int) -> NoisyTask:
    """The network, told t / 1000 or ln sigma, on noised images at times of the framework's process."""
    process, times, tested = FRAMEWORKS[options.mode]
    edm = options.mode == "EDM"

    def draw(n: int, device: torch.device) -> Tensor:
        return (P_MEAN + P_STD * torch.randn(n, device=device)).exp() if edm else process.draw_times(n, device)

    def see(x: Tensor, t: Tensor, generators: Generators) -> tuple[Tensor, Tensor]:
        return process.marginal(x, t, randn_like(x, generators)), t.log() if edm else t / CHAIN

    levels = {number: times[number].item() for number in tested}
    return NoisyTask(WideResNet(classes, options.depth, options.width), draw, see, levels)


def main(args: list[str] | None = None) -> None:
    """Parse, train and test."""
    options = options_of(__doc__, "classifier", WRNOptions, args)
    if options.dry_run:
        return print_options(options, output=options.folder)
    device = runtime.setup(options.device)
    optimizer = partial(torch.optim.SGD, lr=options.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    factor = recursive_cosine(options.epochs, options.warm_epoch)
    recipe = Recipe(options.epochs, options.batch_size, optimizer, factor, seed=options.seed)
    settings = {
        "classifier": "wrn", "framework": options.mode, "depth": options.depth, "width": options.width,
        "warm_epoch": options.warm_epoch, "lr": options.lr, "optimizer": "sgd", "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY, **recipe.identity(),
    }  # fmt: skip
    title = f"WRN-{options.depth}-{options.width}, noise of {options.mode}, {options.dataset.partition(':')[0]}"
    build = partial(task_of, options)
    job = Job(title, options.mode, build, options.image_size, recipe, settings, options.folder)
    return train_and_test(job, options, device)


if __name__ == "__main__":
    run(main)
