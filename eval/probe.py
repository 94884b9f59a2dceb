"""Probes: what a linear layer, or the nearest neighbours, read from frozen codes. ``fit`` is the one entrance.

Epochs are numbered from 1 in reports; ``Draw`` is called with 0, 1, ... before each.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from dbae.config import UserError
from eval.linear import neighbour_votes
from eval.scores import check_binary, check_rows
from eval.tasks import TASKS, Names, Report, Task

Draw = Callable[[int], Tensor]  # epoch -> codes [n, d] in data-set order
Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) [b, k] -> mean
Device = torch.device | str
Layers = dict[str, nn.Linear]  # of the last epoch and the best; of an exact solution, under either name


@dataclass(frozen=True)
class Part:
    """One split. ``draw`` may give other codes every epoch (flips, a stochastic encoder).

    ``targets`` are [n, k] for binary attributes and for real numbers, and whole numbers [n] for a class.
    """

    draw: Draw
    targets: Tensor


@dataclass(frozen=True)
class Result:
    """Layers on the CPU, ready for raw codes, and a report ready for JSON.

    ``best`` is the best epoch's layer. ``layer`` is what the protocol goes on with: the best epoch's, or the last one's
    for real numbers. Nearest neighbours have neither.
    """

    layer: nn.Linear | None
    best: nn.Linear | None
    report: Report


Parts = Mapping[str, Part]


def fit(kind: str, parts: Parts, names: Names, solver: str = "adam", device: Device = "cpu", **settings: Any) -> Result:
    """Probe codes for targets of a kind (binary, class or real) and report its scores on the split ``test``.

    ``parts`` are the splits train, valid (not for real) and test; ``names`` those of the attributes, classes or
    numbers. ``solver`` is adam (the official protocol), exact or knn (not for real), and ``settings`` are those of its
    function below. Scores that are undefined are left out of their means, and the report lists the targets. Raises
    UserError for targets that do not fit.
    """
    task = TASKS[kind]
    if solver not in task.solvers:
        raise UserError(f"solver: expected {' or '.join(task.solvers)} for {task.name}, got {solver}")
    parts = {s: Part(parts[s].draw, task.columns(s, parts[s].targets, names)) for s in task.splits}
    for split, part in parts.items():
        task.check(split, part.targets)
    layers, report = SOLVERS[solver](task, parts, names, device, **settings)
    targets = {split: part.targets for split, part in parts.items()}
    head = {"task": task.name, "settings": report.pop("settings"), "images": {s: len(y) for s, y in targets.items()}}
    report = head | report | task.left_out(names, targets)
    return Result(layers.get(task.reported[0]), layers.get("best"), report)


def _adam(
    task: Task,
    parts: Parts,
    names: Names,
    device: Device,
    epochs: int = 15,
    batch_size: int | None = None,
    lr: float = 1e-3,
    seed: int = 0,
    progress: Callable[[dict[str, float]], object] = lambda entry: None,
) -> tuple[Layers, Report]:
    """The official protocol: Adam on a linear layer, not shuffled. ``progress`` gets each epoch's entry of the report.

    ``batch_size`` is the task's by default.
    """
    settings = {"epochs": epochs, "batch_size": batch_size or task.batch_size, "lr": lr, "seed": seed, "device": device}
    watched, entries, best_score = parts[task.selected_on], [], -math.inf
    for epoch, layer in enumerate(train_linear(parts["train"], task.loss, **settings)):
        output = predict(layer, task.selected_on, watched, epoch)
        entries.append({"epoch": epoch + 1, **task.watch(watched.targets, output)})
        progress(entries[-1])
        score = list(entries[-1].values())[1]
        if score > best_score:
            best, best_score, best_entry = copy.deepcopy(layer), score, entries[-1]

    layers = {"last": layer, "best": best}
    ends = {"last": entries[-1], "best": best_entry | {"selected_on": task.selected_on}}
    outputs = {w: predict(layers[w], "test", parts["test"], ends[w]["epoch"] - 1) for w in task.reported}
    fixed = {"latent": layer.in_features, "loss": task.loss_name, "optimizer": "Adam", "shuffle": False}
    report = {"settings": fixed | settings | {"device": str(device)}, "epochs": entries}
    report |= task.results(names, parts["test"].targets, outputs) | {which: ends[which] for which in task.reported}
    return {which: layer.cpu() for which, layer in layers.items()}, report


def _exact(task: Task, parts: Parts, names: Names, device: Device) -> tuple[Layers, Report]:
    """Logistic or ridge regression, its penalties chosen on ``valid`` or on a part of ``train``."""
    data = [value for split, part in parts.items() if split != "test" for value in (part.draw(0), part.targets)]
    layer, penalties = task.regression(*data, device=device)
    outputs = {task.reported[0]: predict(layer, "test", parts["test"], 0)}
    settings = {"latent": layer.in_features, "loss": task.regression_loss, "optimizer": "exact"}
    report = {
        "settings": settings | ({"selected_on": "valid"} if "valid" in parts else {}),
        **task.results(names, parts["test"].targets, outputs),
        "penalties": dict(zip(names, penalties, strict=True)),
    }
    return {"last": layer, "best": layer}, report


def _knn(task: Task, parts: Parts, names: Names, device: Device, k: int = 20) -> tuple[Layers, Report]:
    """The ``k`` nearest training codes vote; there is no layer."""
    train, test = parts["train"], parts["test"]
    codes = test.draw(0)
    check_rows("test", codes, test.targets)
    votes = neighbour_votes(train.draw(0), train.targets, codes, k, device)
    settings = {"k": k, "distance": "Euclidean, standardised codes"}
    return {}, {"settings": settings} | task.votes(names, test.targets, votes, train.targets.mean(dim=0))


SOLVERS = {"adam": _adam, "exact": _exact, "knn": _knn}


def summary(report: Report) -> dict[str, float]:
    """The headline scores of a report: on test, of the last epoch for real numbers; the first is the main one."""
    return {name: value for name, value in report.get("test", report.get("last")).items() if name != "epoch"}


def train_linear(
    part: Part,
    loss: Loss,
    epochs: int = 15,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    device: Device = "cpu",
) -> Iterator[nn.Linear]:
    """Adam over batches in data-set order, not shuffled; yields the layer, still in training, after every epoch."""
    if epochs < 1 or batch_size < 1:
        raise UserError(f"probe: expected epochs and batch_size of at least 1, got {epochs} and {batch_size}")
    codes, targets = _draw("training", part, 0, device), part.targets.to(device, torch.float32)
    layer = _new_layer(codes.shape[1], targets.shape[1], seed).to(device)
    optimizer = torch.optim.Adam(layer.parameters(), lr)
    for epoch in range(epochs):
        codes = codes if epoch == 0 else _draw("training", part, epoch, device)
        for z, y in zip(codes.split(batch_size), targets.split(batch_size), strict=True):
            optimizer.zero_grad()
            loss(layer(z), y).backward()
            optimizer.step()
        yield layer


@torch.no_grad()
def predict(layer: nn.Linear, split: str, part: Part, epoch: int) -> np.ndarray:
    """Outputs [n, k] for a split's codes of this epoch; logits for classification, whose order is all that counts."""
    codes = _draw(split, part, epoch, layer.weight.device)
    if codes.shape[1] != layer.in_features:
        expected = f"expected codes of dimension {layer.in_features} as in training"
        raise UserError(f"{split}: {expected}, got {codes.shape[1]}")
    return layer(codes).cpu().numpy()


