"""Schedules, processes and preconditionings: identities, the official drift, the parity vectors."""

import copy

import pytest
import torch
from gaussian import BRIDGES, CHAINS, CONTINUOUS, DIFFUSIONS, PROCESSES, over, sibling
from parity import vector

from dbae.diffusion import VE, VP, Bridge, Diffusion, Epsilon, Identity, Karras, LinearBeta


def times(process, n=50):
    if process.discrete:
        return torch.arange(0, process.T, process.T // n).double()
    return torch.linspace(process.t_min, process.T - 1e-4, n, dtype=torch.float64)


@over(BRIDGES)
def test_ends_of_a_bridge(process):
    ends = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(torch.stack(process.abc(torch.tensor([0.0, process.T], dtype=torch.float64))), ends)


@over(CHAINS)
def test_ends_of_a_chain(process):
    """The data at -1 and pure noise at T, without infinity times zero, for float and integer indices."""
    for t in (torch.tensor([-1, process.T]), torch.tensor([-1.0, process.T])):
        assert torch.stack(process.abc(t)).tolist() == [[0, 0], [1, 0], [0, 1]]
    assert process.log_snr(torch.tensor([-1, process.T])).tolist() == [torch.inf, -torch.inf]


@over(BRIDGES)
def test_marginal_is_the_base_process_given_its_end(process):
    """Bayes' rule for Gaussians: q(x_t | x_0, x_T) from q(x_t | x_0) and q(x_T | x_t)."""
    t = times(process)
    s, sigma = process.schedule.s_sigma(t)
    s_T, sigma_T = process.schedule.s_sigma(torch.tensor(process.T, dtype=torch.float64))
    precision = 1 / (s * sigma) ** 2 + (s_T / s) ** 2 / (s_T**2 * (sigma_T**2 - sigma**2))
    a, b, c = process.abc(t)
    assert torch.allclose(c**2, 1 / precision, rtol=1e-9)
    assert torch.allclose(b, s / (s * sigma) ** 2 / precision, rtol=1e-9)
    assert torch.allclose(a, (s_T / s) / (s_T**2 * (sigma_T**2 - sigma**2)) / precision, rtol=1e-9)


@over(DIFFUSIONS | CHAINS)
def test_a_diffusion_is_its_schedule(process):
    t = times(process)
    (a, b, c), (s, sigma) = process.abc(t), process.schedule.s_sigma(t)
    assert (a == 0).all() and torch.equal(b, s) and torch.allclose(c / b, sigma, rtol=1e-12)
    assert isinstance(process.schedule, VE) or torch.allclose(b**2 + c**2, torch.ones_like(t), rtol=1e-14)


@over(DIFFUSIONS)
def test_drift_and_diffusion_belong_to_the_marginal(process):
    """f = d log s / dt and g^2 = s^2 d sigma^2 / dt."""
    t = times(process).requires_grad_()
    s, sigma = process.schedule.s_sigma(t)
    f, g2 = process.schedule.f_g2(t)
    (dlog_s,) = torch.autograd.grad((s.log() + 0 * t).sum(), t, retain_graph=True)
    (dvariance,) = torch.autograd.grad((sigma**2).sum(), t)
    assert torch.allclose(f, dlog_s, rtol=1e-9)
    assert torch.allclose(g2, s**2 * dvariance, rtol=1e-9)


@over(PROCESSES)
def test_time_at_inverts_the_noise_level_and_log_snr(process):
    t = times(process)
    for inverted in (process.schedule.time_at(process.schedule.s_sigma(t)[1]), process.time_at(process.log_snr(t))):
        assert torch.allclose(inverted.double(), t, rtol=1e-9)


@over(PROCESSES)
def test_marginal_per_image_and_precision(process):
    x_0, x_T, noise = torch.randn(3, 5, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = times(process)[::10]
    a, b, c = process.abc(t)
    x_t = process.marginal(x_0, t, noise, x_T)
    for i in range(5):
        assert torch.allclose(x_t[i], a[i] * x_T[i] + b[i] * x_0[i] + c[i] * noise[i], rtol=1e-14)
    assert process.marginal(x_0.float(), t.float(), noise.float(), x_T.float()).dtype == torch.float32
    if process.discrete:
        assert torch.equal(process.marginal(x_0, t.long(), noise), x_t)  # in the precision of x_0


@over(PROCESSES)
def test_training_times(process):
    torch.manual_seed(0)
    t = process.draw_times(4000)
    assert t.shape == (4000,) and (t >= process.t_min).all() and (t < process.T).all()
    assert t.double().mean() == pytest.approx(process.T / 2, rel=0.03)
    torch.manual_seed(0)
    span = process.T - process.t_min
    again = torch.randint(process.T, (4000,)) if process.discrete else process.t_min + span * torch.rand(4000)
    assert torch.equal(t, again)


@over(PROCESSES)
def test_precision_of_the_result_follows_t(process):
    preconditioning = Epsilon() if process.discrete else Karras()
    t = times(process, 20)[1:3]
    for dtype in (torch.float64, torch.float32) + (torch.int64,) * process.discrete:
        values = (*process.abc(t.to(dtype)), *preconditioning.scalings(process, t.to(dtype)))
        expected = torch.float32 if dtype == torch.int64 else dtype
        assert all(value.dtype == expected and value.shape == t.shape for value in values)


@over(BRIDGES)
@pytest.mark.parametrize("settings", [(0.5, 0.5, 0.0), (0.4, 0.7, 0.1), (0.5, 0.0, 0.0)])
def test_karras_identities(process, settings):
    t = times(process)
    sigma_0, sigma_T, cov = settings
    a, b, c = process.abc(t)
    c_skip, c_out, c_in, c_noise = Karras(*settings).scalings(process, t)
    variance = a**2 * sigma_T**2 + b**2 * sigma_0**2 + 2 * a * b * cov + c**2
    assert torch.allclose(c_in**2 * variance, torch.ones_like(t))
    # The network's target (x_0 - c_skip x_t) / c_out has variance one and is uncorrelated with x_t
    covariance = b * sigma_0**2 + a * cov
    residual = sigma_0**2 - 2 * c_skip * covariance + c_skip**2 * variance
    assert torch.allclose(residual / c_out**2, torch.ones_like(t), rtol=1e-6)
    assert torch.allclose(covariance - c_skip * variance, torch.zeros_like(t), atol=1e-9)
    assert torch.allclose(Karras(*settings).weight(process, t), 1 / c_out**2)
    assert torch.allclose(c_noise, 250 * t.log())


def test_karras_on_a_diffusion_is_edm():
    sigma = times(DIFFUSIONS["ve"])
    total = sigma**2 + 0.6**2
    edm = 0.6**2 / total, sigma * 0.6 / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4
    ours = Karras(sigma_data=0.6, log_scale=0.25).scalings(DIFFUSIONS["ve"], sigma)
    assert all(torch.allclose(value, expected, rtol=1e-14) for value, expected in zip(ours, edm, strict=True))


@over(DIFFUSIONS | CHAINS)
def test_epsilon_loss_is_the_error_of_the_noise(process):
    t = times(process)
    x_0, noise, F = torch.randn(3, len(t), 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = Epsilon().scalings(process, t)
    D = c_skip[:, None] * process.marginal(x_0, t, noise) + c_out[:, None] * F
    loss = Epsilon().weight(process, t) * (D - x_0).square().mean(1)
    assert torch.allclose(loss, (F - noise).square().mean(1), rtol=1e-9)
    assert (c_in == 1).all() and torch.equal(c_noise, t)


@over(CONTINUOUS)
def test_identity_leaves_the_network_alone(process):
    t = times(process)
    c_skip, c_out, c_in, c_noise = Identity().scalings(process, t)
    assert (c_skip == 0).all() and (c_out == 1).all() and (c_in == 1).all()
    assert (Identity().weight(process, t) == 1).all() and torch.allclose(c_noise, 250 * t.log())


def official_drift(process, t, x, x_T, D, w, stochastic):
    """The formulas of the released code, which differ by schedule for w other than 1."""
    s, sigma = process.schedule.s_sigma(t)
    s_T, sigma_T = process.schedule.s_sigma(torch.tensor(process.T, dtype=torch.float64))
    f, g2 = process.schedule.f_g2(t)
    if isinstance(process.schedule, VP):
        a, b, c = process.abc(t)
        S = -(x - a * x_T - b * D) / c**2
        H = -(x - s / s_T * x_T) / (s**2 * sigma**2 * (sigma_T**2 / sigma**2 - 1))
        return f * x - g2 * (S - w * H if stochastic else S / 2 - w * H)
    S0, H = (D - x) / t**2, (x_T - x) / (process.T**2 - t**2)
    return -g2 * S0 if stochastic else -g2 / 2 * (S0 - w * H)


@over(BRIDGES)
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("stochastic", [False, True])
def test_drift_of_a_bridge_is_the_official_one(process, guidance, stochastic):
    x, x_T, D = torch.tensor([0.3, -0.8, 0.6], dtype=torch.float64)
    t = torch.tensor([1e-3, 0.01, 0.3, 0.9, 0.999], dtype=torch.float64) * process.T
    k_x, k_T, k_D = process.drift(t, guidance, stochastic)
    expected = official_drift(process, t, x, x_T, D, guidance, stochastic)
    assert torch.allclose(k_x * x + k_T * x_T + k_D * D, expected, rtol=1e-8)


@over(DIFFUSIONS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_drift_of_a_diffusion(process, stochastic):
    """``f x - g^2 score`` with half the score in the ODE, where ``score = (b D - x) / c^2``."""
    t, (x, D) = times(process), torch.tensor([0.3, -0.8], dtype=torch.float64)
    k_x, k_T, k_D = process.drift(t, stochastic=stochastic)
    (_, b, c), (f, g2) = process.abc(t), process.schedule.f_g2(t)
    score = (b * D - x) / c**2
    assert torch.allclose(k_x * x + k_D * D, f * x - g2 * score / (1 if stochastic else 2), rtol=1e-8)
    assert (k_T == 0).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Bridge(LinearBeta()), "continuous time, got LinearBeta"),
        (lambda: CHAINS["constant"].drift(torch.ones(1)), "continuous time, got ConstantBeta: edm and ddim"),
        (lambda: DIFFUSIONS["vp"].drift(torch.ones(1), guidance=2.0), "guidance: expected 1"),
    ],
)
def test_what_does_not_exist_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_chain_is_made_on_the_cpu_and_copied_with_its_model():
    """Models are built on the meta device before their weights are loaded."""
    with torch.device("meta"):
        chain, bridge = Diffusion(LinearBeta()), Bridge(VE())
    assert torch.equal(copy.deepcopy(chain).abc(torch.arange(9))[1], CHAINS["linear"].abc(torch.arange(9))[1])
    assert bridge.sigma_T == 80


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_parity_with_dbae(name):
    process = BRIDGES[f"bridge-{name}"]
    t = vector(f"schedule/{name}/end0.5/t")
    c_skip, c_out, c_in, _ = Karras().scalings(process, t)
    ours = {"c_skip": c_skip, "c_out": c_out, "c_in": c_in, "weight": Karras().weight(process, t)}
    for key, value in ours.items():
        assert torch.allclose(value, vector(f"schedule/{name}/end0.5/{key}"), rtol=1e-9, atol=0), key
    for key, value in zip(("a", "b", "std"), process.abc(vector(f"marginal/{name}/t")), strict=True):
        assert torch.allclose(value, vector(f"marginal/{name}/{key}"), rtol=1e-9, atol=0), key


def test_parity_with_edm():
    sigma, keys = sibling("ddae/edm/coef/sd0.5/sigma"), ("c_skip", "c_out", "c_in", "c_noise", "weight")
    edm = Karras(log_scale=0.25)
    ours = (*edm.scalings(DIFFUSIONS["ve"], sigma), edm.weight(DIFFUSIONS["ve"], sigma))
    for key, value in zip(keys, ours, strict=True):
        assert torch.allclose(value, sibling(f"ddae/edm/coef/sd0.5/{key}"), rtol=1e-9, atol=0), key


@pytest.mark.parametrize(
    ("name", "process", "first"),
    [
        ("diffae/schedule/linear/alphas_cumprod", CHAINS["linear"], 0),
        ("diffae/schedule/const0.008/alphas_cumprod", CHAINS["constant"], 0),
        # DDAE's DDPM counts from 1 with the data at 0; its DDIM has one beta more, and its last state is not quite data
        ("ddae/sched/ddpm/T1000_b0.0001_0.02/float64/alphabar_t", CHAINS["linear"], -1),
        ("ddae/sched/ddim/T1000_b0.0001_0.02/float64/alphabar_t", Diffusion(LinearBeta(1001)), 0),
    ],
)
def test_parity_with_the_chains_of_diffae_and_ddae(name, process, first):
    stored = sibling(name)
    _, b, _ = process.abc(first + torch.arange(len(stored)).double())
    assert torch.allclose(b**2, stored, rtol=1e-9, atol=0)
