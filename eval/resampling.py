"""Standard errors of a probe's mean scores, by resampling the test images (bootstrap, Efron 1979).

A resample is a count per image, so that every score is a sum with weights, and all resamples are computed at once.
They say how much the scores would vary with other test images of the same kind; training is not repeated.
"""

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 100


def counts(images: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each image is drawn [images, resamples], float64; columns sum to ``images``."""
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples)
    return drawn.T.astype(np.float64, order="C")


def ranking_errors(y: ArrayLike, score: ArrayLike, resamples: int = RESAMPLES) -> dict[str, float]:
    """Standard errors of mean average precision and mean area under the ROC curve, of 0/1 targets and scores [n, k].

    A mean is over the targets that have both classes in the resample.
    """
    y, score = np.asarray(y, np.float64), np.asarray(score, np.float64)
    drawn = counts(len(y), resamples)
    found = np.array([ranking(t, s, drawn) for t, s in zip(y.T, score.T, strict=True) if np.ptp(t)])  # [k, 2, draws]
    ap, area = np.ma.masked_invalid(found).mean(axis=0).filled(np.nan)
    return {"ap": _error(ap), "auroc": _error(area)}


def ranking(y: np.ndarray, score: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and area under the ROC curve [draws] of images [n] that count ``drawn`` [n, draws] times.

    NaN where a draw has one class only.
    """
    order = np.argsort(-score, kind="stable")
    drawn, positive, score = drawn[order], y[order] > 0, score[order]
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # equal scores share a threshold
    hits = np.cumsum(drawn * positive[:, None], axis=0)[ends]
    seen = np.cumsum(drawn, axis=0)[ends]
    gained = np.diff(hits, axis=0, prepend=0)
    passed = np.diff(seen, axis=0, prepend=0) - gained  # negatives of each threshold
    positives, negatives = hits[-1], seen[-1] - hits[-1]
    positives, negatives = (np.where(positives * negatives > 0, each, np.nan) for each in (positives, negatives))
    ap = (gained * hits / np.maximum(seen, 1)).sum(axis=0) / positives
    return ap, (passed * (hits - gained / 2)).sum(axis=0) / (positives * negatives)


def regression_errors(y: ArrayLike, prediction: ArrayLike, resamples: int = RESAMPLES) -> dict[str, float]:
    """Standard errors of mean Pearson correlation, over the targets that vary, and of mean squared error, [n, k]."""
    y, prediction = np.asarray(y, np.float64), np.asarray(prediction, np.float64)
    share = counts(len(y), resamples).T / len(y)
    squared = share @ np.square(y - prediction).mean(axis=1)
    y, prediction = (x[:, np.ptp(y, axis=0) > 0] for x in (y, prediction))
    y, prediction = (x - x.mean(axis=0) for x in (y, prediction))  # before sums of squares cancel

    def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return share @ (a * b) - (share @ a) * (share @ b)

    spread = np.sqrt(covariance(y, y).clip(0) * covariance(prediction, prediction).clip(0))
    r = np.divide(
        covariance(y, prediction), spread, out=np.zeros_like(spread), where=spread > 0
    )  # a constant explains nothing
    return {"r": _error(r.mean(axis=1)), "mse": _error(squared)}


def _error(values: np.ndarray) -> float:
    return float(np.nanstd(values, ddof=1))
