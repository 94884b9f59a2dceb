"""Fine-tune a DDAE's encoder as a classifier: its averaged network up to the probe's block, with a linear layer on top.

examples:
  bash ddae/finetune.sh DDPM_ddpm workdir/DDPM_ddpm_cifar10/ema_0.9999_196000.pt
  bash ddae/finetune.sh EDM_small CKPT --dataset folder:photos --noise false
  bash ddae/finetune.sh EDM_small CKPT --from_scratch          # the control: the same network from random weights

All weights of what is kept are trained, on mirrored and cropped images; what comes after the block is dropped. Held-out
training images are classified after every epoch, test images after the last one. Results go to sample_STEP/finetune/
(the control's to finetune_scratch/): classifier.safetensors and results.json. Running the command again goes on where
it stopped.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datasets import Labelled, labelled_splits
from dbae import runtime
from dbae.config import RuntimeConfig, UserError, check_numbers, option
from dbae.finetuned import FineTuned, save_finetuned
from dbae.io import Generators, fingerprint, with_command, write_json
from dbae.methods import DDAE
from dbae.tensors import safetensors_library
from scripts.classifiers import Recipe, Training, accuracies, cosine, logits
from scripts.cli import Parser, run
from scripts.common import load, parse, print_dry_run, result_folder
from scripts.labelled import Data, about, files, read, spread
from scripts.options import ModelOptions
from scripts.results import begin

NAME = "classifier"  # the only one in its training
WRITTEN = ("results.json", "classifier.safetensors", "state.pt")


@dataclass(frozen=True)
class FinetuneOptions(ModelOptions, RuntimeConfig):
    """Which network, and how it is trained: our protocol. Raises UserError for values out of range."""

    batch_size: int = option(128, "images per step on each process")
    epochs: int = option(100, "passes over the training images")
    warmup: float = option(5, "epochs in which the learning rates rise; then they fall by a cosine to 0, step by step")
    lr: float = option(1e-3, "learning rate of the last layer, on any number of processes (AdamW)")
    layer_decay: float = option(0.75, "factor of the learning rate for every level below; 1 with --from_scratch")
    weight_decay: float = option(0.05, "decay of weights; biases and the gains of norms have none")
    label_smoothing: float = option(0.1, "share of each label that is spread over all classes")
    ema_rate: float = option(0.999, "rate of the average that is evaluated, after a warm-up; 0: the last weights")
    noise: bool = option(True, "images get the noise of the probe's time; false: none, though the network is told it")
    from_scratch: bool = option(False, "the control: random weights, all with the same learning rate")
    held_out: bool = option(True, "hold the images of valid out, to choose by; false: train on them, too")
    labels: str | None = option(None, "CSV of a folder of images (default: its labels.csv, or its folders)")
    limit: int | None = option(None, "only N images of train, evenly spread over them")
    quiet: bool = option(False, "show no progress")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ["epochs", "lr", "limit"], ["warmup", "weight_decay"])
        if self.warmup >= self.epochs:
            raise UserError(f"warmup: expected fewer than the {self.epochs} epochs, got {self.warmup:g}")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay: expected a number above 0 and up to 1, got {self.layer_decay}")
        for name in ("label_smoothing", "ema_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}: expected a number from 0 and below 1, got {getattr(self, name)}")


OFFERED = tuple(f.name for f in fields(FinetuneOptions) if f.name not in ("latent", "autocast"))


def build(model: DDAE, options: FinetuneOptions, classes: tuple[str, ...]) -> FineTuned:
    """The classifier of a model, which is cut in place; its new weights are functions of the seed."""
    if options.from_scratch:
        torch.manual_seed(options.seed)
        model.load_state_dict(type(model)(model.config).state_dict())
    torch.manual_seed(options.seed)
    return FineTuned(model, *model.FEATURES, options.noise, classes)


def processes(options: FinetuneOptions) -> int:
    """How many there are, or are to be."""
    return options.check or runtime.world()


def recipe_of(options: FinetuneOptions, model: DDAE) -> Recipe:
    """How it is trained."""
    return Recipe(
        options.epochs, options.batch_size * processes(options), partial(torch.optim.AdamW, lr=options.lr),
        cosine(options.epochs, options.warmup, by_step=True), label_smoothing=options.label_smoothing,
        ema_rate=options.ema_rate, ema_rule="warmup", scaled=torch.float16 in model.amp.values(), seed=options.seed,
    )  # fmt: skip


def splits_of(options: FinetuneOptions, size: int) -> tuple[dict[str, list[Labelled]], tuple[str, ...]]:
    """Images with their classes: train, valid unless that is trained on, and test; and names of the classes."""
    parts = labelled_splits(options.dataset, "class", size, options.data_root, options.data_dir, options.labels)
    splits = {split: [part] for split, part in parts.items()} | {"train": spread([parts["train"]], options.limit)}
    if not options.held_out:
        splits["train"] += splits.pop("valid")
    return splits, parts["train"].targets.names


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def settings_of(
    network: FineTuned, recipe: Recipe, splits: Mapping[str, list[Labelled]], options: FinetuneOptions
) -> dict[str, Any]:
    """What the result depends on, ready for JSON."""
    model = network.encoder
    names = ("warmup", "lr", "weight_decay", "label_smoothing", "ema_rate", "noise")
    return {
        "protocol": "ours", "method": model.method, "model": asdict(model.config), "classes": network.classes,
        "weights": fingerprint(options.model_path), "from_scratch": options.from_scratch, "block": network.block,
        "time": network.time.item(), "layer_decay": 1.0 if options.from_scratch else options.layer_decay,
        "optimizer": "adamw", "ema_rule": recipe.ema_rule, "precision": model.precision,
        "processes": processes(options), **recipe.identity(), **about(splits),
        **{name: getattr(options, name) for name in names},
    }  # fmt: skip


def inputs(x: Tensor, generators: Generators) -> dict[str, tuple[Tensor, Generators]]:
    """What the classifier is called with; it draws the noise itself."""
    return {NAME: (x, generators)}


def accuracy(network: nn.Module, data: Data, options: FinetuneOptions, desc: str = "") -> float:
    """Share of images that are classified right; image i has the noise of (seed, i)."""
    device = next(network.parameters()).device
    found = logits({NAME: network}, data[0], inputs, device, options.batch_size, options.seed, desc)
    return accuracies(found, data[1])[NAME]


def main(args: list[str] | None = None) -> None:
    """Parse, load, train, test, write."""
    options, typed, _ = parse(Parser(__doc__), FinetuneOptions, "fine-tuning", args, OFFERED)
    folder = result_folder(options.model_path, "finetune" + "_scratch" * options.from_scratch, out=options.out)
    if options.dry_run:
        return print_dry_run(options, typed, output=folder)

    # Everything that can be wrong
    device = runtime.setup(options.device)
    model = load(options, typed, device)
    if not isinstance(model, DDAE):
        raise UserError(f"model_path: expected a DDAE, {options.model_path} is a {type(model).__name__}")
    result, weights, state = (os.path.join(folder, name) for name in WRITTEN)
    safetensors_library(weights)
    splits, classes = splits_of(options, model.config.image_size)
    whole = count(model)
    network = build(model, options, classes).to(device)
    recipe = recipe_of(options, model)
    settings = with_command(settings_of(network, recipe, splits, options))
    layer_decay = settings["layer_decay"]
    groups = network.param_groups(options.lr, layer_decay, options.weight_decay)
    training = Training({NAME: network}, recipe, device, state, settings, groups)
    done = begin(training, result, [weights], [options.model_path, *files(splits)], options)
    if done or options.check:
        return runtime.cleanup()

    # Train
    sizes = {"parameters": count(network), "parameters dropped": whole - count(network.encoder)}
    if not options.quiet:
        shown = ", ".join(f"{name} {value:,}" for name, value in sizes.items())
        runtime.print0(f"{network.block} at time {network.time.item():g}: {shown}; {folder}")
    data = {split: read(parts, device, options.num_workers, options.quiet) for split, parts in splits.items()}

    def watch(classifiers: Mapping[str, nn.Module]) -> dict[str, float]:
        return {"valid": accuracy(classifiers[NAME], data["valid"], options)}

    training.run(*data["train"], inputs, watch if options.held_out else None, options.quiet)

    # Test
    final = training.classifiers[NAME]
    scores = {"test accuracy": accuracy(final, data["test"], options, "" if options.quiet else "test")}
    if options.held_out:
        scores["valid accuracy"] = training.history[-1]["valid"]
    if runtime.rank() == 0:
        report = {
            "checkpoint": options.model_path, "made_from": settings,
            "images": {split: len(classes) for split, (_, classes) in data.items()}, **sizes,
            "steps": training.step, **scores, "history": training.history,
        }  # fmt: skip
        save_finetuned(weights, final, options.dataset)
        write_json(result, report)
        os.remove(state)  # a finished training is not gone on with
        print("  ".join(f"{name} {value:.4f}" for name, value in scores.items()), f"({result})")
    return runtime.cleanup()


if __name__ == "__main__":
    run(main)
