"""Probes beyond the official protocol: exact linear solutions, nearest neighbours, and few labels.

The exact solvers standardise the codes, choose the strength of an L2 penalty per attribute, and fold the
standardisation back, so that their layers take raw codes. A penalty p means ``mean loss + p/2 |w|^2`` over standardised
codes, the loss being the logistic one or half the squared error: scikit-learn's ``C = 1/(p n)`` and ``alpha = p n``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from dbae.config import UserError
from eval.scores import average_precision, check_binary, check_rows, mse

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: equal scores choose the stronger
ITERATIONS = 100  # of L-BFGS per penalty; a few dozen do
DISTANCES = 2**25  # nearest neighbours: most distances held at once


def exact_classifier(
    z_train: Tensor,
    y_train: Tensor,
    z_valid: Tensor,
    y_valid: Tensor,
    penalties: Sequence[float] = PENALTIES,
    device: torch.device | str = "cpu",
) -> tuple[nn.Linear, list[float]]:
    """Logistic regression: codes [n, d] and 0/1 targets [n, k] -> layer on the CPU, penalty chosen per attribute.

    Chosen by average precision on the validation split. One L-BFGS fits all attributes at once, so that an iteration
    costs two matrix products, in coordinates where the Hessian is near the identity (``_Whitened``), from the solution
    of the penalty before. An attribute with a single class in training gets weight 0 and a finite bias.
    """
    for what, z, y in (("train", z_train, y_train), ("valid", z_valid, y_valid)):
        check_rows(what, z, y)
        check_binary(what, y)
    space = _Whitened(z_train, device)
    solutions = _logistic_path(space, y_train.to(device, torch.float32), penalties)
    layers = [space.fold(weight, bias) for weight, bias in solutions]
    with torch.no_grad():
        scores = np.stack([average_precision(y_valid, layer(z_valid.float())) for layer in layers])
    return _choose(layers, np.nan_to_num(scores, nan=-1.0), penalties)


def exact_regressor(
    z_train: Tensor, y_train: Tensor, penalties: Sequence[float] = PENALTIES, device: torch.device | str = "cpu"
) -> tuple[nn.Linear, list[float]]:
    """Ridge regression in closed form: codes [n, d], real targets [n, k] -> layer on the CPU, penalty per attribute.

    Chosen by squared error on the last tenth of the rows, which no fit of that round has seen, then fitted on all. It
    is the last tenth and not a random one because data sets keep images of one person together.
    """
    check_rows("train", z_train, y_train)
    if len(z_train) < 3:
        raise UserError(f"train: expected at least 3 images, got {len(z_train)}")
    cut = len(z_train) - math.ceil(len(z_train) / 10)
    trials = _ridge_path(z_train[:cut], y_train[:cut], penalties, device)
    with torch.no_grad():
        errors = np.stack([mse(y_train[cut:], layer(z_train[cut:].float())) for layer in trials])
    return _choose(_ridge_path(z_train, y_train, penalties, device), -errors, penalties)


def nearest_neighbours(
    z_train: Tensor, y_train: Tensor, z_test: Tensor, y_test: Tensor, k: int = 20, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Accuracy of the majority among the ``k`` nearest training codes, per 0/1 attribute and on average.

    Euclidean, codes standardised on train; a tied vote takes the class that is commoner in training. ``majority`` is
    the accuracy of always answering that class: what the other number has to beat.
    """
    for what, z, y in (("train", z_train, y_train), ("test", z_test, y_test)):
        check_rows(what, z, y)
        check_binary(what, y)
    if not 1 <= k <= len(z_train):
        raise UserError(f"k: expected 1 to {len(z_train)} neighbours, got {k}")
    mean, std = _moments(z_train)
    train, test = (((z.double() - mean) / std).to(device, torch.float32) for z in (z_train, z_test))
    labels, norms = y_train.to(device, torch.float32), train.square().sum(dim=1)
    common = (labels.mean(dim=0) > 0.5).float()
    answers = []
    for part in test.split(max(1, min(1024, DISTANCES // len(train)))):
        distances = torch.addmm(norms, part, train.T, alpha=-2)  # squared, less the test code's own norm
        votes = labels[distances.topk(k, largest=False).indices].mean(dim=1)
        answers.append(torch.where(votes == 0.5, common, votes.round()))
    truth = y_test.to(device, torch.float32)
    right = {"accuracy": torch.cat(answers) == truth, "majority": common == truth}
    report: dict[str, Any] = {"k": k, "images": {"train": len(z_train), "test": len(z_test)}}
    for name, hits in right.items():
        report |= {name: hits.double().mean(dim=0).tolist(), f"mean_{name}": hits.double().mean().item()}
    return report


def label_fractions(
    fit: Callable[[np.ndarray], float],
    n: int,
    fractions: Sequence[float] = (0.01, 0.1),
    repeats: int = 5,
    seed: int = 0,
    targets: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Scores of ``fit(rows)`` on random subsets of ``n`` training rows: mean, standard deviation, 95 % t-interval.

    With 0/1 ``targets`` [n, k] a subset that misses a class of some attribute has rows exchanged, as few as needed and
    none that are the last of another class, until it has a row of every class there is (as far as its size allows).
    Rows come sorted. A subset depends on the seed, its size and its number only. The interval tells how much the
    choice of labels matters; the test images are the same throughout.
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
        mean, std = scores.mean(), scores.std(ddof=1)
        reach = stats.t.ppf(0.975, repeats - 1) * std / math.sqrt(repeats)
        numbers = {"mean": mean, "std": std, "low": mean - reach, "high": mean + reach}
        found.append(
            {"fraction": fraction, "rows": size, "scores": scores.tolist()}
            | {name: float(number) for name, number in numbers.items()}
        )
    return found


class _Whitened:
    """Training codes [n, d], standardised and turned to their principal axes: there their covariance is diagonal."""

    def __init__(self, z: Tensor, device: torch.device | str) -> None:
        self.mean, self.std = _moments(z)
        standard = ((z.double() - self.mean) / self.std).to(device)
        variances, self.axes = torch.linalg.eigh(standard.T @ standard / len(z))
        self.variances = variances.clamp(min=0)  # [d]
        self.codes = (standard @ self.axes).float()

    def fold(self, weight: Tensor, bias: Tensor) -> nn.Linear:
        """A layer on raw codes from a weight [d, k] on ``codes`` and a bias [k]."""
        weight = (self.axes @ weight.double()).cpu() / self.std[:, None]
        layer = nn.Linear(*weight.shape)
        with torch.no_grad():
            layer.weight.copy_(weight.T)
            layer.bias.copy_(bias.double().cpu() - self.mean @ weight)
        return layer


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [d] in float64 on the CPU; 1 for a dimension that does not vary."""
    z = z.double().cpu()
    std = z.std(dim=0, correction=0)
    return z.mean(dim=0), torch.where(std > 0, std, 1.0)


def _logistic_path(space: _Whitened, y: Tensor, penalties: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Weight [d, k] and bias [k] for every penalty."""
    share = ((y.sum(dim=0) + 0.5) / (len(y) + 1)).double()  # finite log odds for a single class, too
    varied = (y != y[:1]).any(dim=0)
    if not varied.any():
        raise UserError(f"train: expected an attribute with both classes, got none in {len(y)} images")
    y, curvature = y[:, varied], (share * (1 - share))[varied]  # [k]: the Hessian at the mean is curvature * covariance
    weight, bias = torch.zeros(len(space.axes), len(share)).to(share), share.logit()
    solutions = []
    for penalty in penalties:
        scale = (curvature * space.variances[:, None] + penalty).rsqrt()
        u, v = (weight[:, varied] / scale).requires_grad_(), (bias[varied] * curvature.sqrt()).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [u, v], max_iter=ITERATIONS, tolerance_grad=1e-5, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure(u=u, v=v, scale=scale, penalty=penalty, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            w = scale * u
            logits = space.codes @ w.float() + (v / curvature.sqrt()).float()
            loss = F.binary_cross_entropy_with_logits(logits, y) * y.shape[1] + penalty / 2 * w.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        weight[:, varied], bias[varied] = (scale * u).detach(), (v / curvature.sqrt()).detach()
        solutions.append((weight.clone(), bias.clone()))
    return solutions


def _ridge_path(z: Tensor, y: Tensor, penalties: Sequence[float], device: torch.device | str) -> list[nn.Linear]:
    """The layer for every penalty."""
    space = _Whitened(z, device)
    y = y.to(device, torch.float64)
    bias = y.mean(dim=0)
    products = space.codes.double().T @ (y - bias) / len(z)
    return [space.fold(products / (space.variances[:, None] + penalty), bias) for penalty in penalties]


def _choose(
    layers: Sequence[nn.Linear], scores: np.ndarray, penalties: Sequence[float]
) -> tuple[nn.Linear, list[float]]:
    """For every attribute the layer with the highest of the scores [penalties, k]."""
    best = scores.argmax(axis=0)
    chosen = nn.Linear(layers[0].in_features, layers[0].out_features)
    with torch.no_grad():
        for i, p in enumerate(best):
            chosen.weight[i], chosen.bias[i] = layers[p].weight[i], layers[p].bias[i]
    return chosen, [float(penalties[p]) for p in best]


def _subset(order: np.ndarray, size: int, classes: np.ndarray) -> np.ndarray:
    """The first ``size`` rows of ``order``, exchanged until all classes [n, c] are there as far as possible; sorted."""
    rows, rest = order[:size].copy(), order[size:]
    counts = classes[rows].sum(axis=0)
    for missing in np.flatnonzero(classes.any(axis=0)):
        if counts[missing]:
            continue
        candidates = rest[classes[rest, missing]]
        spare = np.flatnonzero((~classes[rows] | (counts > 1)).all(axis=1))
        if len(spare):
            old, rows[spare[-1]] = rows[spare[-1]], candidates[0]
            counts += classes[candidates[0]].astype(int) - classes[old]
    return np.sort(rows)
