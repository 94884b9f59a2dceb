"""Processes over Gaussian data N(MEAN, VARIANCE): exact marginals, denoiser and flow."""

import pytest
import torch

from dbae.diffusion import VE, VP, Bridge, ConstantBeta, Diffusion, LinearBeta

MEAN, VARIANCE = 0.2, 0.09

BRIDGES = {"bridge-vp": Bridge(VP()), "bridge-ve": Bridge(VE())}
DIFFUSIONS = {"vp": Diffusion(VP()), "ve": Diffusion(VE())}
CHAINS = {"linear": Diffusion(LinearBeta()), "constant": Diffusion(ConstantBeta())}
CONTINUOUS = BRIDGES | DIFFUSIONS
PROCESSES = CONTINUOUS | CHAINS


def over(processes, cases=None, names="sampler"):
    """Parametrize a test by ``process`` and, where ``cases`` are given, by those whose sampler the process has.

    A case is a sampler, or a tuple of values of ``names`` with the sampler first.
    """
    if cases is None:
        return pytest.mark.parametrize("process", processes.values(), ids=processes)
    values = []
    for name, process in processes.items():
        for case in cases:
            case = case if isinstance(case, tuple) else (case,)
            if has(process, case[0]):
                values.append(pytest.param(process, *case, id=f"{name}-{case[0]}"))
    return pytest.mark.parametrize(f"process, {names}", values)


def has(process, sampler):
    """EDM is not for bridges, and the drift not for chains."""
    return sampler != "edm" if isinstance(process, Bridge) else not (process.discrete and sampler in ("euler", "heun"))


def moments(process, t, x_T):
    """Mean and standard deviation of x_t given x_T."""
    a, b, c = process.abc(torch.as_tensor(t).double())
    return a * x_T + b * MEAN, (b**2 * VARIANCE + c**2).sqrt()


def exact_denoiser(process, x_T):
    """E[x_0 | x_t, x_T] for Gaussian data, in the precision of x_t."""

    def denoise(x, t):
        a, b, c = process.abc(t.to(x.dtype))
        mean, variance = a * x_T.to(x.dtype).T + b * MEAN, b**2 * VARIANCE + c**2
        return (MEAN + b * VARIANCE / variance * (x.T - mean)).T

    return denoise


def exact_flow(process, x_T, t_start, t_end):
    """Where the probability-flow ODE takes x = x_T from t_start to t_end: it keeps (x - mean) / std."""
    mean, std = moments(process, t_start, x_T)
    mean_end, std_end = moments(process, t_end, x_T)
    return mean_end + std_end / std * (x_T - mean)
