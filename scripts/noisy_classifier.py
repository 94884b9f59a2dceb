"""Classifiers of noisy images that are told the noise: what both kinds of them share.

They are trained on images under all noise levels of a framework, and tested level by level: a curve of recognition rate
over noise (Xiang et al., ICCV 2023). Levels have the numbers of the official code: times 1 to 1000 in DDPM, steps 1 to
18 of EDM's grid.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datasets import Labelled, Targets, labelled_splits
from datasets.cache import cached
from datasets.loader import CachedImages
from dbae import runtime
from dbae.config import UserError, option, require_positive
from dbae.diffusion import VE, Diffusion, LinearBeta, Process
from dbae.io import Generators, atomic_write, check_outputs, differing, lock_folder, read_json, require_finite
from dbae.methods.ddae import CHAIN
from dbae.methods.ddae_config import EDM_STEPS, sigma_of_step
from dbae.progress import progress_bar
from scripts.classifiers import Inputs, Recipe, Training, accuracies, logits
from scripts.noisy_figure import RESULT, draw, read_results

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
    limit: int | None = option(None, "only the first N training images")
    limit_test: int | None = option(None, "only the first N test images")
    compare: tuple[str, ...] = option((), "other results to draw beside: files, or folders that hold some")
    quiet: bool = option(False, "show no progress")

    def check_training(self) -> None:
        """Raise UserError for values out of range."""
        for name in ("epochs", "batch_size", "lr", "limit", "limit_test"):
            if (value := getattr(self, name)) is not None:
                require_positive(name, value)
        if self.check and self.batch_size % self.check:
            raise UserError(f"batch_size: expected a multiple of the {self.check} processes, got {self.batch_size}")


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
    train = [*_first([parts["train"], parts["valid"]], options.limit)]
    return {"train": train, "test": [*_first([parts["test"]], options.limit_test)]}, parts["train"].targets.names


def _first(parts: Sequence[Labelled], limit: int | None) -> Iterator[Labelled]:
    """The parts up to their first ``limit`` images together."""
    for part in parts:
        if limit is None or limit >= len(part.targets):
            yield part
        elif limit:
            targets = Targets(part.targets.kind, part.targets.names, part.targets.values[:limit])
            yield Labelled(part.dataset.part(range(limit)), targets)
        limit = None if limit is None else max(0, limit - len(part.targets))


def about_images(splits: Mapping[str, Sequence[Labelled]]) -> dict[str, dict[str, Any]]:
    """What results depend on, of the images of each split, ready for JSON."""
    found: dict[str, dict[str, Any]] = {}
    for split, parts in splits.items():
        each = [{**part.dataset.identity(), "labels": part.dataset.labels_digest("class")} for part in parts]
        found[split] = {f"{split} {name}": [about[name] for about in each] for name in each[0]}
    return found


def read(parts: Sequence[Labelled], options: Any, device: torch.device) -> tuple[CachedImages, Tensor]:
    """All images of a split, in the memory of the host, and their classes [n]."""
    quiet = options.quiet or runtime.rank() > 0
    images = [cached(part.dataset, "host", device, options.num_workers, quiet).images for part in parts]
    joined = images[0] if len(images) == 1 else torch.cat(images)
    return CachedImages(joined, torch.arange(len(joined))), torch.cat([part.targets.values for part in parts])


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

    Image i has the noise of (seed, i) at all of them. Raises UserError where the network's output is not finite.
    """
    rates = {}
    with progress_bar(len(numbers), "level", "test", enabled=not quiet and runtime.rank() == 0) as bar:
        for number in numbers:
            given = task.inputs(task.tested[number])
            found = logits({NAME: network}, images, given, device, seed=seed, desc="")
            require_finite("outputs of the classifier", found[NAME])
            rates[number] = accuracies(found, classes)[NAME]
            bar.update()
    return rates


