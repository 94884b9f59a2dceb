"""DDAE against vectors of the official implementation: networks, features, losses, samplers, augmentation, averages."""

import json

import numpy as np
import pytest
import torch
from parity import FOLDER, fill, images, worst

from dbae.diffusion import integrate, time_grid
from dbae.methods import DDAE
from dbae.methods.augment import augment, draw_parameters
from dbae.methods.ddae import EDMDDAE
from dbae.methods.ddae_config import DDPMConfig, EDMConfig, sigma_of_step
from dbae.nn.unet_ddpm import sinusoid
from dbae.runtime import use_checkpointing
from dbae.state import EMA

VECTORS = np.load(FOLDER / "ddae.npz")
OFFICIAL = {
    "ddpm": {},
    "ddpmpp": {"channel_mult": (2, 2, 2), "num_res_blocks": 4, "residual_resampling": True},
    "ddpmpp_aug": {"channel_mult": (2, 2, 2), "num_res_blocks": 4, "residual_resampling": True, "augment": True},
}
CLOSE = 2e-5  # of the largest value; a looser bound would hide another time, frequency or epsilon
MINI = ["mini_conv", "mini_res"]


def slow(*tags):
    return [pytest.param(tag, marks=pytest.mark.slow) for tag in tags]


def vector(name):
    return torch.from_numpy(VECTORS[name])


def text(name):
    return json.loads(VECTORS[name].tobytes())


def normal(shape, seed, dtype=np.float32):
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype))


def built(cls, tag):
    """The vectors' network of a tag with its deterministic weights, in evaluation mode."""
    if tag in OFFICIAL:
        settings = OFFICIAL[tag]
    else:
        c = text(f"net/{tag}/config")
        size = c["image_shape"][1]
        settings = {
            "image_size": size, "num_channels": c["n_channels"], "channel_mult": tuple(c["ch_mults"]),
            "attention_sizes": tuple(size >> level for level, yes in enumerate(c["is_attn"]) if yes),
            "head_channels": c.get("attn_channels_per_head", 0), "num_res_blocks": c["n_blocks"],
            "residual_resampling": c["use_res_for_updown"], "augment": "augment_dim" in c, "feature_block": "out_1",
        }  # fmt: skip
    model = cls(cls.Config(**settings)).eval()
    state = model.to_official(model.state_dict())
    model.load_state_dict(model.from_official({name: fill(name, list(value.shape)) for name, value in state.items()}))
    return model


def data(model, tag):
    size = model.config.image_size
    return images(2, size, 0 if tag in OFFICIAL else 2), lambda seed: normal(
        (2, 3, size, size), seed + (0 if tag in OFFICIAL else 2)
    )


def check_gradients(model, loss, where):
    parameters = model.to_official(dict(model.named_parameters()))
    gradients = torch.autograd.grad(loss.mean(), [parameters[name] for name in text(f"{where}/grad_names")])
    norms = torch.stack([g.norm() for g in gradients])
    assert (norms / vector(f"{where}/grad_norms") - 1).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("tag", "parameters"), [("ddpm", 35_746_307), ("ddpmpp", 56_524_291), ("ddpmpp_aug", 56_525_443)]
)
def test_names_and_shapes_are_the_official_ones(tag, parameters):
    with torch.device("meta"):
        model = EDMDDAE(EDMConfig(**OFFICIAL[tag]))
    ours = {name: list(value.shape) for name, value in model.to_official(model.state_dict()).items()}
    file = "ddpm" if tag == "ddpm" else "ddpmpp_aug"
    theirs = json.loads((FOLDER / f"keys_ddae_{file}.json").read_text())
    assert ours == {name: shape for name, shape in theirs.items() if tag == "ddpmpp_aug" or "aug_emb" not in name}
    assert sum(value.numel() for value in model.state_dict().values()) == parameters


@pytest.mark.parametrize("tag", MINI)
def test_small_networks_have_the_official_names(tag):
    model = built(DDAE, tag)
    ours = {name: list(value.shape) for name, value in model.to_official(model.state_dict()).items()}
    assert ours == text(f"net/{tag}/keys")


