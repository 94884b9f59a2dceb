"""Samplers: convergence orders and marginals on a Gaussian with its exact denoiser, the oracle, the parity vectors."""

import re
from functools import partial
from itertools import pairwise

import pytest
import torch
from gaussian import exact_denoiser, exact_flow, moments
from parity import VECTORS, vector, worst

from dbae.bridge import BRIDGES
from dbae.config import GRIDS as GRID_NAMES
from dbae.config import NEUTRAL, SAMPLERS
from dbae.sampler import GRIDS, METHODS, nfe, sample, time_grid

DRIFT = ("euler", "heun")  # the methods that follow the drift, with churn and guidance

SAMPLER_VECTORS = sorted({key.rsplit("/", 1)[0] for key in VECTORS.files if re.match(r"sampler/v[pe]_", key)})


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


@pytest.mark.parametrize("method", DRIFT)
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


@pytest.mark.parametrize("method", DRIFT)
@pytest.mark.parametrize("churn", [0.0, 0.33, 0.9])
def test_oracle_is_reached(bridge, method, churn):
    torch.manual_seed(0)
    x_T, x_0 = torch.rand(2, 5, 3, 4, 4, dtype=torch.float64) * 2 - 1
    x = sample(lambda x, t: x_0, bridge, x_T, time_grid(bridge, 20), method, churn)
    leftover = bridge.abc(torch.tensor(bridge.t_min, dtype=torch.float64))[2]  # noise that the last step still sees
    assert (x - x_0).abs().max() < (5 * leftover if churn else 1e-3)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(
    ("method", "options", "draws"),
    [(method, {}, lambda steps: 0) for method in METHODS]
    + [(method, {"churn": 0.5}, lambda steps: steps) for method in DRIFT]
    + [(method, {"boot": True}, lambda steps: steps > 1) for method in ("dbim", "dbim2", "dbim3", "dbm2")]
    + [("dbim", {"eta": eta, "boot": eta < 1}, lambda steps: steps - 1) for eta in (0.5, 1.0)],
)
def test_network_and_noise_calls(bridge, steps, method, options, draws):
    calls, drawn = [], []

    def denoise(x, t):
        assert t.shape == (3,) and t.dtype == x.dtype and (t > 0).all()
        calls.append(t)
        return torch.zeros_like(x)

    def noise(x):
        drawn.append(x)
        return torch.zeros_like(x)

    x_T = torch.ones(3, 2)
    x = sample(denoise, bridge, x_T, time_grid(bridge, steps), method, noise=noise, **options)
    assert x.dtype == x_T.dtype and x.isfinite().all() and (x_T == 1).all()
    assert len(calls) == nfe(steps, method, options.get("churn", 0.0))
    assert len(drawn) == draws(steps)


def test_everything_of_the_configuration_is_there():
    assert list(METHODS) == list(SAMPLERS)
    assert tuple(GRIDS) == GRID_NAMES
    assert {option for reads in SAMPLERS.values() for option in reads} == set(NEUTRAL)


def test_nfe_of_the_published_commands():
    assert nfe(100, "euler", 0.0) == 100
    assert nfe(333, "euler", 0.33) == 666
    assert nfe(167, "heun", 0.33) == 500
    assert nfe(100, "heun", 0.0) == 199
    assert nfe(100, "one-step") == 1


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
@pytest.mark.parametrize("grid", GRIDS)
def test_grid(bridge, steps, grid):
    ts = time_grid(bridge, steps, grid=grid)
    assert ts.shape == (steps + 1,) and ts.dtype == torch.float64
    assert ts[0].item() == pytest.approx(bridge.T - 1e-4) and ts[-1] == 0
    assert (ts.diff() < 0).all()
    if steps > 1:
        assert ts[-2].item() == pytest.approx(bridge.t_min)


@pytest.mark.parametrize(
    ("grid", "scale"),
    [
        ("karras", lambda bridge, ts: ts ** (1 / 7)),
        ("uniform", lambda bridge, ts: ts),
        ("logsnr", lambda bridge, ts: (bridge.abc(ts)[1] / bridge.abc(ts)[2]).log()),
    ],
)
def test_grid_is_even_in_its_own_scale(bridge, grid, scale):
    steps = scale(bridge, time_grid(bridge, 12, grid=grid)[:-1]).diff()
    assert torch.allclose(steps, steps[:1].expand(11), rtol=1e-7)


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "rk4"},
        {"churn": 1.0},
        {"churn": -0.1},
        {"method": "dbim", "eta": 1.1},
        {"method": "dbim", "eta": -0.1},
        {"method": "dbim", "churn_step_ratio": 0.33},
        {"method": "dbm2", "guidance": 2.0},
        {"method": "dbim2", "eta": 0.5},
        {"method": "heun", "boot": True},
        {"method": "one-step", "boot": True},
    ],
)
def test_wrong_arguments(bridge, arguments):
    with pytest.raises(ValueError, match=f"{list(arguments)[-1]}: expected .* got"):
        renamed = {name.removesuffix("_step_ratio"): value for name, value in arguments.items()}
        sample(lambda x, t: x, bridge, torch.ones(1, 1), time_grid(bridge, 2), **renamed)


def test_unknown_grid(bridge):
    with pytest.raises(ValueError, match="grid: expected one of karras, uniform, logsnr, got 'cosine'"):
        time_grid(bridge, 2, grid="cosine")


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
