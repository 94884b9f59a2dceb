"""Exponential moving average of a model's parameters."""

import copy

import torch
from torch import Tensor, nn

from dbae.flat import flatten


class EMA:
    """Averaged twin of a model: ``module`` holds the averaged parameters and, after ``sync_buffers``, live buffers.

    ``warmup`` starts at rate ``(1 + step) / (10 + step)``, so that short runs do not average their initialisation.
    """

    def __init__(self, model: nn.Module, rate: float, warmup: bool = False) -> None:
        self.rate, self.warmup = rate, warmup
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = zip(self.module.parameters(), model.parameters(), strict=True)
        self.vector = flatten([averaged for averaged, live in pairs if live.requires_grad])

    @torch.no_grad()
    def update(self, vector: Tensor, step: int, taken: Tensor) -> None:
        """Move the average towards the trained parameters (``RAdam.vector``) after ``step`` steps, if ``taken``."""
        rate = min(self.rate, (1 + step) / (10 + step)) if self.warmup else self.rate
        self.vector.lerp_(vector, (1 - rate) * taken.to(vector.dtype))

    @torch.no_grad()
    def sync_buffers(self, model: nn.Module) -> None:
        """Copy the live model's buffers: running BatchNorm statistics and spectral-norm vectors are not averaged."""
        for averaged, live in zip(self.module.buffers(), model.buffers(), strict=True):
            averaged.copy_(live)
