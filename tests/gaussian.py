"""Bridges over Gaussian data N(MEAN, VARIANCE): exact marginals, denoiser and flow, float64."""

import torch

MEAN, VARIANCE = 0.2, 0.09


def moments(bridge, t, x_T):
    """Mean and standard deviation of x_t given x_T."""
    a, b, c = bridge.abc(torch.as_tensor(t, dtype=torch.float64))
    return a * x_T + b * MEAN, (b**2 * VARIANCE + c**2).sqrt()


def exact_denoiser(bridge, x_T):
    """E[x_0 | x_t, x_T] for Gaussian data."""

    def denoise(x, t):
        _, b, _ = bridge.abc(t)
        mean, std = moments(bridge, t, x_T.T)
        return (MEAN + b * VARIANCE / std**2 * (x.T - mean)).T

    return denoise


def exact_flow(bridge, x_T, t_start, t_end):
    """Where the probability-flow ODE takes x = x_T from t_start to t_end: it keeps (x - mean) / std."""
    mean, std = moments(bridge, t_start, x_T)
    mean_end, std_end = moments(bridge, t_end, x_T)
    return mean_end + std_end / std * (x_T - mean)
