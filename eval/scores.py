"""Scores of probes: arrays [n, k] of targets and predictions -> [k] float64, NaN where a score is undefined.

Predictions that are not finite raise UserError.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import pearsonr
from sklearn.metrics import average_precision_score, roc_auc_score

from dbae.config import UserError


def average_precision(y: ArrayLike, score: ArrayLike) -> np.ndarray:
    """Average precision [k] of scores for 0/1 targets; NaN where only one class is there."""
    return _each(y, score, lambda t, s: math.nan if _constant(t) else average_precision_score(t, s))


def auroc(y: ArrayLike, score: ArrayLike) -> np.ndarray:
    """Area under the ROC curve [k] of scores for 0/1 targets; NaN where only one class is there."""
    return _each(y, score, lambda t, s: math.nan if _constant(t) else roc_auc_score(t, s))


def accuracy(y: ArrayLike, answer: ArrayLike) -> np.ndarray:
    """Share of right answers [k], both of 0 and 1; NaN where only one class is there."""
    return _each(y, answer, lambda t, a: math.nan if _constant(t) else np.mean(t == a))


def pearson(y: ArrayLike, prediction: ArrayLike) -> np.ndarray:
    """Pearson correlation [k]; NaN where the target or the prediction is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly constant columns
        return _each(y, prediction, lambda t, p: math.nan if _constant(t) or _constant(p) else pearsonr(t, p)[0])


def mse(y: ArrayLike, prediction: ArrayLike) -> np.ndarray:
    """Mean squared error [k]."""
    return _each(y, prediction, lambda t, p: np.square(t - p).mean())


def top_k(y: ArrayLike, score: ArrayLike, k: int = 1) -> float:
    """Share of images whose class, one-hot in y [n, classes], is among the k of the highest scores [n, classes]."""
    best = np.argsort(-_finite(score), axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(np.asarray(y), best, axis=1).any(axis=1).mean())


def recall(y: ArrayLike, score: ArrayLike) -> np.ndarray:
    """Share of each class's images [classes] whose highest score is their class's; NaN for a class without images."""
    y, best = np.asarray(y), _finite(score).argmax(axis=1)
    return np.array([np.mean(best[has > 0] == i) if has.any() else math.nan for i, has in enumerate(y.T)])


def mean_defined(scores: np.ndarray) -> float:
    """Mean over the attributes where a score is defined, NaN where none is."""
    defined = scores[~np.isnan(scores)]
    return float(defined.mean()) if len(defined) else math.nan


def json_safe(score: float) -> float | None:
    """The number, or None for NaN, which JSON does not have."""
    return None if math.isnan(score) else score


def _each(y: ArrayLike, other: ArrayLike, score: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    y, other = np.asarray(y, np.float64), _finite(other)
    return np.array([score(t, p) for t, p in zip(y.T, other.T, strict=True)], np.float64)


def _finite(predictions: ArrayLike) -> np.ndarray:
    predictions = np.asarray(predictions, np.float64)
    if not np.isfinite(predictions).all():
        raise UserError("scores: expected finite predictions, got NaN or infinity")
    return predictions


def _constant(column: np.ndarray) -> bool:
    return np.ptp(column) == 0
