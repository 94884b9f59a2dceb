"""Bridges: identities of the marginal and the preconditioning, the official drift, the parity vectors."""

import pytest
import torch
from parity import VECTORS, vector

from dbae.bridge import BRIDGES, VE, VP
from dbae.config import SCHEDULES

SCALED = ["vp", "ve"]


def times(bridge, n=50):
    return torch.linspace(bridge.t_min, bridge.T - 1e-4, n, dtype=torch.float64)


def test_every_schedule_of_the_configuration_has_a_bridge():
    assert tuple(BRIDGES) == SCHEDULES


@pytest.mark.parametrize("name", SCALED)
def test_endpoints(name):
    bridge = BRIDGES[name]()
    a, b, c = bridge.abc(torch.tensor([0.0, bridge.T], dtype=torch.float64))
    assert torch.allclose(a, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.allclose(b, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert torch.allclose(c, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("name", SCALED)
def test_marginal_is_the_base_process_given_its_end(name):
    """Bayes' rule for Gaussians: q(x_t | x_0, x_T) from q(x_t | x_0) and q(x_T | x_t)."""
    bridge = BRIDGES[name]()
    t = times(bridge)
    s, sigma = bridge.s_sigma(t)
    s_T, sigma_T = bridge.s_sigma(torch.tensor(bridge.T, dtype=torch.float64))
    precision = 1 / (s * sigma) ** 2 + (s_T / s) ** 2 / (s_T**2 * (sigma_T**2 - sigma**2))
    a, b, c = bridge.abc(t)
    assert torch.allclose(c**2, 1 / precision, rtol=1e-9)
    assert torch.allclose(b, s / (s * sigma) ** 2 / precision, rtol=1e-9)
    assert torch.allclose(a, (s_T / s) / (s_T**2 * (sigma_T**2 - sigma**2)) / precision, rtol=1e-9)


@pytest.mark.parametrize("name", SCALED)
def test_drift_and_diffusion_belong_to_the_marginal(name):
    """f = d log s / dt and g^2 = s^2 d sigma^2 / dt."""
    bridge = BRIDGES[name]()
    t = times(bridge).requires_grad_()
    s, sigma = bridge.s_sigma(t)
    f, g2 = bridge.f_g2(t)
    (dlog_s,) = torch.autograd.grad((s.log() + 0 * t).sum(), t, retain_graph=True)
    (dvariance,) = torch.autograd.grad((sigma**2).sum(), t)
    assert torch.allclose(f, dlog_s, rtol=1e-9)
    assert torch.allclose(g2, s**2 * dvariance, rtol=1e-9)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("settings", [(0.5, 0.5, 0.0), (0.4, 0.7, 0.1), (0.5, 0.0, 0.0)])
def test_preconditioning_identities(name, settings):
    bridge, t = BRIDGES[name](), times(BRIDGES[name]())
    sigma_0, sigma_T, cov = settings
    a, b, c = bridge.abc(t)
    c_skip, c_out, c_in, c_noise = bridge.scalings(t, *settings)
    variance = a**2 * sigma_T**2 + b**2 * sigma_0**2 + 2 * a * b * cov + c**2
    assert torch.allclose(c_in**2 * variance, torch.ones_like(t))
    # The network's target (x_0 - c_skip x_t) / c_out has variance one and is uncorrelated with x_t
    covariance = b * sigma_0**2 + a * cov
    residual = sigma_0**2 - 2 * c_skip * covariance + c_skip**2 * variance
    assert torch.allclose(residual / c_out**2, torch.ones_like(t), rtol=1e-6)
    assert torch.allclose(covariance - c_skip * variance, torch.zeros_like(t), atol=1e-9)
    assert torch.allclose(bridge.weight(t, *settings), 1 / c_out**2)
    assert torch.allclose(c_noise, 250 * t.log())


@pytest.mark.parametrize("name", ["vp_simple", "ve_simple"])
def test_simple_variants_leave_the_network_alone(name):
    bridge = BRIDGES[name]()
    t = times(bridge)
    c_skip, c_out, c_in, _ = bridge.scalings(t)
    assert (c_skip == 0).all() and (c_out == 1).all() and (c_in == 1).all() and (bridge.weight(t) == 1).all()
    assert torch.equal(bridge.abc(t)[0], BRIDGES[name.removesuffix("_simple")]().abc(t)[0])


def official_drift(bridge, t, x, x_T, D, w, stochastic):
    """The formulas of the released code, which differ by schedule for w other than 1."""
    s, sigma = bridge.s_sigma(t)
    s_T, sigma_T = bridge.s_sigma(torch.tensor(bridge.T, dtype=torch.float64))
    f, g2 = bridge.f_g2(t)
    if isinstance(bridge, VP):
        a, b, c = bridge.abc(t)
        S = -(x - a * x_T - b * D) / c**2
        H = -(x - s / s_T * x_T) / (s**2 * sigma**2 * (sigma_T**2 / sigma**2 - 1))
        return f * x - g2 * (S - w * H if stochastic else S / 2 - w * H)
    S0, H = (D - x) / t**2, (x_T - x) / (bridge.T**2 - t**2)
    return -g2 * S0 if stochastic else -g2 / 2 * (S0 - w * H)


@pytest.mark.parametrize("name", BRIDGES)
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("stochastic", [False, True])
def test_drift_is_the_official_one(name, guidance, stochastic):
    bridge = BRIDGES[name]()
    x, x_T, D = torch.tensor([0.3, -0.8, 0.6], dtype=torch.float64)
    for share in (1e-3, 0.01, 0.3, 0.9, 0.999):
        t = torch.tensor(share * bridge.T, dtype=torch.float64)
        k_x, k_T, k_D = bridge.drift(t.item(), guidance, stochastic)
        expected = official_drift(bridge, t, x, x_T, D, guidance, stochastic)
        assert k_x * x + k_T * x_T + k_D * D == pytest.approx(expected.item(), rel=1e-8)


def test_precision_of_the_result_follows_t():
    t = torch.tensor([0.3, 0.9])
    assert all(value.dtype == torch.float32 for value in VP().abc(t) + VE().scalings(t))


@pytest.mark.parametrize("name", SCALED)
def test_parity(name):
    bridge = BRIDGES[name]()
    t = vector(f"schedule/{name}/end0.5/t")
    c_skip, c_out, c_in, _ = bridge.scalings(t, sigma_data_end=0.5)
    ours = {"c_skip": c_skip, "c_out": c_out, "c_in": c_in, "weight": bridge.weight(t, sigma_data_end=0.5)}
    for key, value in ours.items():
        assert torch.allclose(value, vector(f"schedule/{name}/end0.5/{key}"), rtol=1e-9, atol=0), key
    for key, value in zip(("a", "b", "std"), bridge.abc(vector(f"marginal/{name}/t")), strict=True):
        assert torch.allclose(value, vector(f"marginal/{name}/{key}"), rtol=1e-9, atol=0), key
    assert any(key.startswith(f"schedule/{name}/") for key in VECTORS.files)
