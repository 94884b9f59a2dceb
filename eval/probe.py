"""Linear probes by the official protocol: what a linear layer reads from frozen codes.

Epochs are numbered from 1 in reports; ``Draw`` is called with 0, 1, ... before each.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.config import UserError
from eval.scores import auroc, average_precision, check_binary, check_rows, json_safe, mean_defined, mse, pearson

Draw: TypeAlias = Callable[[int], Tensor]  # epoch -> codes [n, d] in data-set order
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (predictions, targets) [b, k] -> mean
Device: TypeAlias = torch.device | str
Entry: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class Part:
    """One split. ``draw`` may give other codes every epoch (flips, a stochastic encoder); ``targets`` is [n, k]."""

    draw: Draw
    targets: Tensor


@dataclass(frozen=True)
class Result:
    """Layers on the CPU, ready for raw codes, and a report ready for JSON.

    ``best`` is the best epoch's layer. ``layer`` is what the protocol goes on with: the best epoch's for
    classification, the last epoch's for regression. Nearest neighbours have neither.
    """

    layer: nn.Linear | None
    best: nn.Linear | None
    report: dict[str, Any]


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


def classify(
    train: Part,
    valid: Part,
    test: Part,
    names: Sequence[str],
    epochs: int = 15,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    device: Device = "cpu",
    progress: Callable[[Entry], object] = lambda entry: None,
) -> Result:
    """Attributes from codes: the epoch with the best macro average precision on ``valid`` gives the scores on ``test``.

    Targets are 0 or 1. An attribute without a positive in a split has no average precision there: it is left out of
    that split's mean and listed. ``progress`` gets each epoch's entry.
    """
    parts = {"train": train, "valid": valid, "test": test}
    _check(names, parts)
    for split, part in parts.items():
        check_binary(split, part.targets)
        if not part.targets.any():
            raise UserError(f"{split}: expected at least one positive target, got none in {len(part.targets)} images")
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "device": device}
    entries: list[Entry] = []
    best, best_entry = None, {"valid_ap": -1.0}
    for epoch, layer in enumerate(train_linear(train, F.binary_cross_entropy_with_logits, **settings)):
        ap = mean_defined(average_precision(valid.targets, predict(layer, "valid", valid, epoch)))
        entries.append({"epoch": epoch + 1, "valid_ap": ap})
        progress(entries[-1])
        if ap > best_entry["valid_ap"]:
            best, best_entry = copy.deepcopy(layer), entries[-1]
    report = _header("classification", "binary cross-entropy", settings, best, parts) | {
        "epochs": entries,
        "best": best_entry | {"selected_on": "valid"},
        **classification_scores(names, test.targets, predict(best, "test", test, best_entry["epoch"] - 1)),
        "without_positives": {
            split: [name for name, some in zip(names, part.targets.any(dim=0), strict=True) if not some]
            for split, part in parts.items()
        },
    }
    return Result(best.cpu(), best, report)


def regress(
    train: Part,
    test: Part,
    names: Sequence[str],
    epochs: int = 15,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    device: Device = "cpu",
    progress: Callable[[Entry], object] = lambda entry: None,
) -> Result:
    """Real-valued attributes from codes: mean Pearson r and MSE on ``test`` after the last epoch and after the best.

    The best epoch is the one of the best r on ``test``, as in the official code: a number that flatters. A target that
    is constant on ``test`` has no r: it is left out of the mean r, not of the mean MSE, and listed. A constant
    prediction for another target explains nothing and counts as r = 0. ``progress`` gets each epoch's entry.
    """
    parts = {"train": train, "test": test}
    _check(names, parts)
    if constant_targets(test.targets).all():
        raise UserError(f"test: expected a target that varies, got none in {len(test.targets)} images")
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "device": device}
    entries: list[Entry] = []
    best, best_entry = None, {"r": -2.0}
    for epoch, layer in enumerate(train_linear(train, F.mse_loss, **settings)):
        prediction = predict(layer, "test", test, epoch)
        entries.append({"epoch": epoch + 1, **regression_means(test.targets, prediction)})
        progress(entries[-1])
        if entries[-1]["r"] > best_entry["r"]:
            best, best_entry, best_prediction = copy.deepcopy(layer), entries[-1], prediction
    report = _header("regression", "mean squared error", settings, best, parts) | {
        "epochs": entries,
        "last": entries[-1],
        "best": best_entry | {"selected_on": "test"},
        **regression_attributes(names, test.targets, {"last": prediction, "best": best_prediction}),
    }
    return Result(layer.cpu(), best.cpu(), report)


def _new_layer(inputs: int, outputs: int, seed: int) -> nn.Linear:
    """A layer that depends on the seed only and leaves the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
        return nn.Linear(inputs, outputs)


