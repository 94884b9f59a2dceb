"""The rows of every sampler: formulas, orders on a Gaussian with its exact denoiser, marginals, DDIM and DDPM."""

import math
from itertools import pairwise

import pytest
import torch
from gaussian import BRIDGES, CHAINS, CONTINUOUS, DIFFUSIONS, PROCESSES, exact_denoiser, exact_flow, moments, over

from dbae.diffusion import SOLVERS, index_grid, sample, time_grid
from dbae.diffusion.solvers import booting_noise, dbim, dbm2

DRIFT = ("euler", "heun")  # the samplers that follow the drift, with churn and guidance
SECOND_ORDER = ("dbim2", "dbim3", "dbm2", "edm")  # and above
EXPONENTIAL = ("dbim", "dbim2", "dbim3", "dbm2")
ORDERS = {"euler": 1, "heun": 2, "dbim": 1, "dbim2": 2, "dbim3": 3, "dbm2": 2, "edm": 2}


def normal(seed=0):
    """A function like ``torch.randn_like`` with a stream of its own."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def distance(process, x_T, ts, sampler):
    """Largest error of a sampler with the exact denoiser."""
    x = sample(exact_denoiser(process, x_T), process, x_T, ts, sampler)
    return (x - exact_flow(process, x_T, ts[0], ts[-1])).abs().max().item()


@pytest.fixture
def x_T():
    return torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]


def interior(process, steps, power=1):
    """A grid away from both ends, even in t or log snr; ``power`` above 1 begins with short steps."""
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** power
    if process in BRIDGES.values():
        return process.T * (0.8 - 0.7 * ramp)
    return process.time_at(ramp * math.log(10))  # sigma from 1 to 0.1


@over(CONTINUOUS, ORDERS.items(), "sampler, order")
def test_convergence_order(process, x_T, sampler, order):
    """At least this order. The first steps of a multistep sampler are of a lower one, so here they are short."""
    grids = [interior(process, steps, power=1 if sampler in DRIFT else 2) for steps in (40, 80, 160)]
    errors = [distance(process, x_T, ts, sampler) for ts in grids]
    for coarse, fine in pairwise(errors):
        if sampler in DRIFT:
            assert coarse / fine == pytest.approx(2**order, rel=0.1)
        else:
            assert coarse / fine > 2 ** (order - 0.5)


@over(CONTINUOUS, ["dbim", *SECOND_ORDER])
@pytest.mark.parametrize("grid", ["karras", "logsnr"])
def test_every_solver_converges_to_the_same_flow(process, x_T, sampler, grid):
    """From the first time itself, where Euler and Heun start too, down to the data."""
    coarse, fine = (distance(process, x_T, time_grid(process, steps, grid=grid), sampler) for steps in (20, 320))
    assert coarse > 10 * fine and fine < (5e-5 if process in BRIDGES.values() else 2e-3)


@over(CHAINS)
@pytest.mark.parametrize("sampler", ["ddim", *SECOND_ORDER])
@pytest.mark.parametrize("grid", ["karras", "logsnr"])
def test_every_solver_converges_on_a_chain(process, x_T, sampler, grid):
    """As far as a chain of 1000 allows; the step from index 0 to the data is exact for no solver."""
    errors = [distance(process, x_T, time_grid(process, steps, grid=grid)[:-1], sampler) for steps in (5, 10, 80)]
    assert max(errors[:2]) > 3 * errors[2] and errors[2] < 3e-2


@over(BRIDGES)
@pytest.mark.parametrize("sampler", DRIFT)
def test_drift_converges_from_the_end_of_the_bridge(process, x_T, sampler):
    """At T itself the flow is singular, so the order is lower there, but the error must keep falling."""
    errors = [distance(process, x_T, time_grid(process, steps), sampler) for steps in (40, 160, 640)]
    assert errors[0] > 1.2 * errors[1] > 1.44 * errors[2]


@over(BRIDGES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_first_order_keeps_the_implied_noise_and_adds_the_rest(process, x_T, eta):
    s, t = ts = torch.tensor([0.7, 0.2], dtype=torch.float64) * process.T
    (a_s, b_s, c_s), (a, b, c) = process.abc(s), process.abc(t)
    (_, sigma_s), (scale, sigma) = process.schedule.s_sigma(s), process.schedule.s_sigma(t)
    x, D, draw = x_T + 0.3, 0.5 * x_T, x_T.flip(0)
    w = eta * scale * sigma * (1 - sigma**2 / sigma_s**2).sqrt()
    eps = (x - a_s * x_T - b_s * D) / c_s
    (row,) = dbim(process, ts, eta=eta)
    stepped = row.k_x[0] * x + row.k_T * x_T + row.k_D[0] * D + row.k_eps * draw
    assert torch.allclose(stepped, a * x_T + b * D + (c**2 - w**2).sqrt() * eps + w * draw, rtol=1e-12)


@over(PROCESSES)
def test_eta_1_is_the_markov_chain_of_the_process(process):
    """The covariance of x_s and x_t given x_0 (and x_T) is that of the conditioned process (t < s < T)."""
    ts = time_grid(process, 10)[:-1].double()
    scale, sigma = process.schedule.s_sigma(ts)
    kept = torch.tensor([row.k_x[0] for row in dbim(process, ts, eta=1.0)], dtype=torch.float64)
    covariance = scale[1:] * scale[:-1] * sigma[1:] ** 2
    if process in BRIDGES.values():
        covariance = covariance * (1 - sigma[:-1] ** 2 / process.sigma_T**2)
    assert torch.allclose(kept * process.abc(ts[:-1])[2] ** 2, covariance, rtol=1e-9)


@over(CONTINUOUS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_weights_integrate_polynomials(process, order):
    """``sum_j k_D[j] p(lam_j) = b int exp(lam - lam_t) p(lam) dlam``, by fine quadrature."""
    ts = interior(process, 4)
    lam, b = process.log_snr(ts), process.abc(ts)[1]
    fine = torch.linspace(lam[3], lam[4], 20_001, dtype=torch.float64)
    row = dbim(process, ts, order)[-1]
    assert len(row.k_D) == order
    for power in range(order):
        integral = b[4] * torch.trapezoid((fine - lam[4]).exp() * fine**power, fine)
        total = sum(k * lam[3 - j] ** power for j, k in enumerate(row.k_D))
        assert total.item() == pytest.approx(integral.item(), rel=1e-7)


@over(BRIDGES)
@pytest.mark.parametrize("sampler", EXPONENTIAL)
def test_a_constant_estimate_is_integrated_exactly(process, x_T, sampler):
    def flow(sampler, steps):
        return sample(lambda x, t: 0.3 * x_T, process, x_T, interior(process, steps), sampler)

    assert torch.allclose(flow(sampler, 3), flow("dbim", 1), rtol=1e-10)


@over(CONTINUOUS)
def test_two_calls_are_exact_for_an_estimate_linear_in_lambda(process, x_T):
    def flow(steps):
        return sample(lambda x, t: process.log_snr(t)[:, None] * x_T, process, x_T, interior(process, steps), "dbm2")

    assert torch.allclose(flow(1), flow(50), rtol=1e-9)


@over(BRIDGES)
def test_two_calls_agree_with_dbmsolver(process, x_T):
    """DBMSolver interpolates D in the log of sigma instead: one step differs by the cube of its length."""

    def difference(length):
        s, t = ts = process.T * torch.tensor([0.5, 0.5 - length], dtype=torch.float64)
        first, second = dbm2(process, ts)
        three = torch.stack([s, ts.new_tensor(second.t), t])
        denoise = exact_denoiser(process, x_T)
        D_s = denoise(x_T, s.expand(8))
        x_m = first.k_x[0] * x_T + first.k_T * x_T + first.k_D[0] * D_s
        D_m = denoise(x_m, three[1].expand(8))
        ours = second.k_x[0] * x_m + second.k_T * x_T + second.k_D[0] * D_m + second.k_D[1] * D_s

        scale, sigma = process.schedule.s_sigma(three)
        q, q_T = sigma**-2, process.sigma_T**-2
        L, R = q.log() / 2, q / q_T - 1
        brackets = (R[2].sqrt().atan() - R[0].sqrt().atan()) / R[2].sqrt() + L[2] - L[0] - 1 + (R[0] / R[2]).sqrt()
        factor = scale[2] * R[2] * q_T / q[2] / (L[1] - L[0]) * brackets
        (step,) = dbim(process, ts)
        theirs = step.k_x[0] * x_T + step.k_T * x_T + step.k_D[0] * D_s + factor * (D_m - D_s)
        return (ours - theirs).abs().max().item()

    differences = [difference(length) for length in (0.04, 0.02, 0.01)]
    for coarse, fine in pairwise(differences):
        assert coarse / fine == pytest.approx(8, rel=0.1)


@over(DIFFUSIONS)
@pytest.mark.parametrize("S_churn", [0.0, 9.0])
def test_edm_is_algorithm_2(process, S_churn):
    """Against EDM's algorithm 2 in y = x / s, written out."""
    x, ts = torch.full((3, 2), 1.5, dtype=torch.float64) * process.T, time_grid(process, 18)
    settings, noise = {"S_churn": S_churn, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.007}, normal()

    def scaled(t):
        return [value.item() for value in process.schedule.s_sigma(t)]

    y = x / scaled(ts[0])[0]
    for t, t_end in pairwise(ts):
        (_, sigma), (_, sigma_end) = scaled(t), scaled(t_end)
        gamma = min(S_churn / 18, 2**0.5 - 1) if 0.05 <= sigma <= 50 else 0.0
        t_hat = process.schedule.time_at(torch.tensor(sigma * (1 + gamma), dtype=torch.float64))
        s_hat, sigma_hat = scaled(t_hat)
        y_hat = y + (sigma_hat**2 - sigma**2) ** 0.5 * 1.007 * noise(x) if gamma else y
        d = (y_hat - (s_hat * y_hat).tanh()) / sigma_hat
        y = y_hat + (sigma_end - sigma_hat) * d
        if t_end > 0:
            d_end = (y - (scaled(t_end)[0] * y).tanh()) / sigma_end
            y = y_hat + (sigma_end - sigma_hat) * (d + d_end) / 2
    ours = sample(lambda x, t: x.tanh(), process, x, ts, "edm", noise=normal(), **settings)
    assert torch.allclose(ours, y, rtol=1e-9)


