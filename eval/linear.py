"""Logistic and ridge regression solved to the optimum, and the k nearest neighbours.

The regressions standardise the codes, choose the strength of an L2 penalty, and fold the standardisation back, so that
their layers take raw codes. A penalty p means ``mean loss + p/2 |w|^2`` over standardised codes, the loss being the
logistic one or half the squared error: scikit-learn's ``C = 1/(p n)`` and ``alpha = p n``.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.config import UserError
from eval.scores import average_precision, mse, top_k

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: equal scores choose the stronger
ITERATIONS = 100  # of L-BFGS per penalty; a few dozen do
DISTANCES = 2**25  # nearest neighbours: most distances held at once
Device = torch.device | str
Solution = tuple[Tensor, Tensor]  # weight and bias: [d, k] and [k] in whitened coordinates, [k, d] and [k] on raw codes
Chosen = tuple[nn.Linear, list[float]]  # layer on the CPU, and the penalty of each of its outputs


def logistic_regression(
    z_train: Tensor,
    y_train: Tensor,
    z_valid: Tensor,
    y_valid: Tensor,
    penalties: Sequence[float] = PENALTIES,
    device: Device = "cpu",
) -> Chosen:
    """A logistic regression per attribute: codes [n, d], targets [n, k] of 0 and 1.

    Each penalty is chosen by average precision on the validation split. An attribute with a single class in training
    gets weight 0 and a finite bias.
    """
    layers = logistic_path(z_train, y_train, penalties, device)
    return choose(layers, [ranking(y_valid, F.linear(z_valid, *layer)) for layer in layers], penalties)


def multinomial_regression(
    z_train: Tensor,
    y_train: Tensor,
    z_valid: Tensor,
    y_valid: Tensor,
    penalties: Sequence[float] = PENALTIES,
    device: Device = "cpu",
) -> Chosen:
    """One logistic regression over all classes: codes [n, d], one-hot targets [n, classes].

    One penalty for all, chosen by accuracy on the validation split.
    """
    layers = multinomial_path(z_train, y_train, penalties, device)
    return choose(layers, [top_one(y_valid, F.linear(z_valid, *layer)) for layer in layers], penalties)


def ridge_regression(
    z_train: Tensor, y_train: Tensor, penalties: Sequence[float] = PENALTIES, device: Device = "cpu"
) -> Chosen:
    """Ridge regression in closed form: codes [n, d], real targets [n, k].

    Each penalty is chosen by squared error on the last tenth of the rows, which no fit of that round has seen; then all
    rows are fitted. It is the last tenth and not a random one because data sets keep images of one person together.
    """
    if len(z_train) < 3:
        raise UserError(f"train: expected at least 3 images, got {len(z_train)}")
    cut = len(z_train) - math.ceil(len(z_train) / 10)
    trials = ridge_path(z_train[:cut], y_train[:cut], penalties, device)
    errors = [-mse(y_train[cut:], F.linear(z_train[cut:], *layer)) for layer in trials]
    return choose(ridge_path(z_train, y_train, penalties, device), errors, penalties)


def logistic_path(
    z: Tensor, y: Tensor, penalties: Sequence[float] = PENALTIES, device: Device = "cpu"
) -> list[Solution]:
    """A logistic regression per attribute: the solution on raw codes z [n, d], y [n, k], for every penalty."""
    space, y = _Whitened(z, device), y.to(device, torch.float32)
    varied = (y != y[:1]).any(dim=0)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, y) * y.shape[1]

    layers = []
    for path_weight, path_bias in _regularisation_path(space, y[:, varied], torch.logit, loss, penalties):
        bias = _share(y).logit()
        weight = bias.new_zeros(len(space.axes), len(bias))
        weight[:, varied], bias[varied] = path_weight, path_bias
        layers.append(space.fold(weight, bias))
    return layers


def multinomial_path(
    z: Tensor, y: Tensor, penalties: Sequence[float] = PENALTIES, device: Device = "cpu"
) -> list[Solution]:
    """The same of one logistic regression over all classes, one-hot in y [n, classes]."""
    space, y = _Whitened(z, device), y.to(device, torch.float32)
    return [space.fold(*each) for each in _regularisation_path(space, y, torch.log, F.cross_entropy, penalties)]


def ridge_path(z: Tensor, y: Tensor, penalties: Sequence[float] = PENALTIES, device: Device = "cpu") -> list[Solution]:
    """The same of ridge regressions, in closed form, for real targets y [n, k]."""
    space = _Whitened(z, device)
    y = y.to(device, torch.float64)
    bias = y.mean(dim=0)
    products = space.codes.double().T @ (y - bias) / len(z)
    return [space.fold(products / (space.variances[:, None] + penalty), bias) for penalty in penalties]


def ranking(y: Tensor, output: Tensor) -> np.ndarray:
    """How good outputs [n, k] are for attributes y [n, k], each on its own [k]; -1 where that is not defined."""
    return np.nan_to_num(average_precision(y, output), nan=-1.0)


def top_one(y: Tensor, output: Tensor) -> np.ndarray:
    """The accuracy of outputs for one-hot classes, both [n, k], the same for all [k]."""
    return np.full(y.shape[1], top_k(y, output))


def choose(solutions: Sequence[Solution], scores: Sequence[np.ndarray], penalties: Sequence[float]) -> Chosen:
    """For every output the solution with the highest of the ``scores`` [k] of each penalty, together as a layer."""
    best = np.stack(scores).argmax(axis=0)
    return assembled(solutions, best), [float(penalties[p]) for p in best]


def assembled(solutions: Sequence[Solution], which: Sequence[int]) -> nn.Linear:
    """A layer whose output i is that of the solution ``which[i]``."""
    rows = np.arange(len(which))
    weight, bias = (torch.stack(values)[which, rows] for values in zip(*solutions, strict=True))
    layer = nn.Linear(*weight.T.shape)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def neighbour_votes(z_train: Tensor, y_train: Tensor, z_test: Tensor, k: int = 20, device: Device = "cpu") -> Tensor:
    """Mean target [m, c] of the ``k`` nearest of the training codes [n, d] with targets [n, c], for codes [m, d].

    Euclidean distances between codes standardised on the training codes.
    """
    if not 1 <= k <= len(z_train):
        raise UserError(f"k: expected 1 to {len(z_train)} neighbours, got {k}")
    mean, std = _moments(z_train)
    train, test = (((z.double().cpu() - mean) / std).to(device, torch.float32) for z in (z_train, z_test))
    y, norms = y_train.to(device, torch.float32), train.square().sum(dim=1)
    votes = []
    for part in test.split(max(1, min(1024, DISTANCES // len(train)))):
        distances = torch.addmm(norms, part, train.T, alpha=-2)  # squared, less the test code's own norm
        votes.append(y[distances.topk(k, largest=False).indices].mean(dim=1))
    return torch.cat(votes).cpu()


class _Whitened:
    """Training codes [n, d], standardised and turned to their principal axes: there their covariance is diagonal."""

    def __init__(self, z: Tensor, device: Device) -> None:
        self.mean, self.std = _moments(z)
        standard = ((z.double().cpu() - self.mean) / self.std).to(device)
        variances, self.axes = torch.linalg.eigh(standard.T @ standard / len(z))
        self.variances = variances.clamp(min=0)  # [d]
        self.codes = (standard @ self.axes).float()

    def fold(self, weight: Tensor, bias: Tensor) -> Solution:
        """The solution on raw codes, float32 on the CPU, of one on ``codes``."""
        weight = (self.axes @ weight.double()).cpu() / self.std[:, None]
        return weight.T.float().contiguous(), (bias.double().cpu() - self.mean @ weight).float()


def _moments(z: Tensor) -> Solution:
    """Mean and standard deviation [d] in float64 on the CPU; 1 for a dimension that does not vary."""
    z = z.double().cpu()
    std = z.std(dim=0, correction=0)
    return z.mean(dim=0), torch.where(std > 0, std, 1.0)


def _share(y: Tensor) -> Tensor:
    """Share [k] float64 of images with each attribute or class, kept from 0 and 1 so that its log odds are finite."""
    return ((y.sum(dim=0) + 0.5) / (len(y) + 1)).double()


def _regularisation_path(
    space: _Whitened,
    y: Tensor,
    link: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    penalties: Sequence[float],
) -> list[Solution]:
    """The minimum of ``loss(logits, y) + p/2 |w|^2`` for every penalty p; ``link`` turns shares [k] to a first bias.

    One L-BFGS fits all outputs at once, so that an iteration costs two matrix products, from the solution of the
    penalty before. It works in coordinates where the Hessian at the start, which is ``share (1 - share)`` times the
    covariance for each output, is the identity.
    """
    share = _share(y)
    curvature, bias = share * (1 - share), link(share)
    weight = bias.new_zeros(len(space.axes), len(bias))
    solutions = []
    for penalty in penalties:
        scale = (curvature * space.variances[:, None] + penalty).rsqrt()
        u, v = (weight / scale).requires_grad_(), (bias * curvature.sqrt()).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [u, v], max_iter=ITERATIONS, tolerance_grad=1e-5, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure(u=u, v=v, scale=scale, penalty=penalty, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            w = scale * u
            logits = space.codes @ w.float() + (v / curvature.sqrt()).float()
            objective = loss(logits, y) + penalty / 2 * w.square().sum()
            objective.backward()
            return objective

        optimizer.step(closure)
        weight, bias = (scale * u).detach(), (v / curvature.sqrt()).detach()
        solutions.append((weight, bias))
    return solutions
