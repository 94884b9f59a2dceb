"""The model's public interface: shapes, randomness per image, gradients, errors."""

import pytest
import tiny
import torch

from dbae.config import UserError
from dbae.diffusion import SOLVERS, time_grid
from dbae.io import image_generators
from dbae.methods.dbae import DBAE, SCHEDULES


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_reconstruct(schedule, sampler):
    model, x = tiny.model(schedule=schedule), tiny.images()
    x_0 = model.reconstruct(x, steps=3, sampler=sampler, churn=0.3)
    assert x_0.shape == x.shape and x_0.dtype == torch.float32
    assert x_0.min() >= -1 and x_0.max() <= 1 and not x_0.requires_grad


@pytest.mark.parametrize("schedule", ["vp", "ve_simple"])
@pytest.mark.parametrize("sampler", sorted(SOLVERS.keys() - {"edm", "ddpm-large"}))
def test_a_model_takes_every_solver_of_bridges(schedule, sampler):
    model, x = tiny.model(schedule=schedule), tiny.images(2)
    x_0 = model.reconstruct(x, steps=3, sampler=sampler, grid="logsnr", generator=image_generators(0, range(2)))
    assert x_0.shape == x.shape and x_0.dtype == torch.float32 and x_0.abs().max() <= 1
    again = model.reconstruct(x, steps=3, sampler=sampler, generator=image_generators(0, range(2)))
    assert torch.equal(x_0, again) == (sampler == "one-step")


@pytest.mark.parametrize("options", [{"eta": 0.5}, {"boot": True}, {"grid": "uniform"}])
def test_a_model_passes_every_option(options):
    model, x = tiny.model(), tiny.images(2)

    def settings(**options):
        return {"steps": 3, "sampler": "dbim", "generator": image_generators(0, range(2)), **options}

    x_0 = model.reconstruct(x, **settings(**options))
    assert not torch.allclose(x_0, model.reconstruct(x, **settings()), atol=1e-4)
    assert torch.equal(x_0, model.generate_from(model.encode(x).detach(), **settings(**options)))


def test_reconstruct_is_encode_then_generate():
    model, x = tiny.model(), tiny.images()
    with torch.no_grad():
        z = model.encode(x)
    assert torch.equal(model.reconstruct(x, steps=4), model.generate_from(z, steps=4))
    assert torch.equal(model.generate_from(z, steps=4), model.generate_from(z, model.decode(z), steps=4))
    assert not torch.allclose(model.generate_from(z, steps=4), model.generate_from(z, 0 * x, steps=4), atol=1e-3)


def test_estimates_are_clamped_at_every_call(monkeypatch):
    model = tiny.model()
    monkeypatch.setattr(model, "denoise", lambda x_t, *rest, **cond: torch.full_like(x_t, 7.0))
    z = torch.zeros(1, 8)
    once = model.generate_from(z, torch.zeros(1, 3, 32, 32), steps=5)
    monkeypatch.setattr(model, "denoise", lambda x_t, *rest, **cond: torch.ones_like(x_t))
    assert torch.equal(once, model.generate_from(z, torch.zeros(1, 3, 32, 32), steps=5))


@pytest.mark.parametrize("stochastic", [False, True])
def test_an_image_does_not_depend_on_its_batch(stochastic):
    model, x = tiny.model(stochastic=stochastic), tiny.images(6)
    whole = model.reconstruct(x, steps=3, churn=0.5, generator=image_generators(1, range(6)))
    halves = [
        model.reconstruct(x[part], steps=3, churn=0.5, generator=image_generators(1, range(6)[part]))
        for part in (slice(0, 2), slice(2, 6))
    ]
    assert torch.allclose(whole, torch.cat(halves), atol=1e-5)
    other = model.reconstruct(x, steps=3, churn=0.5, generator=image_generators(2, range(6)))
    assert not torch.allclose(whole, other, atol=1e-2)


@torch.no_grad()
def test_stochastic_encoder_samples_unless_asked_for_the_mean():
    model, x = tiny.model(stochastic=True), tiny.images()
    mu, log_sigma = model.encode_stats(x)
    assert mu.shape == log_sigma.shape == (4, 8) and mu.abs().max() < 5
    assert torch.equal(model.encode(x, sample=False), mu)
    draws = model.encode(x.repeat(400, 1, 1, 1)).unflatten(0, (400, 4))
    assert torch.allclose(draws.mean(0), mu, atol=0.35)
    assert torch.allclose(draws.std(0), log_sigma.exp() + 0.01, rtol=0.2)