@over(CHAINS)
def test_edm_on_a_chain_churns_to_the_nearest_index(process):
    """The state is noised exactly to the level of the index that the network is given."""
    seen, ts = [], time_grid(process, 10)
    sample(lambda x, t: seen.append((x, t)) or x * 0, process, torch.zeros(9, 1), ts, "edm", S_churn=4.0)
    sigma = process.schedule.s_sigma(torch.arange(process.T))[1]
    for (x, t), start in zip(seen[2:19:2], ts[1:], strict=False):
        wanted = (sigma - 1.4 * sigma[start]).abs().argmin()
        assert (t == wanted).all() and t.dtype == torch.int64 and x.isfinite().all()


@over(BRIDGES, [("euler", 0.33), ("euler", 0.9), ("dbim", 0.0), ("dbim", 0.5), ("dbim", 1.0)], "sampler, share")
def test_noise_gives_the_marginals_of_a_bridge(process, sampler, share):
    """The SDE starts from x_T exactly, DBIM by a draw; both have the bridge's marginals and arrive at the data's."""
    settings, steps = ({"churn": share}, 600) if sampler == "euler" else ({"eta": share, "boot": True}, 300)
    x_T, ts = torch.full((10_000, 1), 0.4, dtype=torch.float64), time_grid(process, steps)
    for stop in (int((ts > 0.3 * process.T).sum()), len(ts)):
        x = sample(exact_denoiser(process, x_T), process, x_T, ts[:stop], sampler, noise=normal(), **settings)
        assert_moments(x, *moments(process, ts[stop - 1], 0.4), rel=0.05 if sampler == "euler" else 0.03)


