"""Exponential moving average of a model's parameters."""

import copy

import torch
from torch import nn


class EMA:
    """Averaged twin of a model: ``module`` holds the averaged parameters and, after ``sync_buffers``, live buffers.

    ``warmup`` starts at rate ``(1 + step) / (10 + step)``, so that short runs do not average their initialisation.
    """

    def __init__(self, model: nn.Module, rate: float, warmup: bool = False) -> None:
        self.rate, self.warmup = rate, warmup
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the parameters that the model has after ``step`` optimizer steps."""
        rate = min(self.rate, (1 + step) / (10 + step)) if self.warmup else self.rate
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - rate)

    @torch.no_grad()
    def sync_buffers(self, model: nn.Module) -> None:
        """Copy the live model's buffers: running BatchNorm statistics and spectral-norm vectors are not averaged."""
        for averaged, live in zip(self.module.buffers(), model.buffers(), strict=True):
            averaged.copy_(live)
