"""The penalty on the total correlation of a stochastic encoder's codes, ``KL(q(z) || prod_k q(z_k))``, for training.

Two estimators, by the formulas of disentanglement_lib (Locatello et al., ICML 2019), each of the images of one forward
pass: those of other micro-batches and processes do not count.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.config import UserError
from dbae.io import randn_like
from dbae.methods.autoencoder import AutoEncoder
from dbae.methods.codes import SIGMA_MIN, draw_code

ESTIMATORS = ("none", "minibatch", "discriminator")


def minibatch_total_correlation(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    """Total correlation of the mixture of n posteriors, a term [n] per drawn code z [n, d], in nats; their mean is it.

    ``log q(z_j) - sum_k log q(z_jk)``, with ``q(z) = 1/n sum_i N(z; mu_i, sigma_i^2)`` (beta-TCVAE, Chen et al.,
    NeurIPS 2018). It needs n well above d: where each code is explained by its own image alone it is near log n for
    any codes, and pushes sigma up.
    """
    sigma = log_sigma.exp() + SIGMA_MIN
    error = (z[:, None] - mu) / sigma  # [j, i, k]
    log_density = -0.5 * error.square() - sigma.log() - 0.5 * math.log(2 * math.pi)
    joint = log_density.sum(dim=2).logsumexp(dim=1)
    marginals = log_density.logsumexp(dim=1).sum(dim=1)
    return joint - marginals + (z.shape[1] - 1) * math.log(len(z))


class Discriminator(nn.Sequential):
    """Tells codes [n, d] from codes whose numbers are permuted over the batch: two logits [n, 2] (FactorVAE's MLP)."""

    def __init__(self, latent_dim: int, width: int = 1000, layers: int = 6) -> None:
        widths = [latent_dim, *[width] * (layers - 1)]
        hidden = [(nn.Linear(a, b), nn.LeakyReLU(0.2)) for a, b in pairwise(widths)]
        super().__init__(*(layer for pair in hidden for layer in pair), nn.Linear(widths[-1], 2))


def permuted(z: Tensor) -> Tensor:
    """Codes [n, d] with each of the d numbers permuted over the n of them, so that they are independent."""
    return z.gather(0, torch.rand_like(z).argsort(dim=0))


class PenalisedLoss(nn.Module):
    """The loss of a stochastic autoencoder and ``weight`` times an estimate of its codes' total correlation.

    The discriminator is trained in the same backward pass (as in disentanglement_lib, on the same batch): the penalty's
    gradient reaches the encoder alone, the cross-entropy's the discriminator alone, and only the first counts in the
    value. Raises UserError for one image, which has no batch to be compared with.
    """

    def __init__(self, model: AutoEncoder, estimator: str, weight: float) -> None:
        super().__init__()
        self.model, self.weight = model, weight
        self.discriminator = Discriminator(model.config.latent_dim) if estimator == "discriminator" else None
        self.to(next(model.parameters()).device)

    def param_groups(self) -> list[dict]:
        """The model's parameters, and the discriminator's with FactorVAE's settings of Adam."""
        groups = self.model.param_groups()
        if self.discriminator is not None:
            own = list(self.discriminator.parameters())
            groups.append({"params": own, "lr": 1e-4, "betas": (0.5, 0.9), "weight_decay": 0.0})
        return groups

    def forward(self, x0: Tensor, y: Tensor | None = None) -> Tensor:
        """Loss [N] of images x0, with each one's term of the total correlation."""
        if len(x0) < 2:
            raise UserError(f"tc: expected two images or more in a micro-batch, got {len(x0)}")
        mu, log_sigma = self.model.encode_stats(x0)
        z = draw_code(mu, log_sigma, randn_like(mu))
        loss = self.model.loss(x0, y, cond=self.model.condition(z=z))
        if self.discriminator is None:
            return loss + self.weight * minibatch_total_correlation(z, mu, log_sigma)
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        joint, product = torch.func.functional_call(self.discriminator, frozen, z).unbind(dim=1)
        taught = self.teaching_loss(z.detach())
        return loss + self.weight * (joint - product) + taught - taught.detach()

    def teaching_loss(self, z: Tensor) -> Tensor:
        """Cross-entropy [n] of the discriminator: class 0 are codes z [n, d] as they are, 1 permuted ones."""
        classes = torch.zeros(len(z), dtype=torch.long, device=z.device)
        drawn, product = self.discriminator(z), self.discriminator(permuted(z))
        losses = [F.cross_entropy(f, c, reduction="none") for f, c in ((drawn, classes), (product, classes + 1))]
        return (losses[0] + losses[1]) / 2