NOISY = [("ddim", {}), ("ddim", {"eta": 0.5}), ("ddpm", {}), ("edm", {"S_churn": 100.0})]
NOISY += [(sampler, {"churn": 0.5}) for sampler in DRIFT]


@over(DIFFUSIONS | CHAINS, NOISY, "sampler, settings")
def test_noise_gives_the_marginals_of_a_diffusion(process, sampler, settings):
    ts, noise = time_grid(process, 300, grid="logsnr"), normal()
    mean, std = moments(process, ts[0], 0.0)
    x_start = mean + std * noise(torch.empty(10_000, 1, dtype=torch.float64))
    for stop in (150, 300):  # before the last step, to the data, which leaves out what D does not know
        x = sample(exact_denoiser(process, x_start), process, x_start, ts[:stop], sampler, noise=noise, **settings)
        assert_moments(x, *moments(process, ts[stop - 1], 0.0))


def assert_moments(x, mean, std, rel=0.05):
    assert x.mean().item() == pytest.approx(mean.item(), abs=0.04 * std.item())
    assert x.std().item() == pytest.approx(std.item(), rel=rel)


@over(BRIDGES)
@pytest.mark.parametrize("sampler", EXPONENTIAL)
def test_boot_draws_the_first_state(process, x_T, sampler):
    ts, draw, D = time_grid(process, 4), x_T.flip(0), 0.3 * x_T
    a, b, c = process.abc(ts[0])
    seen = []
    sample(lambda x, t: seen.append(x) or D, process, x_T, ts, sampler, noise=lambda x: draw, boot=True)
    first = SOLVERS[sampler].updates(process, ts, **({"eta": 0.0} if sampler == "dbim" else {}))[0]
    expected = first.k_x[0] * (a * x_T + b * D + c * draw) + first.k_T * x_T + first.k_D[0] * D
    assert torch.equal(seen[0], x_T) and torch.allclose(seen[1], expected, rtol=1e-10)


