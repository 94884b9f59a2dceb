"""How binary attributes lie in the numbers of a code: TAD and ATTRS (Yeats et al., ECCV 2022, NashAE).

Attributes are y [n, k] of 0 and 1, codes are z [n, d]. Areas under the ROC curve are exact, by ranks.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.special import xlogy
from scipy.stats import rankdata
from sklearn.model_selection import KFold

from dbae.config import UserError

MIN_AUROC = 0.75  # of an attribute's best number, for the attribute to be captured
MAX_REDUNDANCY = 0.2  # of an attribute's entropy, what another attribute may explain
BATCH, BATCHES = 1_000, 10  # images of NashAE's protocol, and how often it is repeated on others
FOLDED, FOLDS = 10_000, 5  # images and folds of InfoDiffusion's protocol


def attribute_auroc(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """``max(AUROC(y_i, z_j), AUROC(y_i, -z_j))`` [k, d], in [0.5, 1]; NaN for an attribute with a single class.

    By the Mann-Whitney statistic of average ranks, which counts ties half.
    """
    y = np.asarray(y, np.float64)
    positives = y.sum(axis=0)[:, None]
    pairs = positives * (len(y) - positives)
    above = y.T @ rankdata(z, axis=0) - positives * (positives + 1) / 2
    with np.errstate(invalid="ignore"):
        area = above / pairs
    return np.maximum(area, 1 - area)


def redundancy(y: np.ndarray) -> np.ndarray:
    """``max_j MI_ij / H_i`` [k]: the most of an attribute's entropy that another one explains; NaN without entropy."""
    y = np.asarray(y, np.float64)
    n, p = len(y), np.stack([1 - y.mean(axis=0), y.mean(axis=0)])
    both = y.T @ y / n
    joint = np.array([[1 - p[1][:, None] - p[1] + both, p[1] - both], [p[1][:, None] - both, both]]).clip(min=0)
    information = xlogy(joint, joint).sum(axis=(0, 1)) - sum(
        xlogy(joint[a, b], p[a][:, None] * p[b]) for a in (0, 1) for b in (0, 1)
    )
    np.fill_diagonal(information, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return information.max(axis=1) / -xlogy(p, p).sum(axis=0)


def tad(y: np.ndarray, z: np.ndarray) -> dict[str, Any]:
    """Total AUROC difference of codes, and what it is made of.

    ``eligible`` [k] are attributes of which no other one explains more than MAX_REDUNDANCY: they depend on the labels
    alone. ``captured`` [k] are those of them whose best number reaches MIN_AUROC: ATTRS is how many, and TAD the sum of
    their ``gap`` [k], the difference between the best number's AUROC and the second best's. ``best`` is its number.
    Raises UserError for codes of one number, which have no second.
    """
    if z.ndim != 2 or z.shape[1] < 2:
        raise UserError(f"codes: expected two numbers or more for TAD, got {list(z.shape)}")
    area = attribute_auroc(y, z)
    ordered = np.sort(area, axis=1)
    gap = ordered[:, -1] - ordered[:, -2]
    eligible = redundancy(y) <= MAX_REDUNDANCY  # not for NaN
    captured = eligible & (ordered[:, -1] >= MIN_AUROC)
    return {
        "tad": float(gap[captured].sum()),
        "attrs": int(captured.sum()),
        "auroc": ordered[:, -1],
        "gap": gap,
        "best": np.argmax(area, axis=1),
        "eligible": eligible,
        "captured": captured,
    }


def tad_by_batches(y: np.ndarray, z: np.ndarray, names: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """NashAE's protocol, up to BATCHES times: TAD of BATCH images each, drawn without replacement, in one report."""
    order = np.random.default_rng(seed).permutation(len(y))
    parts = [order[i : i + BATCH] for i in range(0, len(y) - BATCH + 1, BATCH)][:BATCHES]
    if not parts:
        raise UserError(f"images: expected {BATCH} or more for TAD, got {len(y)}")
    return _report(y, z, names, parts)


def tad_by_folds(y: np.ndarray, z: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """InfoDiffusion's protocol: TAD of the training part of FOLDS folds (shuffled, seed 0) of the first FOLDED images.

    That protocol standardises the codes, which changes no rank.
    """
    n = min(len(y), FOLDED)
    parts = [train for train, _ in KFold(FOLDS, shuffle=True, random_state=0).split(np.arange(n))]
    return _report(y, z, names, parts)


def _report(y: np.ndarray, z: np.ndarray, names: Sequence[str], parts: Iterable[np.ndarray]) -> dict[str, Any]:
    """TAD and ATTRS of parts of the images, their mean and standard deviation, and in how many an attribute counts."""
    found = [(len(rows), tad(y[rows], z[rows])) for rows in parts]
    report: dict[str, Any] = {"parts": len(found), "images": found[0][0]}
    for name in ("tad", "attrs"):
        values = [each[name] for _, each in found]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        report[name] = {"mean": float(np.mean(values)), "std": spread, "values": values}
    for name in ("eligible", "captured"):
        counts = sum(each[name].astype(int) for _, each in found)
        report[name] = {name: int(count) for name, count in zip(names, counts, strict=True) if count}
    return report
