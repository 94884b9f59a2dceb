"""Samplers: convergence orders and marginals on a Gaussian with its exact denoiser, the oracle, the parity vectors."""

import re
from functools import partial
from itertools import pairwise

import pytest
import torch
from parity import VECTORS, vector, worst

from dbae.bridge import BRIDGES
from dbae.config import SAMPLERS
from dbae.sampler import METHODS, nfe, sample, time_grid

MEAN, VARIANCE = 0.2, 0.09  # of the data distribution N(MEAN, VARIANCE)
SAMPLER_VECTORS = sorted({key.rsplit("/", 1)[0] for key in VECTORS.files if re.match(r"sampler/v[pe]_", key)})


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


@pytest.fixture(params=["vp", "ve"])
def bridge(request):
    return BRIDGES[request.param]()


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_convergence_order(bridge, method, order):
    x_T = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]

    def error(steps):
        ts = torch.linspace(0.8 * bridge.T, 0.1 * bridge.T, steps + 1, dtype=torch.float64)
        x = sample(exact_denoiser(bridge, x_T), bridge, x_T, ts, method)
        return (x - exact_flow(bridge, x_T, ts[0], ts[-1])).abs().max().item()

    errors = [error(steps) for steps in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_default_grid_converges_to_the_flow(bridge, method):
    """From T itself the flow is singular, so the order is lower there, but the error must keep falling."""
    x_T = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]

    def error(steps):
        ts = time_grid(bridge, steps)
        x = sample(exact_denoiser(bridge, x_T), bridge, x_T, ts, method)
        return (x - exact_flow(bridge, x_T, ts[0], 0.0)).abs().max().item()

    errors = [error(steps) for steps in (40, 160, 640)]
    assert errors[0] > 1.2 * errors[1] > 1.44 * errors[2]


@pytest.mark.parametrize("churn", [0.33, 0.9])
def test_churn_reproduces_mean_and_variance(bridge, churn):
    """The SDE starts from x_T exactly and must arrive at the data distribution, through the bridge's marginals."""
    torch.manual_seed(0)
    x_T = torch.full((20_000, 1), 0.4, dtype=torch.float64)
    ts = time_grid(bridge, 1000)
    middle = int((ts > 0.3 * bridge.T).sum())
    for stop in (middle, len(ts)):
        grid = ts[:stop]
        x = sample(exact_denoiser(bridge, x_T), bridge, x_T, grid, "euler", churn)
        mean, std = moments(bridge, grid[-1], 0.4)
        assert x.mean().item() == pytest.approx(mean.item(), abs=0.04 * std.item())
        assert x.std().item() == pytest.approx(std.item(), rel=0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("churn", [0.0, 0.33, 0.9])
def test_oracle_is_reached(bridge, method, churn):
    torch.manual_seed(0)
    x_T, x_0 = torch.rand(2, 5, 3, 4, 4, dtype=torch.float64) * 2 - 1
    x = sample(lambda x, t: x_0, bridge, x_T, time_grid(bridge, 20), method, churn)
    leftover = bridge.abc(torch.tensor(bridge.t_min, dtype=torch.float64))[2]  # noise that the last step still sees
    assert (x - x_0).abs().max() < (5 * leftover if churn else 1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("churn", [0.0, 0.5])
def test_network_and_noise_calls(bridge, method, churn):
    calls, draws = [], []

    def denoise(x, t):
        assert t.shape == (3,) and t.dtype == x.dtype and (t > 0).all()
        calls.append(t)
        return torch.zeros_like(x)

    def noise(x):
        draws.append(x)
        return torch.zeros_like(x)

    sample(denoise, bridge, torch.ones(3, 2), time_grid(bridge, 7), method, churn, noise=noise)
    assert len(calls) == nfe(7, method, churn)
    assert len(draws) == (7 if churn else 0)


def test_every_sampler_of_the_configuration_is_there():
    assert METHODS == SAMPLERS


def test_nfe_of_the_published_commands():
    assert nfe(100, "euler", 0.0) == 100
    assert nfe(333, "euler", 0.33) == 666
    assert nfe(167, "heun", 0.33) == 500
    assert nfe(100, "heun", 0.0) == 199


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_grid(bridge, steps):
    ts = time_grid(bridge, steps)
    assert ts.shape == (steps + 1,) and ts.dtype == torch.float64
    assert ts[0].item() == pytest.approx(bridge.T - 1e-4) and ts[-1] == 0
    assert (ts.diff() < 0).all()
    if steps > 1:
        assert ts[-2].item() == pytest.approx(bridge.t_min)


@pytest.mark.parametrize(("argument", "value"), [("method", "rk4"), ("churn", 1.0), ("churn", -0.1)])
def test_wrong_arguments(bridge, argument, value):
    with pytest.raises(ValueError, match=f"{argument}: expected .* got"):
        sample(lambda x, t: x, bridge, torch.ones(1, 1), time_grid(bridge, 2), **{argument: value})


def toy_denoise(x, t, x_T, y):
    return torch.tanh(0.3 * x + 0.5 * x_T / (1 + t[:, None, None, None]) + y[:, None, None, None])


@pytest.mark.parametrize("name", SAMPLER_VECTORS)
def test_parity(name):
    pattern = r"sampler/(\w+?)_(euler|heun)_n(\d+)_churn([\d.]+)_w([\d.]+)_rho([\d.]+)"
    schedule, method, steps, churn, guidance, rho = re.fullmatch(pattern, name).groups()
    x_T, draws = vector("sampler/x_T"), iter(vector("sampler/noise"))
    bridge = BRIDGES[schedule]()
    ts = time_grid(bridge, int(steps), float(rho))
    denoise = partial(toy_denoise, x_T=x_T, y=vector("sampler/y"))
    x = sample(denoise, bridge, x_T, ts, method, float(churn), float(guidance), lambda x: next(draws))
    assert worst(x, vector(f"{name}/x_0")) < 1e-9
    assert torch.allclose(ts, vector(f"{name}/sigmas"), rtol=1e-12, atol=0)
    assert nfe(int(steps), method, float(churn)) == vector(f"{name}/nfe").item()


@pytest.mark.parametrize("name", sorted(key for key in VECTORS.files if key.startswith("grid/")))
def test_grid_parity(name):
    schedule, steps, rho = re.fullmatch(r"grid/(v[pe])/n(\d+)_rho([\d.]+)", name).groups()
    assert torch.allclose(time_grid(BRIDGES[schedule](), int(steps), float(rho)), vector(name), rtol=1e-12, atol=0)
