"""Probes: what a linear layer, or the nearest neighbours, read from frozen codes. ``fit`` is the one entrance.

Epochs are numbered from 1 in reports; ``Part.draw`` is called with 0, 1, ... before each.
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

from dbae.config import UserError, require_positive
from eval.linear import neighbour_votes
from eval.tasks import TASKS, Names, Report, Task

Device = torch.device | str
Layers = dict[str, nn.Linear]  # of the last epoch and the best; of an exact solution, under either name


@dataclass(frozen=True)
class Part:
    """One split. ``draw`` (epoch -> codes [n, d]) may give other codes every epoch (flips, a stochastic encoder).

    ``targets`` are [n, k] for binary attributes and for real numbers, and whole numbers [n] for a class.
    """

    draw: Callable[[int], Tensor]
    targets: Tensor

    def codes(self, split: str, epoch: int = 0, device: Device = "cpu") -> Tensor:
        """An epoch's codes [n, d] float32. Raises UserError unless there is one per target, and all are finite."""
        codes = self.draw(epoch).detach()
        if codes.ndim != 2 or len(codes) != len(self.targets):
            raise UserError(f"{split}: expected codes [{len(self.targets)}, d], as many as targets, got {codes.shape}")
        if not (codes.isfinite().all() and self.targets.isfinite().all()):
            raise UserError(f"{split}: expected finite codes and targets, got NaN or infinity")
        return codes.to(device, torch.float32)


Parts = Mapping[str, Part]


@dataclass(frozen=True)
class Result:
    """Layers on the CPU, ready for raw codes, and a report ready for JSON.

    ``best`` is the best epoch's layer. ``layer`` is what the protocol goes on with: the best epoch's, or the last one's
    for real numbers. Nearest neighbours have neither.
    """

    layer: nn.Linear | None
    best: nn.Linear | None
    report: Report


def fit(kind: str, parts: Parts, names: Names, solver: str = "adam", device: Device = "cpu", **settings: Any) -> Result:
    """Probe codes for targets of a kind (binary, class or real) and report its scores on the split ``test``.

    ``parts`` are the splits train, valid (not for real) and test; ``names`` those of the attributes, classes or
    numbers. ``solver`` is adam (of DBAE), exact, or unless real diffae or knn, and ``settings`` are those of its
    function below. Scores that are undefined are left out of their means, and the report lists the targets. Raises
    UserError for targets that do not fit.
    """
    task = TASKS[kind]
    if solver not in task.solvers:
        raise UserError(f"solver: expected {' or '.join(task.solvers)} for {task.name}, got {solver}")
    targets = {split: task.columns(split, parts[split].targets, names) for split in task.splits}
    parts = {split: Part(parts[split].draw, y) for split, y in targets.items()}
    layers, report = SOLVERS[solver](task, parts, names, device, **settings)
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
        scores = task.watch(watched.targets, output)
        entries.append({"epoch": epoch + 1, **scores})
        progress(entries[-1])
        score = next(iter(scores.values()))
        if score > best_score:
            best, best_score, best_entry = copy.deepcopy(layer), score, entries[-1]

    layers = {"last": layer, "best": best}
    ends = {"last": entries[-1], "best": best_entry | {"selected_on": task.selected_on}}
    outputs = {w: predict(layers[w], "test", parts["test"], ends[w]["epoch"] - 1) for w in task.reported}
    fixed = {"latent": layer.in_features, "loss": task.loss_name, "optimizer": "Adam", "shuffle": False}
    report = {"settings": fixed | settings | {"device": str(device)}, "epochs": entries}
    report |= task.results(names, parts["test"].targets, outputs) | {which: ends[which] for which in task.reported}
    return {which: layer.cpu() for which, layer in layers.items()}, report


