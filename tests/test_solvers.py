"""Exponential solvers: their formulas, their orders on a Gaussian with its exact denoiser, the marginals they keep."""

import math
from functools import partial
from itertools import pairwise

import pytest
import tiny
import torch
from gaussian import exact_denoiser, exact_flow, moments

from dbae.bridge import BRIDGES
from dbae.config import SCHEDULES
from dbae.io import image_generators, randn_like
from dbae.sampler import sample, time_grid
from dbae.solvers import SOLVERS, booted, dbim, log_snr, multistep, time_at, two_call

ORDERS = {"dbim": 1, "dbim2": 2, "dbim3": 3, "dbm2": 2}


@pytest.fixture(params=["vp", "ve"])
def bridge(request):
    return BRIDGES[request.param]()


@pytest.fixture
def x_T():
    return torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]


def interior(bridge, steps, power=1):
    """From 0.8 T to 0.1 T; ``power`` 2 begins with short steps."""
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** power
    return bridge.T * (0.8 - 0.7 * ramp)


@pytest.mark.parametrize(("method", "order"), ORDERS.items())
def test_convergence_order(bridge, x_T, method, order):
    """At least this order. The first steps of a multistep method are of a lower one, so here they are short."""

    def error(steps):
        ts = interior(bridge, steps, power=2)
        x = sample(exact_denoiser(bridge, x_T), bridge, x_T, ts, method)
        return (x - exact_flow(bridge, x_T, ts[0], ts[-1])).abs().max().item()

    errors = [error(steps) for steps in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine > 2 ** (order - 0.5)


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("grid", ["karras", "logsnr"])
def test_every_solver_converges_to_the_same_flow(bridge, x_T, method, grid):
    """From T - 1e-4 itself, where Euler and Heun start too, down to 0."""

    def error(steps):
        ts = time_grid(bridge, steps, grid=grid)
        x = sample(exact_denoiser(bridge, x_T), bridge, x_T, ts, method)
        return (x - exact_flow(bridge, x_T, ts[0], 0.0)).abs().max().item()

    coarse, fine = error(20), error(320)
    assert coarse > 10 * fine and fine < 5e-5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_first_order_keeps_the_implied_noise_and_adds_the_rest(bridge, x_T, eta):
    s, t = ts = torch.tensor([0.7, 0.2], dtype=torch.float64) * bridge.T
    (a_s, b_s, c_s), (a, b, c) = bridge.abc(s), bridge.abc(t)
    (_, sigma_s), (scale, sigma) = bridge.s_sigma(s), bridge.s_sigma(t)
    x, D, draw = x_T + 0.3, 0.5 * x_T, x_T.flip(0)
    w = eta * scale * sigma * (1 - sigma**2 / sigma_s**2).sqrt()
    eps = (x - a_s * x_T - b_s * D) / c_s
    (row,) = dbim(bridge, ts, eta)
    stepped = row.k_x * x + row.k_T * x_T + row.k_D[0] * D + row.k_eps * draw
    assert torch.allclose(stepped, a * x_T + b * D + (c**2 - w**2).sqrt() * eps + w * draw, rtol=1e-12)


def test_eta_1_is_the_markov_chain_of_the_bridge(bridge):
    """The covariance of x_s and x_t given both ends is that of the conditioned process (t < s < T)."""
    ts = time_grid(bridge, 10)[:-1]
    scale, sigma = bridge.s_sigma(ts)
    _, sigma_T = bridge.s_sigma(torch.tensor(bridge.T, dtype=torch.float64))
    kept = torch.tensor([row.k_x for row in dbim(bridge, ts, eta=1.0)], dtype=torch.float64)
    bridged = scale[1:] * scale[:-1] * sigma[1:] ** 2 * (1 - sigma[:-1] ** 2 / sigma_T**2)
    assert torch.allclose(kept * bridge.abc(ts[:-1])[2] ** 2, bridged, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_weights_integrate_polynomials(bridge, order):
    """``sum_j k_D[j] p(lam_j) = b int exp(lam - lam_t) p(lam) dlam``, by fine quadrature."""
    ts = interior(bridge, 4)
    lam, b = log_snr(bridge, ts), bridge.abc(ts)[1]
    fine = torch.linspace(lam[3], lam[4], 20_001, dtype=torch.float64)
    row = multistep(bridge, ts, order)[-1]
    assert len(row.k_D) == order
    for power in range(order):
        integral = b[4] * torch.trapezoid((fine - lam[4]).exp() * fine**power, fine)
        total = sum(k * lam[3 - j] ** power for j, k in enumerate(row.k_D))
        assert total.item() == pytest.approx(integral.item(), rel=1e-7)


@pytest.mark.parametrize("method", ORDERS)
def test_a_constant_estimate_is_integrated_exactly(bridge, x_T, method):
    def flow(method, steps):
        return sample(lambda x, t: 0.3 * x_T, bridge, x_T, interior(bridge, steps), method)

    assert torch.allclose(flow(method, 3), flow("dbim", 1), rtol=1e-10)
    to_zero = sample(lambda x, t: 0.3 * x_T, bridge, x_T, time_grid(bridge, 5), method)
    assert torch.allclose(to_zero, 0.3 * x_T, rtol=1e-12)


def test_two_calls_are_exact_for_an_estimate_linear_in_lambda(bridge, x_T):
    def flow(steps):
        return sample(lambda x, t: log_snr(bridge, t)[:, None] * x_T, bridge, x_T, interior(bridge, steps), "dbm2")

    assert torch.allclose(flow(1), flow(50), rtol=1e-9)


def test_two_calls_agree_with_dbmsolver(bridge, x_T):
    """DBMSolver interpolates D in the log of sigma instead: one step differs by the cube of its length."""

    def difference(length):
        s, t = ts = bridge.T * torch.tensor([0.5, 0.5 - length], dtype=torch.float64)
        first, second = two_call(bridge, ts)
        three = torch.stack([s, ts.new_tensor(second.t), t])
        denoise = exact_denoiser(bridge, x_T)
        D_s = denoise(x_T, s.expand(8))
        x_m = first.k_x * x_T + first.k_T * x_T + first.k_D[0] * D_s
        D_m = denoise(x_m, three[1].expand(8))
        ours = second.k_x * x_m + second.k_T * x_T + second.k_D[0] * D_m + second.k_D[1] * D_s

        scale, sigma = bridge.s_sigma(three)
        q, q_T = sigma**-2, bridge.s_sigma(ts.new_tensor(bridge.T))[1] ** -2
        L, R = q.log() / 2, q / q_T - 1
        brackets = (R[2].sqrt().atan() - R[0].sqrt().atan()) / R[2].sqrt() + L[2] - L[0] - 1 + (R[0] / R[2]).sqrt()
        factor = scale[2] * R[2] * q_T / q[2] / (L[1] - L[0]) * brackets
        (step,) = dbim(bridge, ts)
        theirs = step.k_x * x_T + step.k_T * x_T + step.k_D[0] * D_s + factor * (D_m - D_s)
        return (ours - theirs).abs().max().item()

    differences = [difference(length) for length in (0.04, 0.02, 0.01)]
    for coarse, fine in pairwise(differences):
        assert coarse / fine == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_boot_and_eta_give_the_marginals(bridge, eta):
    """Started by a draw from the bridge, x has its mean and variance on the way, and the data's at 0."""
    generator = torch.Generator().manual_seed(0)
    x_T = torch.full((10_000, 1), 0.4, dtype=torch.float64)
    ts, denoise = time_grid(bridge, 300), exact_denoiser(bridge, x_T)
    for stop in (int((ts > 0.3 * bridge.T).sum()), len(ts)):
        noise = partial(randn_like, generator=generator)
        x = sample(denoise, bridge, x_T, ts[:stop], "dbim", noise=noise, eta=eta, boot=True)
        mean, std = moments(bridge, ts[stop - 1], 0.4)
        assert x.mean().item() == pytest.approx(mean.item(), abs=0.04 * std.item())
        assert x.std().item() == pytest.approx(std.item(), rel=0.03)


@pytest.mark.parametrize("method", ORDERS)
def test_boot_draws_the_first_state(bridge, x_T, method):
    ts, draw, D = time_grid(bridge, 4), x_T.flip(0), 0.3 * x_T
    a, b, c = bridge.abc(ts[0])
    seen = []
    sample(lambda x, t: seen.append(x) or D, bridge, x_T, ts, method, noise=lambda x: draw, boot=True)
    first = SOLVERS[method](bridge, ts, 0.0)[0]
    expected = first.k_x * (a * x_T + b * D + c * draw) + first.k_T * x_T + first.k_D[0] * D
    assert torch.equal(seen[0], x_T) and torch.allclose(seen[1], expected, rtol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_after_boot_all_noise_is_fresh(bridge, eta):
    """Whatever part of it eta draws again, one draw of standard deviation c at the end of the first step."""
    ts = time_grid(bridge, 5)
    first = booted(dbim(bridge, ts, eta), bridge, ts[0])[0]
    a, b, c = bridge.abc(ts[1])
    assert first.k_x == 0 and first.k_eps == pytest.approx(c.item(), rel=1e-9)
    assert (first.k_T, *first.k_D) == pytest.approx((a.item(), b.item()), rel=1e-9)


@pytest.mark.parametrize("options", [{"boot": True}, {"eta": 0.7}])
def test_an_image_does_not_depend_on_its_batch(options):
    bridge, x_T = BRIDGES["vp"](), torch.rand(6, 3, 4, 4)

    def images(part, seed=0):
        noise = partial(randn_like, generator=image_generators(seed, range(6)[part]))
        return sample(lambda x, t: x.tanh(), bridge, x_T[part], time_grid(bridge, 4), "dbim", noise=noise, **options)

    whole = images(slice(None))
    assert torch.allclose(whole, torch.cat([images(slice(0, 2)), images(slice(2, 6))]), atol=1e-6)
    assert not torch.allclose(whole, images(slice(None), seed=1), atol=1e-2)


def test_time_at_inverts_log_snr(bridge):
    ts = time_grid(bridge, 30)[:-1]
    assert torch.allclose(time_at(bridge, log_snr(bridge, ts)), ts, rtol=1e-9)
    assert math.isinf(log_snr(bridge, torch.zeros(1)).item())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", [*ORDERS, "one-step"])
def test_a_model_takes_every_solver(schedule, sampler):
    model, x = tiny.model(schedule=schedule), tiny.images(2)
    x_0 = model.reconstruct(x, steps=3, sampler=sampler, grid="logsnr")
    assert x_0.shape == x.shape and x_0.dtype == torch.float32 and x_0.abs().max() <= 1
    assert torch.equal(x_0, model.reconstruct(x, steps=3, sampler=sampler)) == (sampler == "one-step")


@pytest.mark.parametrize("options", [{"eta": 0.5}, {"boot": True}, {"grid": "uniform"}])
def test_a_model_passes_every_option(options):
    model, x = tiny.model(), tiny.images(2)

    def settings(**options):
        return {"steps": 3, "sampler": "dbim", "generator": image_generators(0, range(2)), **options}

    x_0 = model.reconstruct(x, **settings(**options))
    assert not torch.allclose(x_0, model.reconstruct(x, **settings()), atol=1e-4)
    assert torch.equal(x_0, model.generate_from(model.encode(x).detach(), **settings(**options)))
