"""DiffAE, its baseline and the latent prior against vectors of the official implementation."""

import json

import numpy as np
import pytest
import torch
from parity import FOLDER, fill, images, worst

from dbae.config import TrainConfig
from dbae.methods import DDIM, DiffAE, LatentPrior
from dbae.methods.codes import lerp, slerp
from dbae.methods.diffae import DiffAEConfig
from dbae.methods.prior import PriorConfig
from dbae.runtime import Stop
from dbae.state import TrainState
from dbae.training import take_step

VECTORS = np.load(FOLDER / "diffae.npz")
KEYS = json.loads((FOLDER / "keys_diffae_64.json").read_text())
CPU = torch.device("cpu")
CONFIG = DiffAEConfig(image_size=64, num_channels=64)


def vector(name):
    return torch.from_numpy(VECTORS[name])


def normal(shape, seed):
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32))


def filled(model):
    """The model with the deterministic weights under its official names, in evaluation mode."""
    state = model.to_official(model.state_dict())
    model.load_state_dict(model.from_official({name: fill(name, list(value.shape)) for name, value in state.items()}))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return filled(DiffAE(CONFIG))


@pytest.fixture(scope="module")
def prior():
    """The vectors' prior: filled under the names of a whole file."""
    made = LatentPrior(PriorConfig())
    names = {f"latent_net.{name}": value.shape for name, value in made.latent_net.state_dict().items()}
    made.load_state_dict({name: fill(name, list(shape)) for name, shape in names.items()}, strict=False)
    made.mean.copy_(vector("zstats/mean"))
    made.std.copy_(vector("zstats/std"))
    return made.eval()


@pytest.fixture(scope="module")
def x():
    return images(2, 64)


def test_names_and_shapes_are_the_released_ones(model, prior):
    ours = {name: list(value.shape) for name, value in model.to_official(model.state_dict()).items()}
    assert ours == {name: shape for name, shape in KEYS.items() if not name.startswith("latent_net.")}
    ours = {name: list(value.shape) for name, value in prior.state_dict().items() if "latent_net" in name}
    theirs = {n: s for n, s in KEYS.items() if n.startswith("latent_net.") and "cond_layers" not in n}
    assert ours == theirs


@pytest.mark.parametrize(
    ("size", "width", "parameters"),
    [(64, 64, 90_839_235), (128, 128, 128_545_155), (256, 128, 168_492_291)],
)
def test_parameter_counts(size, width, parameters):
    with torch.device("meta"):
        made = DiffAE(DiffAEConfig(image_size=size, num_channels=width))
    assert sum(p.numel() for p in made.parameters()) == parameters


def test_code_and_noise(model, x):
    z = model.encode(x)
    assert worst(z, vector("net/64/z")) < 1e-5
    for t in (0, 500):
        with torch.no_grad():
            assert worst(model.unet(x, torch.full((2,), float(t)), z), vector(f"net/64/unet_t{t}")) < 1e-4


def test_decode_and_inversion(model, x):
    z = vector("net/64/z")
    settings = {"sampler": "ddim", "steps": 10, "grid": "uniform"}
    start = normal((2, 3, 64, 64), 5)
    assert worst(model.generate_from(z, start, **settings), vector("net/64/decode_T10")) < 5e-4
    state = model.infer_xT(x, z, **settings)
    assert worst(state, vector("net/64/invert_T10")) < 5e-4
    assert worst(model.generate_from(z, vector("net/64/invert_T10"), **settings), vector("net/64/recon_T10")) < 5e-4
    assert worst(model.generate_from(z, state, **settings), vector("net/64/recon_T10")) < 1e-2


def test_loss_and_gradients(model, x):
    noise, t = normal((2, 3, 64, 64), 70), vector("net/64/loss/t")
    loss = model.loss(x, t=t, noise=noise)
    assert worst(loss, vector("net/64/loss/loss")) < 1e-5
    names = ["time_embed.time_embed.0.weight", "time_embed.time_embed.2.bias", "input_blocks.0.0.weight"]
    names += ["input_blocks.1.0.emb_layers.1.weight", "input_blocks.1.0.cond_emb_layers.1.weight"]
    names += ["middle_block.1.qkv.weight", "output_blocks.0.0.cond_emb_layers.1.weight", "out.2.weight"]
    names += ["encoder.input_blocks.0.0.weight", "encoder.out.3.weight"]
    parameters = model.to_official(dict(model.named_parameters()))
    gradients = torch.autograd.grad(loss.mean(), [parameters[name] for name in names])
    norms = torch.stack([g.norm() for g in gradients])
    assert (norms / vector("net/64/loss/grad_norms") - 1).abs().max() < 1e-4


def test_baseline(x):
    made = filled(DDIM(CONFIG))
    with torch.no_grad():
        assert worst(made.unet(x[:1], torch.tensor([500.0])), vector("net/64_ddim/unet_t500")) < 1e-4
    assert all(not name.startswith("time_embed.time") for name in made.to_official(made.state_dict()))