def _draw(split: str, part: Part, epoch: int, device: Device) -> Tensor:
    """This epoch's codes [n, d] on the device."""
    codes = part.draw(epoch).detach()
    check_rows(split, codes, part.targets)
    return codes.to(device, torch.float32)


@torch.no_grad()
def predict(layer: nn.Linear, split: str, part: Part, epoch: int) -> np.ndarray:
    """Outputs [n, k] for a split's codes of this epoch; logits for classification, whose order is all that counts."""
    codes = _draw(split, part, epoch, layer.weight.device)
    if codes.shape[1] != layer.in_features:
        raise UserError(
            f"{split}: expected codes of dimension {layer.in_features} as in training, got {codes.shape[1]}"
        )
    return layer(codes).cpu().numpy()


def classification_scores(names: Sequence[str], y: Tensor, logits: np.ndarray) -> dict[str, Any]:
    """``test`` means and ``attributes`` of a classification report."""
    ap, area = average_precision(y, logits), auroc(y, logits)
    return {
        "test": {"ap": mean_defined(ap), "auroc": json_safe(mean_defined(area))},
        "attributes": {
            name: {"ap": json_safe(ap[i]), "auroc": json_safe(area[i]), "positives": int(y[:, i].sum())}
            for i, name in enumerate(names)
        },
    }


def regression_means(y: Tensor, prediction: np.ndarray) -> Entry:
    """Mean r over the targets that vary, and mean MSE over all."""
    r, error = _regression_scores(y, prediction)
    return {"r": mean_defined(r), "mse": float(error.mean())}


def regression_attributes(names: Sequence[str], y: Tensor, predictions: dict[str, np.ndarray]) -> dict[str, Any]:
    """``attributes`` (scores of each of the named predictions) and ``constant`` targets of a regression report."""
    scores = {which: _regression_scores(y, prediction) for which, prediction in predictions.items()}
    constant = constant_targets(y)
    return {
        "attributes": {
            name: {which: {"r": json_safe(r[i]), "mse": float(error[i])} for which, (r, error) in scores.items()}
            for i, name in enumerate(names)
        },
        "constant": [name for name, flag in zip(names, constant, strict=True) if flag],
    }


def constant_targets(y: Tensor) -> np.ndarray:
    """Which targets [k] do not vary."""
    return (y == y[:1]).all(dim=0).numpy()


def _regression_scores(y: Tensor, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(r, MSE) per attribute; r is NaN for the constant targets only."""
    r = np.nan_to_num(pearson(y, prediction))
    r[constant_targets(y)] = np.nan
    return r, mse(y, prediction)


def images_of(**parts: Part) -> dict[str, int]:
    """Number of images of each split."""
    return {split: len(part.targets) for split, part in parts.items()}


def _check(names: Sequence[str], parts: dict[str, Part]) -> None:
    for split, part in parts.items():
        if part.targets.ndim != 2 or part.targets.shape[1] != len(names) or not part.targets.numel():
            expected = f"expected targets [n, {len(names)}], one column per name"
            raise UserError(f"{split}: {expected}, got {list(part.targets.shape)}")


def _header(task: str, loss: str, settings: dict[str, Any], layer: nn.Linear, parts: dict[str, Part]) -> dict[str, Any]:
    """What was done with how many images: the first entries of a report."""
    fixed = {"latent": layer.in_features, "loss": loss, "optimizer": "Adam", "shuffle": False}
    return {
        "task": task,
        "settings": fixed | settings | {"device": str(settings["device"])},
        "images": images_of(**parts),
    }
