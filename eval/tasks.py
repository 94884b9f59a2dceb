"""What a probe reads from codes: binary attributes, a class, or real numbers; each with its loss and its scores.

Targets are matrices [n, k] float32, one column per name: classes are one-hot. Outputs of a layer are arrays [n, k].
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.config import UserError
from eval import scores
from eval.linear import logistic_regression, multinomial_regression, ridge_regression
from eval.resampling import ranking_errors, regression_errors
from eval.scores import json_safe, mean_defined

Names = Sequence[str]
Report = dict[str, Any]


class Task:
    """What the tasks share: targets with a name per column, and the settings of the official protocol.

    Each also has ``watch`` (scores that tell which epoch is best, by the first of them), ``results`` (scores of the
    reported layers' outputs on test, and by name), ``errors`` (standard errors of the mean scores of an output, over
    images) and perhaps ``votes`` (results for nearest neighbours).
    """

    name: str  # in reports
    splits = ("train", "valid", "test")
    varied = splits  # where some target must vary
    solvers = ("adam", "diffae", "exact", "knn")
    batch_size = 128
    selected_on = "valid"  # split that ``watch`` looks at
    reported = ("best",)  # which layers, of the last epoch and the best; the first is what one goes on with
    loss: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) [b, k] -> mean
    regression: Callable[..., tuple[nn.Linear, list[float]]]  # the exact solution
    loss_name: str  # of each of these two, in reports
    regression_loss: str

    def columns(self, split: str, targets: Tensor, names: Names) -> Tensor:
        """Targets [n, k] as they are, a column per name. Raises UserError for others, and where none varies."""
        if targets.ndim != 2 or targets.shape[1] != len(names) or not targets.numel():
            raise UserError(f"{split}: expected targets [n, {len(names)}], a name each, got {list(targets.shape)}")
        if split in self.varied and constant(targets).all():
            raise UserError(f"{split}: expected a target that varies, got none in {len(targets)} images")
        return targets

    def left_out(self, names: Names, targets: Mapping[str, Tensor]) -> Report:
        """Which targets, by split, no mean contains."""
        return {}


class Attributes(Task):
    """Binary attributes, each on its own. One that has a single class in a split has no score there."""

    name = "classification"
    loss = staticmethod(F.binary_cross_entropy_with_logits)
    loss_name = "binary cross-entropy"
    regression = staticmethod(logistic_regression)
    regression_loss = "logistic"

    def columns(self, split: str, targets: Tensor, names: Names) -> Tensor:
        """The same, of 0 and 1 only."""
        if not ((targets == 0) | (targets == 1)).all():
            found = f"{targets.min():g} to {targets.max():g}"
            raise UserError(f"{split}: expected targets of 0 and 1 to classify, got {found}")
        return super().columns(split, targets, names)

    def watch(self, y: Tensor, output: np.ndarray) -> dict[str, float]:
        """Mean score that selects the epoch."""
        return {"valid_ap": mean_defined(scores.average_precision(y, output))}

    def results(self, names: Names, y: Tensor, outputs: Mapping[str, np.ndarray]) -> Report:
        """Average precision and area under the ROC curve of the reported layers, on average and per attribute.

        The weighted mean of areas counts each attribute by its positives, as DiffAE's second number does.
        """
        ap, area = scores.average_precision(y, outputs["best"]), scores.auroc(y, outputs["best"])
        weighted = np.average(np.nan_to_num(area), weights=np.where(np.isnan(area), 0, y.sum(dim=0).numpy()))
        return {
            "test": {"ap": mean_defined(ap), "auroc": mean_defined(area), "auroc_weighted": float(weighted)},
            "attributes": _by_name(names, ap=ap, auroc=area, positives=y.sum(dim=0).int()),
        }

    errors = staticmethod(ranking_errors)

    def votes(self, names: Names, y: Tensor, votes: Tensor, share: Tensor) -> Report:
        """Accuracy of neighbours' mean targets [n, k], and of always answering what is commoner among all, [k].

        The second is what the first has to beat; it also decides a tied vote.
        """
        common = (share > 0.5).float().expand_as(votes)
        hits = scores.accuracy(y, torch.where(votes == 0.5, common, votes.round()))
        majority = scores.accuracy(y, common)
        return {
            "test": {"accuracy": mean_defined(hits), "majority": mean_defined(majority)},
            "attributes": _by_name(names, accuracy=hits, majority=majority),
        }

    def left_out(self, names: Names, targets: Mapping[str, Tensor]) -> Report:
        """Which targets no mean contains: by split, those with a single class."""
        return {"single_class": {split: _constant_names(names, y) for split, y in targets.items()}}


class Classes(Task):
    """One class of several."""

    name = "class"
    varied = ("train",)
    loss = staticmethod(F.cross_entropy)
    loss_name = "cross-entropy"
    regression = staticmethod(multinomial_regression)
    regression_loss = "cross-entropy"

    def columns(self, split: str, targets: Tensor, names: Names) -> Tensor:
        """Class numbers [n] as one-hot rows [n, classes]. Raises UserError for others."""
        if targets.ndim != 1 or targets.is_floating_point() or not len(targets):
            raise UserError(f"{split}: expected class numbers [n], got {targets.dtype} {list(targets.shape)}")
        if not 0 <= targets.min() <= targets.max() < len(names):
            found = f"{targets.min()} to {targets.max()}"
            raise UserError(f"{split}: expected class numbers under {len(names)}, got {found}")
        return super().columns(split, F.one_hot(targets.long(), len(names)).float(), names)

    def watch(self, y: Tensor, output: np.ndarray) -> dict[str, float]:
        """Mean score that selects the epoch."""
        return {"valid_accuracy": scores.top_k(y, output)}

    def results(self, names: Names, y: Tensor, outputs: Mapping[str, np.ndarray]) -> Report:
        """Accuracy of the best answer and of the best five, and per class the share of its images that are right."""
        output = outputs["best"]
        return {
            "test": {"accuracy": scores.top_k(y, output), "top5": scores.top_k(y, output, 5)},
            "attributes": _by_name(names, accuracy=scores.recall(y, output), images=y.sum(dim=0).int()),
        }

    def errors(self, y: Tensor, output: np.ndarray) -> dict[str, float]:
        """Those of shares of right answers."""
        shares = {"accuracy": scores.top_k(y, output), "top5": scores.top_k(y, output, 5)}
        return {name: (share * (1 - share) / len(y)) ** 0.5 for name, share in shares.items()}

    def votes(self, names: Names, y: Tensor, votes: Tensor, share: Tensor) -> Report:
        """The same of neighbours' votes [n, classes]; a tie is for the class that is commoner among all."""
        tie_break = share / (1000 * len(y.T))
        report = self.results(names, y, {"best": (votes + tie_break).numpy()})
        return report | {"test": report["test"] | {"majority": scores.top_k(y, share.expand_as(votes))}}

    def left_out(self, names: Names, targets: Mapping[str, Tensor]) -> Report:
        """Which classes, by split, no image is of."""
        absent = {s: [n for n, any_ in zip(names, y.any(dim=0), strict=True) if not any_] for s, y in targets.items()}
        return {"absent": absent}