def test_prior(prior):
    z = normal((3, 512), 300)
    for t in (0, 500, 999):
        with torch.no_grad():
            out = prior.latent_net(z, torch.full((3,), float(t)))
        assert worst(out, vector(f"latent/512x10/out_t{t}")) < 1e-5
    for steps in (10, 20):
        made = prior.sample(normal((3, 512), 301), {}, prior.sampling(steps=steps))
        assert worst(made, vector(f"latent/512x10/sample_T{steps}")) < 1e-5
    loss = prior.loss(z, t=vector("latent/512x10/loss/t"), noise=normal((3, 512), 302))
    assert worst(loss, vector("latent/512x10/loss/loss")) < 1e-5
    names = ["time_embed.0.weight", "layers.0.linear.weight", "layers.0.linear_emb.weight", "layers.1.norm.weight"]
    names += ["layers.1.linear.weight", "layers.9.linear.weight"]
    parameters = dict(prior.latent_net.named_parameters())
    gradients = torch.autograd.grad(loss.mean(), [parameters[name] for name in names])
    norms = torch.stack([g.norm() for g in gradients])
    assert (norms / vector("latent/512x10/loss/grad_norms") - 1).abs().max() < 1e-4


def test_normalisation(prior):
    assert worst(prior.prepare(vector("net/64/z"), False), vector("zstats/normalized_z")) < 1e-6


def test_unconditional_images(model, prior):
    zn = prior.sample(normal((1, 512), 330), {}, prior.sampling(steps=10))
    z = zn * vector("zstats/std") / 100 + vector("zstats/mean")
    made = model.generate_from(z, normal((1, 3, 64, 64), 331), steps=10)
    assert worst((made + 1) / 2, vector("unconditional/image_T10_Tlatent10")) < 5e-4


def test_interpolation():
    fractions = torch.linspace(0, 1, 10)[[0, 1, 4, 5, 8, 9]]
    x_1, x_2 = normal((2, 3, 16, 16), 340)
    z_1, z_2 = normal((2, 512), 341)
    assert worst(slerp(x_1[None], x_2[None], fractions)[0], vector("interpolate/x_T")) < 1e-6
    assert worst(lerp(z_1[None], z_2[None], fractions)[0, :, :64], vector("interpolate/z")) < 1e-6


def test_manipulation(model):
    """The official step is along a classifier of normalised codes: ``std sqrt(512) w / |w|`` in codes as they are."""
    w, std = normal((512,), 320), vector("zstats/std")
    z = vector("net/64/z") + 0.3 * std * 512**0.5 * w / w.norm()
    assert worst(z, vector("manipulate/z")) < 1e-5
    made = model.generate_from(z[:1], vector("net/64/invert_T10")[:1], steps=10)
    assert worst((made + 1) / 2, vector("manipulate/image_T10")) < 5e-4


def test_three_steps_of_training(monkeypatch):
    """Adam, clipping and the average, with the vectors' images, times and noise."""
    names = ["input_blocks.0.0.weight", "middle_block.0.cond_emb_layers.1.weight", "middle_block.1.proj_out.weight"]
    names += ["out.2.weight", "encoder.out.3.weight", "time_embed.time_embed.2.weight"]
    small = {"image_size": 32, "num_channels": 32, "channel_mult": (1, 2), "encoder_mult": (1, 2, 2), "latent_dim": 64}
    made = filled(DiffAE(DiffAEConfig(**small, dropout=0)))
    config = TrainConfig(optimizer="adam", lr=1e-4, clip=1, batch_size=2, microbatch=-1, flip=False)
    state = TrainState.create(made, config, torch.device("cpu"), scaled=False)
    losses, norms, measure = [], [], torch._foreach_norm
    monkeypatch.setattr(torch, "_foreach_norm", lambda grads: norms.append(measure(grads)) or norms[-1])
    monkeypatch.setattr(made, "prepare", lambda batch, flip: batch)

    def tensors(module):
        return {name: module.to_official(module.state_dict())[name].clone() for name in names}

    def change(after):
        return torch.stack([(after[name].double() - before[name]).norm() for name in names])

    before = tensors(made)
    rounded = tensors(made)  # the average as the official code rounds it
    for k in range(3):
        t = torch.tensor([(37 + 211 * k + 97 * i) % 1000 for i in range(2)])
        noise = normal((2, 3, 32, 32), 500 + k)
        batches = iter([(images(2, 32, 400 + k), None)])

        def loss(x0, y, t=t, noise=noise):
            return losses.append(made.loss(x0, t=t, noise=noise)) or losses[-1]

        take_step(loss, state, batches, config, CPU, Stop())
        assert worst(losses[k].detach(), vector("train/32_latent64/loss")[k]) < 1e-5
        assert abs(torch.stack(norms[k]).norm() / vector("train/32_latent64/grad_norm")[k] - 1) < 1e-4
        rounded = {name: value * 0.9999 + tensors(made)[name] * (1 - 0.9999) for name, value in rounded.items()}
    assert (change(tensors(made)) / vector("train/32_latent64/param_change") - 1).abs().max() < 1e-4
    assert (change(rounded) / vector("train/32_latent64/ema_change") - 1).abs().max() < 1e-4
    assert all(worst(tensors(state.ema.module)[name], value) < 1e-6 for name, value in rounded.items())


def test_random_start_draws_by_image(model, x):
    """Image i's x_T depends on its own generator alone."""
    z = torch.zeros(2, 512)
    alone = model.start(z[:1], [torch.Generator().manual_seed(7)])
    both = model.start(z, [torch.Generator().manual_seed(6), torch.Generator().manual_seed(7)])
    assert torch.equal(alone[0], both[1])
    random = model.infer_xT(x[:1], z[:1], [torch.Generator().manual_seed(7)], xT="random")
    assert torch.equal(random, alone)
