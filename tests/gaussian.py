"""Processes over Gaussian data N(MEAN, VARIANCE): exact marginals, denoiser and flow; vectors of DiffAE and DDAE."""

import numpy as np
import pytest
import torch
from parity import FOLDER

from dbae.diffusion import VE, VP, Bridge, ConstantBeta, Diffusion, LinearBeta

MEAN, VARIANCE = 0.2, 0.09
SIBLINGS = np.load(FOLDER / "diffusion.npz")

BRIDGES = {"bridge-vp": Bridge(VP()), "bridge-ve": Bridge(VE())}
DIFFUSIONS = {"vp": Diffusion(VP()), "ve": Diffusion(VE())}
CHAINS = {"linear": Diffusion(LinearBeta()), "constant": Diffusion(ConstantBeta())}
CONTINUOUS = BRIDGES | DIFFUSIONS
PROCESSES = CONTINUOUS | CHAINS


def sibling(name):
    """A stored array of DiffAE or DDAE."""
    return torch.from_numpy(SIBLINGS[name])


def over(processes, cases=None, names="sampler"):
    """Parametrize by ``process`` and by the ``cases`` whose sampler, the first of their ``names``, the process has."""
    if cases is None:
        return pytest.mark.parametrize("process", processes.values(), ids=processes)
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    pairs = [(name, case) for name in processes for case in cases if has(processes[name], case[0])]
    values = [pytest.param(processes[name], *case, id=f"{name}-{case[0]}") for name, case in pairs]
    return pytest.mark.parametrize(f"process, {names}", values)


def has(process, sampler):
    """EDM and DDPM's large variance are not for bridges, and the drift not for chains."""
    if isinstance(process, Bridge):
        return sampler not in ("edm", "ddpm-large")
    return not (process.discrete and sampler in ("euler", "heun"))


def moments(process, t, x_T):
    """Mean and standard deviation of x_t given x_T."""
    a, b, c = process.abc(torch.as_tensor(t).double())
    return a * x_T + b * MEAN, (b**2 * VARIANCE + c**2).sqrt()


def exact_denoiser(process, x_T):
    """E[x_0 | x_t, x_T] for Gaussian data, in the precision of x_t."""

    def denoise(x, t):
        a, b, c = process.abc(t[:1].to(x.dtype))  # all times are the same
        mean, variance = a * x_T.to(x.dtype).T + b * MEAN, b**2 * VARIANCE + c**2
        return (MEAN + b * VARIANCE / variance * (x.T - mean)).T

    return denoise


def exact_flow(process, x_T, t_start, t_end):
    """Where the probability-flow ODE takes x = x_T from t_start to t_end: it keeps (x - mean) / std."""
    mean, std = moments(process, t_start, x_T)
    mean_end, std_end = moments(process, t_end, x_T)
    return mean_end + std_end / std * (x_T - mean)
