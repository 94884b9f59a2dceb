"""Classifiers of noisy images that are told the noise: what both kinds of them share.

They are trained on images under all noise levels of a framework, and tested level by level: a curve of recognition rate
over noise (Xiang et al., ICCV 2023). Levels have the numbers of the official code: times 1 to 1000 in DDPM, steps 1 to
18 of EDM's grid.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datasets import Labelled, labelled_splits
from datasets.loader import CachedImages
from dbae import runtime
from dbae.config import check_numbers, option
from dbae.diffusion import VE, Diffusion, LinearBeta, Process
from dbae.io import Generators, with_command, write_json
from dbae.methods.ddae import CHAIN
from dbae.methods.ddae_config import EDM_STEPS, sigma_of_step
from dbae.progress import progress_bar
from scripts.classifiers import Inputs, Recipe, Training, accuracies, logits
from scripts.labelled import Data, about, files, read, spread
from scripts.noisy_figure import RESULT, draw, read_results
from scripts.results import begin

NAME = "classifier"  # the only one in its training
WATCHED, WATCHED_LEVELS = 256, 3  # test images and levels that are looked at after every epoch
WRITTEN = (RESULT, "state.pt", "recognition.png")  # in the folder of a classifier


class Framework(NamedTuple):
    """The noise levels of a framework."""

    process: Process
    times: Tensor  # [1 + levels]: the process's times of the numbers 0 (the data), 1, 2, ...
    tested: range  # numbers of the levels of the curve


FRAMEWORKS = {
    "DDPM": Framework(Diffusion(LinearBeta(CHAIN, start=1)), torch.arange(CHAIN + 1), range(1, CHAIN + 1, CHAIN // 20)),
    "EDM": Framework(
        Diffusion(VE()), torch.tensor([sigma_of_step(k) for k in range(EDM_STEPS + 1)]), range(1, EDM_STEPS + 1)
    ),
}


@dataclass(frozen=True)
class ClassifierOptions:
    """How a classifier is trained, and on how many images; a subclass says what, and of which images."""

    epochs: int = option(15, "passes over the training images")
    batch_size: int = option(512, "images per step over all processes (official: 128 on each of 4)")
    lr: float = option(4e-3, "learning rate, of all processes together (official: 1e-3 on each of 4)")
    labels: str | None = option(None, "CSV of a folder of images (default: its labels.csv, or its folders)")
    limit: int | None = option(None, "only N training images, evenly spread over them")
    limit_test: int | None = option(None, "only N test images, evenly spread over them")
    compare: tuple[str, ...] = option((), "other results to draw beside: files, or folders that hold some")
    quiet: bool = option(False, "show no progress")

    def check_training(self) -> None:
        """Raise UserError for values out of range."""
        check_numbers(self, ["epochs", "batch_size", "lr", "limit", "limit_test"])


@dataclass(frozen=True)
class NoisyTask:
    """A network, what it sees of images under noise, and at which levels it is tested."""

    network: nn.Module
    draw: Callable[[int, torch.device], Tensor]  # levels [n] of training
    see: Callable[[Tensor, Tensor, Generators], Sequence[Tensor]]  # images, their levels, and where noise comes from
    tested: Mapping[int, float]  # number -> level

    def inputs(self, level: float | None = None) -> Inputs:
        """What the network is called with: at one level, or each image at a random one."""

        def given(x: Tensor, generators: Generators) -> dict[str, Sequence[Tensor]]:
            n, device = len(x), x.device
            levels = self.draw(n, device) if level is None else torch.full((n,), level, device=device)
            return {NAME: self.see(x, levels, generators)}

        return given


@dataclass(frozen=True)
class Job:
    """A classifier to be trained: what it is, how, and where its results go."""

    title: str  # of its curve
    framework: str
    build: Callable[[int], NoisyTask]  # for a number of classes, on the device
    size: int  # of the images
    recipe: Recipe
    settings: Mapping[str, Any]  # what training depends on beside the images
    folder: str
    inputs: Sequence[str] = ()  # files that are read beside the images


def splits_of(options: Any, size: int) -> tuple[dict[str, list[Labelled]], tuple[str, ...]]:
    """Training and test images with their classes, and the names of these.

    Nothing is chosen by held-out images, so that those of valid are trained on, as officially. No image is read.
    """
    parts = labelled_splits(options.dataset, "class", size, options.data_root, options.data_dir, options.labels)
    train = spread([parts["train"], parts["valid"]], options.limit)
    return {"train": train, "test": spread([parts["test"]], options.limit_test)}, parts["train"].targets.names


@torch.no_grad()
def recognition(
    task: NoisyTask,
    network: nn.Module,
    images: CachedImages,
    classes: Tensor,
    numbers: Sequence[int],
    device: torch.device,
    seed: int,
    quiet: bool = True,
) -> dict[int, float]:
    """Share of images that are recognised at each of the levels, by number.

    Image i has the noise of (seed, i) at all of them. Raises UserError as ``logits`` does.
    """
    rates = {}
    with progress_bar(len(numbers), "level", "test", enabled=not quiet and runtime.rank() == 0) as bar:
        for number in numbers:
            given = task.inputs(task.tested[number])
            found = logits({NAME: network}, images, given, device, seed=seed, desc="")
            rates[number] = accuracies(found, classes)[NAME]
            bar.update()
    return rates


def train_and_test(job: Job, options: Any, device: torch.device) -> None:
    """Train a classifier, or go on; test it, and write to its folder. What is done already is not done again.

    Raises UserError where the folder holds another classifier, and SystemExit after a signal.
    """
    others = read_results(options.compare)  # wrong ones end before any work
    splits, names = splits_of(options, job.size)
    trained_on = with_command({**job.settings, **about({"train": splits["train"]}), "classes": list(names)})
    made_from = {**trained_on, **about({"test": splits["test"]})}
    result, state, picture = (os.path.join(job.folder, name) for name in WRITTEN)
    torch.manual_seed(job.recipe.seed)
    task = job.build(len(names))
    training = Training({NAME: task.network}, job.recipe, device, state, trained_on)
    report = begin(training, result, [picture], [*job.inputs, *files(splits)], options, made_from)
    if options.check:
        return

    if not report:
        data = {split: read(parts, device, options.num_workers, options.quiet) for split, parts in splits.items()}
        _train(training, task, data, options)
        network, quiet = training.classifiers[NAME], options.quiet
        rates = recognition(task, network, *data["test"], list(task.tested), device, job.recipe.seed, quiet)
        report = {"title": job.title, "framework": job.framework, "made_from": made_from}
        report |= _report(rates, FRAMEWORKS[job.framework], data) | {"history": training.history}
        runtime.on_first(lambda: write_json(result, report))
    if runtime.rank() == 0:
        own = os.path.realpath(result)
        draw(picture, [report, *(other for path, other in others.items() if os.path.realpath(path) != own)])
        for level in report["levels"]:
            print(f"[timestep {level['timestep']}]: Test acc: {level['accuracy']:.4f}")
        print(f"wrote {result} and {picture}")
    runtime.cleanup()


def _train(training: Training, task: NoisyTask, data: Mapping[str, Data], options: Any) -> None:
    """Train to the end. A few test images tell how it goes."""
    images, classes = data["test"]
    step = -(-len(images) // WATCHED)  # evenly spread, as classes may stand one after another
    some = CachedImages(images.images[::step], images.positions[::step])
    numbers, seed = list(task.tested), training.recipe.seed
    watched = sorted({numbers[i * (len(numbers) - 1) // (WATCHED_LEVELS - 1)] for i in range(WATCHED_LEVELS)})

    def watch(classifiers: Mapping[str, nn.Module]) -> dict[str, float]:
        rates = recognition(task, classifiers[NAME], some, classes[::step], watched, training.device, seed)
        return {f"[timestep {number}]": rate for number, rate in rates.items()}

    training.run(*data["train"], task.inputs(), watch, options.quiet)


def _report(rates: Mapping[int, float], framework: Framework, data: Mapping[str, Data]) -> dict[str, Any]:
    """Of the report what was found: rates by level, and that of the most frequent class of training, chance."""
    _, sigmas = framework.process.schedule.s_sigma(framework.times.double())
    return {
        "images": {split: len(classes) for split, (_, classes) in data.items()},
        "chance": (data["test"][1] == data["train"][1].bincount().argmax()).double().mean().item(),
        "levels": [
            {"timestep": number, "noise_to_signal": sigmas[number].item(), "accuracy": rate}
            for number, rate in rates.items()
        ],
    }