@pytest.mark.parametrize("width", [512, 128])
def test_embedding_of_time(width):
    model = EDMDDAE(EDMConfig(num_channels=width // 4, augment=True))
    embedding = model.unet.time_emb
    state = {
        name: fill(f"nn_model.time_emb.{name}", list(value.shape)) for name, value in embedding.state_dict().items()
    }
    embedding.load_state_dict(state)
    t = vector(f"embed/E{width}/t")
    assert worst(sinusoid(t, width // 4), vector(f"embed/E{width}/sinusoid")) < 1e-6
    assert worst(embedding(t), vector(f"embed/E{width}/out")) < CLOSE
    if width == 128:
        labels = vector("embed/E128/label")
        assert worst(embedding(t, labels), vector("embed/E128/out_label")) < CLOSE
        assert torch.equal(embedding(t, torch.zeros_like(labels)), embedding(t))


@pytest.mark.parametrize("tag", [*MINI, *slow("ddpm", "ddpmpp")])
def test_ddpm(tag):
    model = built(DDAE, tag)
    x, noise = data(model, tag)
    for t in (11, 900) if tag.startswith("mini") else (1, 300, 1000):
        times = torch.full((2,), t)
        x_t = model.process.marginal(x, times, noise(40))
        with torch.no_grad():
            assert worst(model.unet(x_t, times / 1000), vector(f"net/{tag}/ddpm/t{t}/eps")) < CLOSE
            assert worst(model.predict_noise(x_t, times), vector(f"net/{tag}/ddpm/t{t}/eps")) < CLOSE
    features = model.features(x, 11, noise=noise(41))
    assert {name: value.shape[1] for name, value in features.items()} == text(f"net/{tag}/blocks")
    assert worst(torch.cat(list(features.values()), 1), vector(f"net/{tag}/ddpm/feature/t11")) < CLOSE
    loss = model.loss(x, t=vector(f"net/{tag}/ddpm/loss/t"), noise=noise(42))
    assert worst(loss, vector(f"net/{tag}/ddpm/loss/value")) < CLOSE
    check_gradients(model, loss, f"net/{tag}/ddpm/loss")


@pytest.mark.parametrize("tag", [*MINI, *slow("ddpm", "ddpmpp_aug")])
def test_edm(tag):
    model = built(EDMDDAE, tag)
    x, noise = data(model, tag)
    for sigma in (0.2,) if tag.startswith("mini") else (0.05, 5.0):
        x_t, t, name = x + sigma * noise(43), torch.full((2,), sigma), f"net/{tag}/edm/sigma{sigma}"
        with torch.no_grad():
            assert worst(model.denoise(x_t, t), vector(f"{name}/D")) < CLOSE
            if model.config.augment:
                labels = vector(f"net/{tag}/edm/aug_label")
                assert worst(model.denoise(x_t, t, labels=labels), vector(f"{name}/D_aug")) < CLOSE
    features = model.features(x, sigma_of_step(4), noise=noise(44))
    assert worst(torch.cat(list(features.values()), 1), vector(f"net/{tag}/edm/feature/step4_of18")) < CLOSE
    t = (-1.2 + 1.2 * vector(f"net/{tag}/edm/loss/normal")).exp()
    loss = model.loss(x, t=t, noise=noise(45))
    assert worst(loss, vector(f"net/{tag}/edm/loss/value")) < CLOSE
    check_gradients(model, loss, f"net/{tag}/edm/loss")


def test_features_stop_after_the_last_block_asked_for(monkeypatch):
    model = built(DDAE, "mini_conv")
    x, noise = data(model, "mini_conv")
    everything = model.features(x, 11, noise=noise(41))
    calls = []
    for module in model.unet.up:
        module.register_forward_hook(lambda *_: calls.append(1))
    some = model.features(x, 11, ["out_3", "out_1"], noise=noise(41))
    assert list(some) == ["out_3", "out_1"] and len(calls) == 4  # three blocks and what lies between them
    assert all(torch.equal(some[name], everything[name]) for name in some)
    assert torch.equal(
        model.encode(x, torch.Generator().manual_seed(3)),
        model.features(x, 11, ["out_1"], generator=torch.Generator().manual_seed(3))["out_1"],
    )


def test_recomputed_activations_give_the_same_gradients():
    model = built(DDAE, "mini_res")
    x, noise = data(model, "mini_res")
    t, gradients = torch.tensor([5, 500]), []
    for _ in range(2):
        loss = model.loss(x, t=t, noise=noise(1)).sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
        use_checkpointing(model)
    for one, other in zip(*gradients, strict=True):
        assert one is other is None or torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_schedules():
    index = torch.arange(1001)
    model, chains = DDAE(DDPMConfig(num_channels=32)), {}
    for name, process in (("ddpm", model.process), ("ddim", model._ddim_process)):
        chains[name] = process.abc(index.double())[1] ** 2
        stored = vector(f"sched/{name}/T1000_b0.0001_0.02/float32/alphabar_t")
        assert (chains[name] / stored - 1).abs().max() < 2e-6
    alpha = chains["ddpm"][1:] / chains["ddpm"][:-1]
    assert (alpha / vector("sched/ddpm/T1000_b0.0001_0.02/float32/alpha_t")[1:] - 1).abs().max() < 2e-6
    factor = (1 - alpha) / (1 - chains["ddpm"][1:]).sqrt()
    stored = vector("sched/ddpm/T1000_b0.0001_0.02/float64/ma_over_sqrtmab")[1:]
    assert (factor / stored - 1).abs().max() < 1e-9
    assert torch.equal(model._ddim_process.schedule.time_at(torch.tensor([0.0101, 1e9])), torch.tensor([1, 1000]))


def toy(model):
    """The model with the vectors' toy network F(x, t) = tanh(x / 2 + t), in float64."""
    model.network = lambda x, c_noise, **_: torch.tanh(0.5 * x + c_noise.double().view(-1, 1, 1, 1))
    return model


def toy_draws(seed):
    generator = np.random.Generator(np.random.PCG64(seed))
    return lambda: torch.from_numpy(generator.standard_normal((2, 3, 4, 4)))


def run(model, x, draw, **settings):
    """The sampler of a model from x in float64, with draws in the official order, not clamped at the end."""
    sampling = model.sampling(**settings)
    process, calls = model.sampling_process(sampling), []

    def denoise(x, t):
        calls.append(t[0].item())
        return model.denoise(x, t, model.precond.scalings(process, t.double())).clamp(-1, 1)

    return integrate(denoise, x, model.updates(sampling), lambda x: draw()), calls


def test_ancestral_sampler():
    draw = toy_draws(20)
    x, calls = run(toy(DDAE(DDPMConfig(num_channels=32))), draw(), draw, sampler="ddpm", steps=1000)
    assert worst((x + 1) / 2, vector("toy/ddpm/T1000/sample_seed20")) < 1e-9
    assert calls == list(range(1000, 0, -1)) and vector("toy/ddpm/T1000/sample_draws").item() == 1000


def sibling(name):
    return torch.from_numpy(np.load(FOLDER / "diffusion.npz")[f"ddae/{name}"])


@pytest.mark.parametrize(("steps", "calls", "eta"), [(100, 100, 0.0), (100, 100, 0.7), (20, 20, 1.0), (30, 31, 0.0)])
def test_ddim_of_the_model(steps, calls, eta):
    """Where steps do not divide 1000 the official sampler has more of them than asked for."""
    draw, model = toy_draws(21), toy(DDAE(DDPMConfig(num_channels=32)))
    x, times = run(model, draw(), draw, steps=calls, eta=eta)
    name = f"toy/ddim/T1000/steps{steps}_eta{eta}_seed21"
    assert worst((x + 1) / 2, sibling(f"{name}/x")) < 1e-9
    assert [t / 1000 for t in times] == pytest.approx(sibling(f"{name}/times").tolist())


@pytest.mark.parametrize(("steps", "eta"), [(18, 0.0), (18, 1.0), (50, 0.5)])
def test_heun_of_the_model(steps, eta):
    """The official sampler draws in every step; here, and so far as it matters, only where noise is added."""
    stream, model = toy_draws(22), toy(EDMDDAE(EDMConfig(num_channels=32)))
    start, grid = stream() * 80, time_grid(model.process, steps).tolist()
    draws = iter([value for value, t in zip([stream() for _ in range(steps)], grid, strict=False) if 0.01 <= t <= 1])
    x, times = run(model, start, lambda: next(draws), steps=steps, eta=eta)
    name = f"toy/edm/steps{steps}_eta{eta}_seed22"
    assert worst((x + 1) / 2, sibling(f"{name}/x")) < 1e-9
    assert times == pytest.approx(sibling(f"{name}/sigma_calls").tolist(), rel=1e-9)


def test_noised_images_and_steps_of_edm():
    x = (images(2, 8, 6).double() + 1) * 127.5
    x = x.round() / 127.5 - 1
    for step in (1, 4, 18):
        sigma = sigma_of_step(step)
        assert sigma == pytest.approx(vector(f"toy/edm/perturb/sigma_step{step}_of18").item(), rel=1e-9)
        process = EDMDDAE(EDMConfig(num_channels=32)).process
        noised = process.marginal(x, torch.full((2,), sigma).double(), normal(x.shape, 12, np.float64))
        assert worst(noised, vector(f"toy/edm/perturb/step{step}_of18")) < 1e-7  # sigma passes float32 here


def test_other_samplers_of_each_variant():
    """All samplers of a diffusion, with the settings of the variant's own where they read them."""
    for model in (toy(DDAE(DDPMConfig(num_channels=32))), toy(EDMDDAE(EDMConfig(num_channels=32)))):
        for sampler in ("ddim", "dbim2", "dbm2", "edm"):
            for grid in ("karras", "logsnr"):
                x, _ = run(model, normal((2, 3, 4, 4), 1, np.float64), None, sampler=sampler, steps=8, grid=grid)
                assert x.isfinite().all() and x.abs().max() < 1.1
    fresh, official = (DDAE(DDPMConfig(num_channels=32, ddim_schedule=name)) for name in ("train", "official"))
    assert fresh.updates(fresh.SAMPLING)[-1].k_x == (0.0,)
    assert official.updates(official.SAMPLING)[-1].k_x[0] > 0  # noise is kept


def test_the_average():
    """Update k = 1 copies; the decay of k = 2, 3, ... is that of ema-pytorch."""
    for rate in (0.9999, 0.9993):
        module = torch.nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            module.weight.fill_(7)
        ema, averages = EMA(module, rate, "inverse-power"), []
        for k in vector(f"ema/beta{rate}/update_number").tolist():
            decay = vector(f"ema/beta{rate}/decay")[vector(f"ema/beta{rate}/update_number") == k].item()
            assert ema.rule(rate, k) == pytest.approx(decay, abs=1e-6)
        stored = vector(f"ema/beta{rate}/sequence_of_sin(i+1)")
        for k in range(1, len(stored) + 1):
            with torch.no_grad():
                module.weight.fill_(float(np.sin(k)))
            ema.update(k)
            averages.append(ema.module.weight.item())
        assert (torch.tensor(averages).double() - stored).abs().max() < 1e-6


def test_augmentation():
    x = images(9, 32, 7)
    out, labels = augment(x, vector("augment/params"))
    assert (out - vector("augment/images")).abs().max() < 1e-5
    assert (labels - vector("augment/labels")).abs().max() < 1e-6
    alone, _ = augment(x[4:5], vector("augment/params")[4:5])
    assert (alone - out[4:5]).abs().max() < 2e-6  # an image does not depend on its batch


def test_augmentation_without_transforms_and_by_flips_alone():
    x, off = images(4, 16), torch.zeros(4, 8)
    same, labels = augment(x, off)
    assert (same - x).abs().max() < 1e-5 and not labels.any()
    off[:, 1] = 1
    assert (augment(x, off)[0] - x.flip(2)).abs().max() < 1e-5


def test_parameters_of_the_augmentation():
    parameters = draw_parameters(20_000, torch.Generator().manual_seed(0))
    on = (parameters != 0).float().mean(0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.5, 0.12, 0.12])
    assert (on - expected).abs().max() < 0.015
    assert torch.equal(parameters[:, 6] != 0, parameters[:, 7] != 0)  # one gate for both
    scales = parameters[:, 2][parameters[:, 2] != 0]
    assert scales.std() == pytest.approx(1, abs=0.05)


def test_training_sees_augmented_images_and_evaluation_does_not(monkeypatch):
    model, seen = built(EDMDDAE, "mini_res"), []
    x, _ = data(model, "mini_res")
    monkeypatch.setattr(model, "loss", lambda x0, y: seen.append((x0, y)))
    torch.manual_seed(0)
    model(x)
    torch.manual_seed(0)
    wanted, labels = augment(x, draw_parameters(2))
    assert torch.equal(seen[0][0], wanted) and torch.equal(seen[0][1], labels)
    plain, seen[:] = built(EDMDDAE, "mini_conv"), []
    monkeypatch.setattr(plain, "loss", lambda x0, y: seen.append((x0, y)))
    plain(x)
    assert seen[0][0] is x and seen[0][1] is None


def test_training_times_of_each_variant():
    torch.manual_seed(0)
    ddpm, edm = DDAE(DDPMConfig(num_channels=32)), EDMDDAE(EDMConfig(num_channels=32))
    t = ddpm.draw_times(20_000, torch.device("cpu"))
    assert (t.min().item(), t.max().item()) == (1, 1000)
    ln_sigma = edm.draw_times(20_000, torch.device("cpu")).log()
    assert (ln_sigma.mean().item(), ln_sigma.std().item()) == pytest.approx((-1.2, 1.2), abs=0.03)