def train_and_test(job: Job, options: Any, device: torch.device) -> None:
    """Train a classifier, or go on; test it, and write to its folder. What is done already is not done again.

    Raises UserError where the folder holds another classifier, and SystemExit after a signal.
    """
    others = read_results(options.compare)  # wrong ones end before any work
    splits, names = splits_of(options, job.size)
    about = about_images(splits)
    trained_on = {**job.settings, **about["train"], "classes": list(names)}
    made_from = {**trained_on, **about["test"]}
    result, state, picture = (os.path.join(job.folder, name) for name in WRITTEN)
    files = [path for parts in splits.values() for part in parts for path in part.dataset.files()]
    runtime.on_first(lambda: check_outputs([result, state, picture], [*job.inputs, *files]))
    report = read_json(result) if os.path.exists(result) else {}
    wrong = differing(report.get("made_from"), made_from) if report else ""
    if wrong and not options.overwrite:
        raise UserError(f"{result} is of another {wrong}; give --overwrite true to replace it, or move it away")
    torch.manual_seed(job.recipe.seed)
    task = job.build(len(names))
    training = Training({NAME: task.network}, job.recipe, device, state, trained_on)
    try:
        training.restore()
    except UserError:
        if not options.overwrite:
            raise
    if options.check:
        return
    held: list[Any] = []  # the folder's lock, until the end
    runtime.on_first(lambda: held.append(lock_folder(job.folder)))

    if wrong or not report:
        data = read(splits["test"], options, device)
        signum = _train(training, task, splits["train"], data, options, device)
        if signum:
            runtime.print0(f"stopped: {job.folder} holds step {training.step}")
            runtime.cleanup()
            raise SystemExit(128 + signum)
        network, quiet = training.classifiers[NAME], options.quiet
        rates = recognition(task, network, *data, list(task.tested), device, job.recipe.seed, quiet)
        report = {"title": job.title, "framework": job.framework, "made_from": made_from}
        report |= _report(rates, FRAMEWORKS[job.framework], splits, data[1]) | {"history": training.history}
    if runtime.rank() == 0:
        with atomic_write(result, "w") as file:
            file.write(json.dumps(report, indent=1) + "\n")
        own = os.path.realpath(result)
        draw(picture, [report, *(other for path, other in others.items() if os.path.realpath(path) != own)])
        for level in report["levels"]:
            print(f"[timestep {level['timestep']}]: Test acc: {level['accuracy']:.4f}")
        print(f"wrote {result} and {picture}")
    runtime.cleanup()


def _train(
    training: Training,
    task: NoisyTask,
    parts: Sequence[Labelled],
    data: tuple[CachedImages, Tensor],
    options: Any,
    device: torch.device,
) -> int:
    """Train to the end; returns the signal that stopped it, or 0. A few test images tell how it goes."""
    some = CachedImages(data[0].images[:WATCHED], data[0].positions[:WATCHED])
    numbers = list(task.tested)
    watched = sorted({numbers[i * (len(numbers) - 1) // (WATCHED_LEVELS - 1)] for i in range(WATCHED_LEVELS)})

    def watch(classifiers: Mapping[str, nn.Module]) -> dict[str, float]:
        rates = recognition(task, classifiers[NAME], some, data[1][:WATCHED], watched, device, training.recipe.seed)
        return {f"[timestep {number}]": rate for number, rate in rates.items()}

    return training.run(*read(parts, options, device), task.inputs(), watch, options.quiet)


def _report(
    rates: Mapping[int, float], framework: Framework, splits: Mapping[str, Sequence[Labelled]], classes: Tensor
) -> dict[str, Any]:
    """Of the report what was found: rates by level, and that of the most frequent class of training, chance."""
    _, sigmas = framework.process.schedule.s_sigma(framework.times.double())
    frequent = torch.cat([part.targets.values for part in splits["train"]]).bincount().argmax()
    return {
        "images": {split: sum(len(part.targets) for part in parts) for split, parts in splits.items()},
        "chance": (classes == frequent).double().mean().item(),
        "levels": [
            {"timestep": number, "noise_to_signal": sigmas[number].item(), "accuracy": rate}
            for number, rate in rates.items()
        ],
    }