class RealNumbers(Task):
    """Real numbers, each on its own. The best epoch is chosen on the test split, as officially, so it is optimistic.

    A target that is constant on test has no r. A constant prediction for another one explains nothing: r = 0.
    """

    name = "regression"
    splits = ("train", "test")
    varied = ("test",)
    solvers = ("adam", "exact")
    batch_size = 64
    loss = staticmethod(F.mse_loss)
    loss_name = "mean squared error"
    selected_on = "test"
    reported = ("last", "best")
    regression = staticmethod(ridge_regression)
    regression_loss = "squared error"

    def watch(self, y: Tensor, output: np.ndarray) -> dict[str, float]:
        """Mean r over the targets that vary, and mean squared error over all."""
        r, error = self._scores(y, output)
        return {"r": mean_defined(r), "mse": float(error.mean())}

    def results(self, names: Names, y: Tensor, outputs: Mapping[str, np.ndarray]) -> Report:
        """Pearson r and mean squared error: means of the last layer, and per target of all the reported ones."""
        tables = {}
        for which, output in outputs.items():
            r, error = self._scores(y, output)
            tables[which] = _by_name(names, r=r, mse=error)
        return {
            "last": self.watch(y, outputs["last"]),
            "attributes": {name: {which: table[name] for which, table in tables.items()} for name in names},
        }

    errors = staticmethod(regression_errors)

    def left_out(self, names: Names, targets: Mapping[str, Tensor]) -> Report:
        """Which targets are constant on test."""
        return {"constant": _constant_names(names, targets["test"])}

    def _scores(self, y: Tensor, output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r = np.nan_to_num(scores.pearson(y, output))
        r[constant(y).numpy()] = np.nan
        return r, scores.mse(y, output)


TASKS = {"binary": Attributes(), "class": Classes(), "real": RealNumbers()}  # by the kind of the targets


def constant(y: Tensor) -> Tensor:
    """Which targets [k] of y [n, k] have a single value."""
    return (y == y[:1]).all(dim=0)


def _constant_names(names: Names, y: Tensor) -> list[str]:
    return [name for name, flag in zip(names, constant(y), strict=True) if flag]


def _by_name(names: Names, **columns: np.ndarray | Tensor) -> Report:
    """Each name's entry of the columns [k], as JSON has it."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {name: dict(zip(columns, map(json_safe, row), strict=True)) for name, row in zip(names, rows, strict=True)}
