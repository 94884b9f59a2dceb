"""How known factors of variation lie in the numbers of a code: DCI, MIG, SAP and the FactorVAE score.

By the definitions and settings of disentanglement_lib (Locatello et al., ICML 2019), on a fixed set of images: codes
are z [n, d], factors are whole numbers y [n, f]. The first two thirds of the rows train, the others test.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from dbae.config import UserError

BINS = 20  # of a number of the code, for mutual information
VOTES = (10_000, 5_000)  # of the FactorVAE score: to train, to test
VOTE_IMAGES = 64  # that share a factor, for each vote
MIN_STD = 0.05  # of a number that votes
STAGES = 100  # of the boosted trees whose importances DCI reads

Progress = Callable[[], None]


def factor_scores(
    z: np.ndarray, y: np.ndarray, stages: int = STAGES, seed: int = 0, progress: Progress = lambda: None
) -> dict[str, Any]:
    """All scores of codes, higher is better: 1 at best. ``progress`` is called after each of ``2 f + 2`` parts.

    The codes are divided by one number, so that their mean variance is 1, as the prior of a VAE has it, for which the
    settings of these scores were chosen. Raises UserError for fewer than 30 rows or two numbers, for codes that do not
    vary, and for a factor that does not vary in either part.
    """
    n, d = z.shape
    cut = 2 * n // 3
    if n < 30 or d < 2:
        raise UserError(f"codes: expected 30 rows or more of two numbers or more, got {list(z.shape)}")
    if not (np.ptp(y[:cut], axis=0) * np.ptp(y[cut:], axis=0)).all():
        raise UserError("factors: expected each to vary among the training and among the test rows")
    if not (scale := z.std(axis=0, ddof=1, dtype=np.float64)).any():
        raise UserError("codes: expected codes that vary, all are the same")
    z = z / np.sqrt(np.square(scale).mean())
    parts = z[:cut], y[:cut], z[cut:], y[cut:]
    report = dci(*parts, stages, seed, progress) | {"sap": sap(*parts, progress), "mig": mig(z[:cut], y[:cut])}
    progress()
    report["factor_vae"] = factor_vae_score(z, y, VOTES, seed)
    progress()
    return report


def dci(
    z: np.ndarray, y: np.ndarray, z_test: np.ndarray, y_test: np.ndarray, stages: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """Disentanglement, completeness and informativeness (Eastwood & Williams, ICLR 2018), by gradient boosting.

    Trees of depth 3 predict each factor, in a number of ``stages`` with one tree for each value. Informativeness is
    their accuracy on the test rows, on average and by factor.
    """
    importance, accuracy = np.zeros((z.shape[1], y.shape[1])), []
    for i in range(y.shape[1]):
        model = GradientBoostingClassifier(n_estimators=stages, random_state=seed % 2**32).fit(z, y[:, i])
        importance[:, i] = model.feature_importances_
        accuracy.append(float(model.score(z_test, y_test[:, i])))
        progress()
    return {
        "disentanglement": concentration(importance),
        "completeness": concentration(importance.T),
        "informativeness": float(np.mean(accuracy)),
        "accuracy": accuracy,
    }


def concentration(importance: np.ndarray) -> float:
    """``1 - entropy`` of each row of importances [a, b], to the base b, weighted by the row's share of their sum."""
    rows = 1 - entropy(importance + 1e-11, base=importance.shape[1], axis=1)
    total = importance.sum()
    return float(rows @ importance.sum(axis=1) / total) if total else 0.0


def mig(z: np.ndarray, y: np.ndarray) -> float:
    """Mutual information gap (Chen et al., NeurIPS 2018): between the two numbers that tell most of a factor.

    In shares of the factor's entropy, on average over the factors. Numbers are cut into BINS bins of equal width, so
    that no number tells all of a factor with more values.
    """
    binned = [np.digitize(column, np.histogram(column, BINS)[1][:-1]) for column in z.T]
    gaps = []
    for factor in y.T:
        information = np.sort([mutual_info_score(factor, column) for column in binned])
        gaps.append((information[-1] - information[-2]) / mutual_info_score(factor, factor))
    return float(np.mean(gaps))


def sap(z: np.ndarray, y: np.ndarray, z_test: np.ndarray, y_test: np.ndarray, progress: Progress) -> float:
    """Separated attribute predictability (Kumar et al., ICLR 2018): between the two numbers that predict a factor best.

    By a linear support vector machine's accuracy on the test rows, on average over the factors. One line through a
    number parts no middle value of an ordered factor from the others: even the factors themselves may not reach 1.
    """
    gaps = []
    for i in range(y.shape[1]):
        scores = []
        for j in range(z.shape[1]):
            model = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(z[:, [j]], y[:, i])
            scores.append(model.score(z_test[:, [j]], y_test[:, i]))
        first, second = sorted(scores, reverse=True)[:2]
        gaps.append(first - second)
        progress()
    return float(np.mean(gaps))


def factor_vae_score(z: np.ndarray, y: np.ndarray, votes: tuple[int, int], seed: int = 0) -> float:
    """Accuracy of a majority vote that guesses which factor was held fixed (Kim & Mnih, ICML 2018).

    Each of the ``votes``, to train and to test, is the number whose variance shrinks most among VOTE_IMAGES rows with
    the same value of one factor; they are drawn with replacement where fewer have it. Numbers with a standard deviation
    below MIN_STD do not vote; the score is 0 where none does.
    """
    rng = np.random.default_rng(seed)
    variances = z.var(axis=0, ddof=1)
    voters = np.flatnonzero(np.sqrt(variances) >= MIN_STD)
    if not len(voters):
        return 0.0
    z, variances = z[:, voters], variances[voters]
    groups = [{value: np.flatnonzero(column == value) for value in np.unique(column)} for column in y.T]
    counts = np.zeros((2, len(voters), y.shape[1]), np.int64)
    for table, number in zip(counts, votes, strict=True):
        for factor, row in zip(rng.integers(y.shape[1], size=number), rng.integers(len(y), size=number), strict=True):
            rows = groups[factor][y[row, factor]]
            chosen = rng.choice(rows, VOTE_IMAGES, replace=len(rows) < VOTE_IMAGES)
            table[np.argmin(z[chosen].var(axis=0, ddof=1) / variances), factor] += 1
    guess = counts[0].argmax(axis=1)
    return float(counts[1][np.arange(len(voters)), guess].sum() / votes[1])
