"""Linear heads on cached features, one for each of many cells: fitted, their penalty chosen, and fitted again.

A head is fitted on a training split. What it has beside its weights, a penalty for each of its outputs, is chosen on a
validation split; then it can be fitted again, with these penalties, on both splits together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from eval.linear import assembled, choose, logistic_path, multinomial_path, ranking, ridge_path, top_one
from eval.probe import Part, train_linear
from eval.tasks import TASKS

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)  # those that matter where there are many more images than features
SOLVERS = {  # kind of the targets -> solver -> solutions for several penalties
    "class": {"exact": multinomial_path, "ridge": ridge_path},
    "binary": {"exact": logistic_path, "ridge": ridge_path},
}
SCORES = {"class": top_one, "binary": ranking}
Device = torch.device | str


@dataclass(frozen=True)
class Head:
    """A layer on the CPU that takes raw features, and the penalty of each of its outputs, where it has some."""

    layer: nn.Linear
    penalties: tuple[float, ...] = ()

    @torch.no_grad()
    def output(self, z: Tensor) -> np.ndarray:
        """Outputs [n, k] for features [n, d]."""
        return self.layer(z).numpy()


@dataclass(frozen=True)
class Solver:
    """Solutions to the optimum: ``exact`` is (multinomial) logistic regression, ``ridge`` least squares."""

    kind: str  # of the targets: class or binary
    name: str = "exact"
    penalties: Sequence[float] = PENALTIES
    device: Device = "cpu"

    def fit(self, train: Part, valid: Part) -> Head:
        """Fit on ``train`` for every penalty, and choose on ``valid``: one for all classes, or one per attribute."""
        solutions = self._path(train.codes("train"), train.targets, self.penalties)
        z, y = valid.codes("valid"), valid.targets
        scores = [SCORES[self.kind](y, z @ weight.T + bias) for weight, bias in solutions]
        layer, penalties = choose(solutions, scores, self.penalties)
        return Head(layer.requires_grad_(False), tuple(penalties))

    def refit(self, head: Head, whole: Part) -> Head:
        """The same on other features with the penalties of ``head``."""
        penalties = sorted(set(head.penalties), reverse=True)
        solutions = self._path(whole.codes("train"), whole.targets, penalties)
        layer = assembled(solutions, [penalties.index(p) for p in head.penalties])
        return Head(layer.requires_grad_(False), head.penalties)

    def _path(self, z: Tensor, y: Tensor, penalties: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        return SOLVERS[self.kind][self.name](z, y, penalties, self.device)


@dataclass(frozen=True)
class Descent:
    """DDAE's training, but on features that are computed once: Adam on raw features, shuffled, the last epoch."""

    kind: str
    epochs: int
    batch_size: int
    lr: float
    factor: Callable[[float], float]  # of the learning rate, by the epochs that are done
    seed: int = 0
    device: Device = "cpu"

    def fit(self, train: Part, valid: Part | None = None) -> Head:
        """Fit on ``train``; nothing is chosen, so ``valid`` is not looked at."""
        size = min(self.batch_size, len(train.targets))
        how = (self.epochs, size, self.lr, self.seed, self.device, True, None, self.factor)
        *_, layer = train_linear(train, TASKS[self.kind].loss, *how)
        return Head(layer.cpu().requires_grad_(False))

    def refit(self, head: Head, whole: Part) -> Head:
        return self.fit(whole)


def score(kind: str, head: Head, part: Part, split: str) -> float:
    """Accuracy of classes, mean average precision of attributes."""
    return next(iter(TASKS[kind].watch(part.targets, head.output(part.codes(split))).values()))


def chance(kind: str, train: Tensor, y: Tensor) -> float:
    """The score on targets y [n, k] of answering the same for all images: what is commonest among ``train`` [m, k]."""
    return next(iter(TASKS[kind].watch(y, train.mean(dim=0).expand_as(y).numpy()).values()))