def test_losses_are_per_image_and_reach_every_part():
    model, x = tiny.model().train(), tiny.images()
    loss = model(x)
    assert loss.shape == (4,)
    loss.mean().backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle


def test_loss_is_the_weighted_error_of_the_denoiser():
    model, x = tiny.model(), tiny.images()
    t, noise = torch.tensor([0.1, 0.4, 0.7, 0.99]), torch.randn(4, 3, 32, 32)
    z = model.encode(x)
    x_T = model.decode(z)
    a, b, c = (k[:, None, None, None] for k in model.process.abc(t))
    D_x = model.denoise(a * x_T + b * x + c * noise, t, x_T=x_T, z=z)
    expected = (D_x - x).square().mean(dim=(1, 2, 3)) / model.precond.scalings(model.process, t)[1] ** 2
    assert torch.allclose(model.loss(x, t=t, noise=noise), expected, rtol=1e-4)


def test_end_data_changes_the_preconditioning_near_the_end_only():
    near, far = (model.denoise for model in (tiny.model(), tiny.model(end_data=0.0)))
    x, z = tiny.images(), torch.randn(4, 8)
    ts = time_grid(tiny.model().process, 10)
    start, late = ts[0].float().expand(4), ts[-3].float().expand(4)
    assert not torch.allclose(near(x, start, x_T=x, z=z), far(x, start, x_T=x, z=z), atol=1e-2)
    assert torch.allclose(near(x, late, x_T=x, z=z), far(x, late, x_T=x, z=z), atol=1e-2)


@torch.no_grad()
def test_features_are_pooled_activations_and_the_network_stops(monkeypatch):
    model, x = tiny.model(), tiny.images()
    names = model.block_names()
    assert names[0] == "input_blocks.0" and "middle_block" in names and names[-1].startswith("output_blocks")
    computed, noise = [], torch.randn(4, 3, 32, 32)
    for name, module in model.unet.named_blocks():
        module.register_forward_hook(lambda module, inputs, output, name=name: computed.append((name, output)))
    every = model.features(x, 0.3, noise=noise)
    assert list(every) == names == [name for name, _ in computed]
    for name, output in computed:
        assert torch.allclose(every[name], output.mean(dim=(2, 3)), atol=1e-6) and every[name].dtype == torch.float32
    computed.clear()
    some = model.features(x, 0.3, [names[3], names[1]], noise=noise)
    assert [name for name, _ in computed] == names[:4] and list(some) == [names[3], names[1]]
    assert all(torch.equal(some[name], every[name]) for name in some)
    with pytest.raises(UserError, match="blocks: expected some of input_blocks"):
        model.features(x, 0.3, ["out_6"])


def test_predicted_noise_is_the_noise_that_the_estimate_implies():
    model, x = tiny.model(), tiny.images()
    model.denoise = lambda x_t, t, **cond: x
    t, noise, x_T = torch.tensor([0.1, 0.4, 0.7, 0.9]), torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
    x_t = model.process.marginal(x, t, noise, x_T)
    assert torch.allclose(model.predict_noise(x_t, t, x_T=x_T), noise, atol=1e-4)


def test_wrong_use():
    model = tiny.model()
    with pytest.raises(ValueError, match=r"expected float \[N, 3, 32, 32\].*got float32 \[2, 3, 64, 64\]"):
        model.encode(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match="got uint8"):
        model.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    for wrong in (tiny.images() * 127.5 + 127.5, tiny.images() * torch.nan):
        with pytest.raises(ValueError, match=r"expected values in \[-1, 1\]"):
            model.encode(wrong)
    assert torch.equal(model.encode(tiny.images().double()), model.encode(tiny.images()))
    with pytest.raises(UserError, match="unknown setting 'step'"):
        model.reconstruct(tiny.images(), step=3)
    with pytest.raises(UserError, match="eta: expected 0"):
        model.reconstruct(tiny.images(), steps=3, sampler="heun", eta=0.5)
    with pytest.raises(UserError, match="edm: expected a diffusion, got a bridge"):
        model.reconstruct(tiny.images(), steps=3, sampler="edm")
    with pytest.raises(ValueError, match="stochastic"):
        model.encode_stats(tiny.images())
    with pytest.raises(ValueError, match="one per image"):
        tiny.model(stochastic=True).encode(tiny.images(), generator=image_generators(0, range(3)))


def test_heads_divide_the_channels():
    with pytest.raises(UserError, match="head_channels: expected a divisor of 32 channels, got 10"):
        DBAE(tiny.config(head_channels=10))