def _diffae(
    task: Task,
    parts: Parts,
    names: Names,
    device: Device,
    samples: int = 300_000,
    batch_size: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
) -> tuple[Layers, Report]:
    """DiffAE's budget: Adam on codes normalised by the training split, shuffled, a number of samples; the last layer.

    The layer is given for codes as they are.
    """
    first = parts["train"].codes("train")
    mean, std = first.mean(dim=0), first.std(dim=0)
    if not (std > 0).all():
        raise UserError(f"train: expected codes that vary, number {int((std <= 0).nonzero()[0])} is constant")
    train = Part(lambda epoch: (parts["train"].codes("train", epoch) - mean) / std, parts["train"].targets)
    batch_size = min(batch_size, len(first))
    steps = max(1, samples // batch_size)
    epochs = math.ceil(steps / (len(first) // batch_size))
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "device": device}
    *_, layer = train_linear(train, task.loss, **settings, shuffled=True, steps=steps)
    layer = layer.cpu().requires_grad_(False)
    layer.weight /= std
    layer.bias -= layer.weight @ mean
    outputs = {which: predict(layer, "test", parts["test"], 0) for which in task.reported}
    fixed = {"latent": layer.in_features, "loss": task.loss_name, "optimizer": "Adam", "shuffle": True}
    report = {"settings": fixed | settings | {"samples": steps * batch_size, "device": str(device)}}
    report |= task.results(names, parts["test"].targets, outputs)
    return {"last": layer, "best": layer}, report


def _exact(task: Task, parts: Parts, names: Names, device: Device) -> tuple[Layers, Report]:
    """Logistic or ridge regression, its penalties chosen on ``valid`` or on a part of ``train``."""
    seen = {split: part for split, part in parts.items() if split != "test"}
    data = [value for split, part in seen.items() for value in (part.codes(split), part.targets)]
    layer, penalties = task.regression(*data, device=device)
    outputs = {task.reported[0]: predict(layer, "test", parts["test"], 0)}
    settings = {"latent": layer.in_features, "loss": task.regression_loss, "optimizer": "exact"}
    report = {
        "settings": settings | ({"selected_on": "valid"} if "valid" in parts else {}),
        **task.results(names, parts["test"].targets, outputs),
        "penalties": dict(zip(names, penalties, strict=True)),
    }
    return {"last": layer, "best": layer}, report


def _knn(task: Task, parts: Parts, names: Names, device: Device, k: int | None = None) -> tuple[Layers, Report]:
    """The ``k`` nearest training codes vote (20, or all where there are fewer); there is no layer."""
    train, test = parts["train"], parts["test"]
    k = min(20, len(train.targets)) if k is None else k
    votes = neighbour_votes(train.codes("train"), train.targets, test.codes("test"), k, device)
    settings = {"k": k, "distance": "Euclidean, standardised codes"}
    return {}, {"settings": settings} | task.votes(names, test.targets, votes, train.targets.mean(dim=0))


SOLVERS = {"adam": _adam, "diffae": _diffae, "exact": _exact, "knn": _knn}


def summary(report: Report) -> dict[str, float]:
    """The headline scores of a report: on test, of the last epoch for real numbers; the first is the main one."""
    return {name: value for name, value in report.get("test", report.get("last")).items() if name != "epoch"}


def standard_errors(kind: str, test: Part, names: Names, layer: nn.Linear) -> dict[str, float]:
    """Standard errors, over test images, of the mean scores of a layer that ``fit`` made for targets of a kind.

    One that so few images do not define is left out.
    """
    y = TASKS[kind].columns("test", test.targets, names)
    errors = TASKS[kind].errors(y, predict(layer, "test", test, 0))
    return {name: error for name, error in errors.items() if math.isfinite(error)}


def left_out(report: Report) -> list[str]:
    """Names of the targets that have a single value on test, and so no score: no mean contains them."""
    return report.get("single_class", {}).get("test", []) or report.get("constant", [])


def coverage(report: Report) -> str:
    """Over how many of the labels the mean scores are, like `` over 38 of 40 labels``; empty where it is all."""
    names, missing = report["attributes"], left_out(report)
    return f" over {len(names) - len(missing)} of {len(names)} labels" if missing else ""


def train_linear(
    part: Part,
    loss: Callable[[Tensor, Tensor], Tensor],
    epochs: int = 15,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    device: Device = "cpu",
    shuffled: bool = False,
    steps: int | None = None,
    factor: Callable[[float], float] = lambda done: 1.0,
) -> Iterator[nn.Linear]:
    """Adam over batches in data-set order; yields the layer, still in training, after every epoch.

    ``shuffled`` epochs are in random order, without an incomplete last batch. Training ends early after ``steps``.
    ``factor`` is that of the learning rate after a number of epochs.
    """
    require_positive("epochs", epochs)
    codes, targets = part.codes("train", 0, device), part.targets.to(device, torch.float32)
    with torch.random.fork_rng(devices=[]):  # the layer depends on the seed only, global random numbers on nothing here
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
        layer = nn.Linear(codes.shape[1], targets.shape[1]).to(device)
    optimizer = torch.optim.Adam(layer.parameters(), lr)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = lr * factor(epoch)
        codes = codes if epoch == 0 else part.codes("train", epoch, device)
        order = torch.arange(len(codes), device=device)
        if shuffled:
            order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(codes))).to(device)
            order = order[: len(order) // batch_size * batch_size]
        batches = order.split(batch_size)
        for rows in batches if steps is None else batches[: steps - epoch * len(batches)]:
            z, y = codes[rows], targets[rows]
            optimizer.zero_grad()
            loss(layer(z), y).backward()
            optimizer.step()
        yield layer


@torch.no_grad()
def predict(layer: nn.Linear, split: str, part: Part, epoch: int) -> np.ndarray:
    """Outputs [n, k] for a split's codes of this epoch; logits for classification, whose order is all that counts."""
    return layer(part.codes(split, epoch, layer.weight.device)).cpu().numpy()


def fit_fractions(
    kind: str,
    parts: Parts,
    names: Names,
    fractions: Sequence[float] = (0.01, 0.1),
    repeats: int = 5,
    subset_seed: int = 0,
    **options: Any,
) -> list[Report]:
    """The main score of ``fit`` (whose ``options`` these are) on random shares of the training labels.

    For every share the scores, their mean, standard deviation and 95 % t-interval. The interval tells how much the
    choice of labels matters; the test images are the same throughout. ``untrained`` lists the labels of which a subset
    has a single class, and the classes of which one has none: their scores say nothing of the codes.
    """
    if repeats < 2 or not all(0 < fraction <= 1 for fraction in fractions):
        raise UserError(f"fractions: expected 2 repeats or more of shares in (0, 1], got {repeats} of {fractions}")
    train, classes = parts["train"], None
    if kind != "real":
        y = TASKS[kind].columns("train", train.targets, names)
        classes = torch.cat([y == 1, y == 0], dim=1).numpy()
    found = []
    for fraction in fractions:
        size, scores, single = max(1, round(fraction * len(train.targets))), [], set()
        for rows in subsets(len(train.targets), size, repeats, subset_seed, classes):
            part = Part(lambda epoch, rows=rows: train.draw(epoch)[rows], train.targets[rows])
            report = fit(kind, {**parts, "train": part}, names, **options).report
            scores.append(next(iter(summary(report).values())))
            single.update(report.get("single_class", report.get("absent", {})).get("train", []))
        mean, std = float(np.mean(scores)), float(np.std(scores, ddof=1))
        reach = float(stats.t.ppf(0.975, repeats - 1)) * std / math.sqrt(repeats)
        interval = {"mean": mean, "std": std, "low": mean - reach, "high": mean + reach}
        untrained = {"untrained": sorted(single)} if single else {}
        found.append({"fraction": fraction, "rows": size, "scores": scores, **interval, **untrained})
    return found


def subsets(n: int, size: int, repeats: int, seed: int, classes: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Random choices of ``size`` of n rows, sorted; each is a function of the seed, the size and its number.

    One has in any case a row of each of the ``classes`` [n, c] bool, as far as its size allows.
    """
    for i in range(repeats):
        order = np.random.default_rng([seed, size, i]).permutation(n)
        if classes is not None:  # the first row of each class comes first
            firsts = np.unique(classes[order].argmax(axis=0)[classes.any(axis=0)])
            order = np.concatenate([order[firsts], np.delete(order, firsts)])
        yield np.sort(order[:size])