def _draw(split: str, part: Part, epoch: int, device: Device) -> Tensor:
    """This epoch's codes [n, d] on the device."""
    codes = part.draw(epoch).detach()
    check_rows(split, codes, part.targets)
    return codes.to(device, torch.float32)


def _new_layer(inputs: int, outputs: int, seed: int) -> nn.Linear:
    """A layer that depends on the seed only and leaves the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
        return nn.Linear(inputs, outputs)


def fit_fractions(
    kind: str,
    parts: Parts,
    names: Names,
    fractions: Sequence[float] = (0.01, 0.1),
    repeats: int = 5,
    subset_seed: int = 0,
    **options: Any,
) -> list[Report]:
    """The main score of ``fit`` (whose ``options`` these are) on shares of the training labels: ``label_fractions``."""
    train = parts["train"]

    def score(rows: np.ndarray) -> float:
        part = Part(lambda epoch: train.draw(epoch)[rows], train.targets[rows])
        return next(iter(summary(fit(kind, {**parts, "train": part}, names, **options).report).values()))

    classes = None if kind == "real" else TASKS[kind].columns("train", train.targets, names)
    return label_fractions(score, len(train.targets), fractions, repeats, subset_seed, classes)


def label_fractions(
    fit: Callable[[np.ndarray], float],
    n: int,
    fractions: Sequence[float] = (0.01, 0.1),
    repeats: int = 5,
    seed: int = 0,
    targets: Tensor | None = None,
) -> list[Report]:
    """Scores of ``fit(rows)`` on random subsets of ``n`` training rows: mean, standard deviation, 95 % t-interval.

    A subset depends on the seed, its size and its number only, and its rows are sorted. With 0/1 ``targets`` [n, k] it
    has a row of either class of every column, as far as its size allows. The interval tells how much the choice of
    labels matters; the test images are the same throughout.
    """
    if repeats < 2 or not all(0 < fraction <= 1 for fraction in fractions):
        raise UserError(f"fractions: expected 2 repeats or more of shares in (0, 1], got {repeats} of {fractions}")
    classes = np.zeros((n, 0), bool)
    if targets is not None:
        check_binary("train", targets)
        if len(targets) != n:
            raise UserError(f"train: expected targets of {n} images, got {len(targets)}")
        classes = torch.cat([targets == 1, targets == 0], dim=1).numpy()
    found = []
    for fraction in fractions:
        size = max(1, round(fraction * n))
        orders = (np.random.default_rng([seed, size, i]).permutation(n) for i in range(repeats))
        scores = np.array([fit(_subset(order, size, classes)) for order in orders], np.float64)
        mean, std = float(scores.mean()), float(scores.std(ddof=1))
        reach = float(stats.t.ppf(0.975, repeats - 1)) * std / math.sqrt(repeats)
        interval = {"mean": mean, "std": std, "low": mean - reach, "high": mean + reach}
        found.append({"fraction": fraction, "rows": size, "scores": scores.tolist(), **interval})
    return found


def _subset(order: np.ndarray, size: int, classes: np.ndarray) -> np.ndarray:
    """The first ``size`` rows of ``order``, but in any case the first of each of the classes [n, c]; sorted."""
    firsts = classes[order].argmax(axis=0)[classes.any(axis=0)]
    places = np.concatenate([np.unique(firsts), np.setdiff1d(np.arange(len(order)), firsts)])
    return np.sort(order[places[:size]])
