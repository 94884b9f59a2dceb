"""The penalty on total correlation: its estimators against definitions, and training with it."""

import math

import pytest
import tiny
import torch
from test_training import CPU, SETTINGS, assert_same, run, stream
from torch.distributions import Normal

from dbae import load_model
from dbae.checkpoint import config_content, write_config
from dbae.config import TrainConfig, UserError
from dbae.methods.dbae import DBAE
from dbae.methods.total_correlation import Discriminator, minibatch_total_correlation, permuted
from dbae.runtime import Stop
from dbae.state import TrainState
from dbae.training import take_step

TC = {"stochastic": True, "tc": "discriminator", "tc_weight": 0.1}
CLOSED_FORM = -0.5 * math.log(1 - 0.8**2)  # total correlation of two unit Gaussians that correlate by 0.8


def gaussians(n, correlation=0.8):
    """Codes [n, 2] of standard normal numbers with a correlation."""
    e = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return torch.stack([e[:, 0], correlation * e[:, 0] + (1 - correlation**2) ** 0.5 * e[:, 1]], dim=1)


def test_minibatch_estimator_is_its_sum():
    mu, log_sigma = gaussians(5), torch.linspace(-2, 0, 10).view(5, 2)
    sigma = log_sigma.exp() + 0.01
    z = mu + sigma * gaussians(5, 0.1)
    found = minibatch_total_correlation(z, mu, log_sigma)
    for j in range(5):
        densities = [[Normal(mu[i, k], sigma[i, k]).log_prob(z[j, k]).exp() for k in range(2)] for i in range(5)]
        joint = sum(a * b for a, b in densities) / 5
        product = math.prod(sum(column) / 5 for column in zip(*densities, strict=True))
        assert found[j].item() == pytest.approx(torch.log(joint / product).item(), abs=1e-5)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_minibatch_estimator_of_gaussians(correlation):
    spread = 0.3  # z has variance 1, of which the posterior's is a part
    mu = gaussians(2000, correlation / (1 - spread**2)) * (1 - spread**2) ** 0.5
    z = mu + spread * torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    log_sigma = torch.full_like(mu, math.log(spread - 0.01))
    expected = CLOSED_FORM if correlation else 0
    assert minibatch_total_correlation(z, mu, log_sigma).mean().item() == pytest.approx(expected, abs=0.05)


def test_permuted_codes_keep_each_number_and_lose_the_correlation():
    z = gaussians(2000)
    other = permuted(z)
    assert torch.equal(other.sort(dim=0).values, z.sort(dim=0).values)
    assert z.T.corrcoef()[0, 1] > 0.75 and other.T.corrcoef()[0, 1].abs() < 0.1


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_discriminator_finds_the_total_correlation(correlation):
    torch.manual_seed(0)
    z = gaussians(4000, correlation)
    network = Discriminator(2, width=32, layers=3)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(200):
        rows = torch.cat([z[:2000], permuted(z[:2000])])
        loss = torch.nn.functional.cross_entropy(network(rows), torch.arange(2).repeat_interleave(2000))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    joint, product = network(z[2000:]).unbind(dim=1)
    expected = CLOSED_FORM if correlation else 0
    assert (joint - product).mean().item() == pytest.approx(expected, abs=0.1)


def objective(**changes):
    torch.manual_seed(0)
    return DBAE(tiny.config(**{**TC, **changes})).train().objective()


def test_gradients_reach_who_they_are_for():
    made, x = tiny.model(**TC).objective(), tiny.images(6)  # in evaluation no power iteration comes between
    own, encoder = made.discriminator[0].weight, made.model.encoder.out[3].weight

    def again(weight):
        made.zero_grad()
        torch.manual_seed(1)
        made.weight = weight
        value = made(x).mean()
        value.backward()
        return value, own.grad.clone(), encoder.grad.clone()

    (low, taught, first), (_, taught_too, second) = again(0.0), again(10.0)
    assert torch.equal(taught, taught_too) and taught.any()  # the penalty does not teach the discriminator
    assert not torch.equal(first, second)  # but moves the encoder
    torch.manual_seed(1)
    plain = made.model.loss(x).mean()
    assert low.item() == pytest.approx(plain.item(), rel=1e-6)  # the cross-entropy is not in the value
    made.zero_grad()
    plain.backward()
    assert torch.allclose(first, encoder.grad, atol=1e-7)  # nor does it reach the encoder


@pytest.mark.parametrize("tc", ["minibatch", "discriminator"])
def test_penalty_resumes_to_the_bit(tmp_path, monkeypatch, tc):
    monkeypatch.setattr(tiny, "OPTIONS", tiny.OPTIONS | TC | {"tc": tc})
    settings = {"lr_warmup": 3}
    whole = run(tmp_path / "whole", total_steps=3, **settings)
    run(tmp_path / "parts", total_steps=2, **settings)
    resumed = run(tmp_path / "parts", total_steps=3, **settings)
    assert_same(whole.objective.state_dict(), resumed.objective.state_dict())
    fresh = run(tmp_path / "fresh", total_steps=1, **settings)
    if tc == "discriminator":
        rates = [group["lr"] for group in fresh.optimizer.param_groups]
        assert rates == pytest.approx([1e-2 / 3, 1e-4 / 3])
        assert not torch.equal(whole.objective.discriminator[0].weight, fresh.objective.discriminator[0].weight)


def test_weights_hold_the_model_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "OPTIONS", tiny.OPTIONS | TC)
    state = run(tmp_path)
    write_config(str(tmp_path), config_content(state.model, "toyfaces"))
    for name in ("ema_0.9_000004.pt", "model_000004.pt"):
        assert not any("discriminator" in tensor for tensor in load_model(tmp_path / name).state_dict())


def test_a_bad_step_changes_nothing():
    config = TrainConfig(**{**SETTINGS, "microbatch": 4})
    torch.manual_seed(0)
    state = TrainState.create(DBAE(tiny.config(**TC)), config, CPU, scaled=False)
    before = {name: tensor.clone() for name, tensor in state.objective.state_dict().items()}
    state.objective.weight = math.nan
    _, taken, _ = take_step(state.objective, state, stream(0, 4), config, CPU, Stop())
    assert not taken
    assert_same(before, state.objective.state_dict())


def test_half_precision_leaves_the_estimate_alone():
    made, x = objective(tc="minibatch"), tiny.images(6)
    made.model.use_amp(torch.bfloat16)
    assert made(x).dtype == torch.float32


@pytest.mark.parametrize("wrong", [{"stochastic": False}, {"tc_weight": 0.0}, {"tc": "none"}, {"tc_weight": -1.0}])
def test_wrong_penalties(wrong):
    with pytest.raises(UserError, match="tc"):
        tiny.config(**{**TC, **wrong})


def test_one_image_has_no_batch():
    with pytest.raises(UserError, match="two images"):
        objective()(tiny.images(1))


def test_run_folders_of_penalties_differ():
    names = {tiny.config(**{**TC, "tc": tc, "tc_weight": w}).name for tc, w in [("none", 0.0), ("minibatch", 0.1)]}
    assert len(names) == 2 and tiny.config().name == "32_32_8d_false_vp"
