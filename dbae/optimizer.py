"""RAdam (Liu et al., ICLR 2020) on all parameters as one vector; what it skips is decided on the device."""

from typing import Any

import torch
from torch import Tensor, nn

from dbae.flat import flatten, parts

MOMENTS = ("exp_avg", "exp_avg_sq")


class RAdam(torch.optim.Optimizer):
    """The numbers of ``torch.optim.RAdam``, whose files it reads and writes, in a few operations for all parameters.

    Parameters and their gradients become views of two vectors, ``vector`` and ``vector.grad``. Gradients are set to
    zero, never to None: by this class, not by the module's ``zero_grad``.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = parameters
        self.update = update
        self.vector = nn.Parameter(flatten(parameters))
        self.vector.grad = torch.zeros_like(self.vector)
        for parameter, gradient in zip(parameters, parts(self.vector.grad, parameters), strict=True):
            parameter.grad = gradient
        super().__init__([self.vector], {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})
        step = torch.zeros((), dtype=torch.float64, device=self.vector.device)
        self.state[self.vector] = {"step": step} | {name: torch.zeros_like(self.vector.data) for name in MOMENTS}

    @torch.no_grad()
    def step(self, taken: Tensor) -> None:  # type: ignore[override]
        """One step where ``taken`` (bool, one value) is true; else nothing changes, whatever the gradients hold."""
        gradient, state, group = self.vector.grad, self.state[self.vector], self.param_groups[0]
        if taken.is_cuda:
            gradient.masked_fill_(~taken, 0)
        elif not taken:
            return  # the host knows it at no cost
        state["step"] += taken
        factors = coefficients(state["step"], taken, group["lr"], *group["betas"], group["eps"])
        self.update(self.vector.data, gradient, *(state[name] for name in MOMENTS), *factors, group["weight_decay"])

    def compile(self) -> None:
        """Let ``step`` be one kernel."""
        self.update = torch.compile(update)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Set all gradients to zero. Raises ValueError for ``set_to_none``."""
        if set_to_none:
            raise ValueError("set_to_none: expected false, gradients are views of one vector")
        self.vector.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """State by parameter, as ``torch.optim.RAdam`` has it; the moments are views of ours."""
        state = self.state[self.vector]
        moments = zip(*(parts(state[name], self.parameters) for name in MOMENTS), strict=True)
        step = state["step"].float().cpu()
        of_each = [{"step": step.clone()} | dict(zip(MOMENTS, pair, strict=True)) for pair in moments]
        group = self.param_groups[0] | {"params": list(range(len(self.parameters)))}
        return {"state": dict(enumerate(of_each)), "param_groups": [group]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state by parameter. Raises ValueError, KeyError or TypeError for one that does not fit."""
        saved, own = state_dict["state"], self.state[self.vector]
        if len(saved) != len(self.parameters):
            raise ValueError(f"expected the state of {len(self.parameters)} parameters, got {len(saved)}")
        for name in MOMENTS:
            for i, part in enumerate(parts(own[name], self.parameters)):
                if saved[i][name].shape != part.shape:
                    raise ValueError(f"{name}: expected {list(part.shape)}, got {list(saved[i][name].shape)}")
                part.copy_(saved[i][name])
        own["step"].fill_(float(saved[0]["step"]))
        (group,) = state_dict["param_groups"]
        self.param_groups[0].update({name: group[name] for name in self.defaults})


def coefficients(
    step: Tensor, taken: Tensor, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of the gradient in both moments, and slope and offset of the update ``m / (slope sqrt(v) + offset)``.

    ``step`` (float64) counts the steps that were taken, this one included. One that is not taken has weights of 0 and
    an infinite offset.
    """
    t = step.clamp(min=1)
    bias1, bias2 = 1 - beta1**t, 1 - beta2**t

    # The variance of the second moment is tractable from the sixth step on
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / bias2
    rectified = rho > 5
    square = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)

    length = lr / bias1 * torch.where(rectified, (square.clamp(min=0) * bias2).sqrt(), 1)
    slope = torch.where(rectified & taken, 1 / length, 0)
    offset = torch.where(taken, torch.where(rectified, eps, 1) / length, torch.inf)
    weight1, weight2, slope, offset = torch.stack([(1 - beta1) * taken, (1 - beta2) * taken, slope, offset]).float()
    return weight1, weight2, slope, offset


def update(
    p: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    slope: Tensor,
    offset: Tensor,
    weight_decay: float,
) -> None:
    """RAdam in place on vectors, with what ``coefficients`` gives; the gradient is used up."""
    if weight_decay:
        gradient.add_(p, alpha=weight_decay)
    exp_avg.lerp_(gradient, weight1)
    exp_avg_sq.lerp_(gradient.square_(), weight2)
    p.addcdiv_(exp_avg, exp_avg_sq.sqrt().mul_(slope).add_(offset), value=-1)