@over(BRIDGES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_after_boot_all_noise_is_fresh(process, eta):
    """Whatever part of it eta draws again, one draw of standard deviation c at the end of the first step."""
    ts = time_grid(process, 5)
    first = booting_noise(dbim(process, ts, eta=eta), process, ts[0])[0]
    a, b, c = process.abc(ts[1])
    assert not any(first.k_x) and first.k_eps == pytest.approx(c.item(), rel=1e-9)
    assert (first.k_T, *first.k_D) == pytest.approx((a.item(), b.item()), rel=1e-9)


@over(BRIDGES, [(sampler, {}) for sampler in SOLVERS] + [("heun", {"churn": 0.9})], "sampler, settings")
def test_a_constant_estimate_is_reached(process, x_T, sampler, settings):
    x = sample(lambda x, t: 0.3 * x_T, process, x_T, time_grid(process, 20), sampler, noise=normal(), **settings)
    leftover = process.abc(torch.tensor(process.t_min, dtype=torch.float64))[2]  # noise that the last step still sees
    assert (x - 0.3 * x_T).abs().max() < (5 * leftover if settings else 1e-3 if sampler in DRIFT else 1e-12)


def toy_eps(x, t):
    return torch.tanh(0.6 * x + 0.3 * torch.cos(t.double() / 150)[:, None])


@over(CHAINS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ddim_formulas(process, x_T, eta, clip):
    """Straight-line DDIM with the noise derived again from the clamped x_0; eta 1 is also the DDPM posterior step."""

    def denoise(x, t):
        _, b, c = (value[:, None] for value in process.abc(t.double()))
        x_0 = (x - c * toy_eps(x, t)) / b
        return x_0 if clip is None else x_0.clamp(-clip, clip)

    linear = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    betas = linear if process is CHAINS["linear"] else torch.full_like(linear, 0.008)
    alpha_bar = (1 - betas).cumprod(0)
    draws = torch.randn(20, 8, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = posterior = x_T
    for i, t in enumerate(range(950, -1, -50)):
        A, A_prev = alpha_bar[t], alpha_bar[t - 50] if t > 0 else torch.ones(())
        sigma = eta * ((1 - A_prev) / (1 - A)).sqrt() * (1 - A / A_prev).sqrt()
        drawn = draws[i] if t > 0 else 0 * x

        eps = toy_eps(x, torch.full((8,), t))
        x_0 = (x - (1 - A).sqrt() * eps) / A.sqrt()
        x_0 = x_0 if clip is None else x_0.clamp(-clip, clip)
        eps = (x - A.sqrt() * x_0) / (1 - A).sqrt()
        beta = 1 - A / A_prev
        if eta == 1:
            mean = beta * A_prev.sqrt() / (1 - A) * x_0 + (1 - A_prev) * (1 - beta).sqrt() / (1 - A) * x
            posterior = mean + ((1 - A_prev) / (1 - A) * beta).sqrt() * drawn
        x = A_prev.sqrt() * x_0 + (1 - A_prev - sigma**2).clamp(min=0).sqrt() * eps + sigma * drawn
        assert eta != 1 or torch.allclose(x, posterior, rtol=1e-12, atol=1e-13)

    stream = iter(draws)
    ts = index_grid(process, 20)
    ours = sample(denoise, process, x_T, ts, "ddim", eta=eta, noise=lambda x: next(stream))
    assert torch.allclose(ours, x, rtol=1e-12, atol=1e-12)
    if eta == 1:
        stream = iter(draws)
        ddpm = sample(denoise, process, x_T, ts, "ddpm", noise=lambda x: next(stream))
        assert torch.equal(ddpm, ours)


@over(DIFFUSIONS | CHAINS)
@pytest.mark.parametrize(("sampler", "tolerance"), [("ddim", 0.3), *((name, 0.05) for name in SECOND_ORDER)])
def test_samplers_invert_themselves(process, sampler, tolerance):
    """On increasing times they follow the flow up, and on the same ones backwards return."""
    x_0 = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    denoise, ts = exact_denoiser(process, x_0), time_grid(process, 40, grid="logsnr")[:-1]
    x_T = sample(denoise, process, x_0, ts.flip(0), sampler)
    _, std = moments(process, ts[0], 0.0)
    assert torch.allclose(x_T / std, exact_flow(process, x_0, ts[-1], ts[0]) / std, rtol=0, atol=tolerance)
    assert torch.allclose(sample(denoise, process, x_T, ts, sampler), x_0, rtol=0, atol=tolerance)


@over(PROCESSES)
def test_first_order_where_the_noise_ends(process, x_T):
    """Into the data, and into pure noise, every exponential solver takes DDIM's step."""
    ts = time_grid(process, 3)
    ts = ts if not process.discrete else torch.cat([ts[:-1].flip(0), torch.tensor([process.T])])
    for sampler in ("dbim2", "dbim3", "dbm2"):
        last = SOLVERS[sampler].updates(process, ts.double())[-1]
        assert last == dbim(process, ts[-2:].double())[0]
