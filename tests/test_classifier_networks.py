"""Networks of the noise-conditional classifiers, DiT and the autoencoder of its codes, against official vectors."""

import json

import numpy as np
import pytest
import torch
from parity import FOLDER, fill, worst

from dbae.diffusion import LinearBeta
from dbae.nn.dit import DiT, position_embedding
from dbae.nn.mlp import FeatureClassifier
from dbae.nn.unet_ddpm import sinusoid
from dbae.nn.vae import VAEEncoder, encoder_state
from dbae.nn.wide_resnet import WideResNet

VECTORS = np.load(FOLDER / "classifiers.npz")
CLOSE = 2e-5  # of the largest value


def vector(name):
    return torch.from_numpy(VECTORS[name])


def text(name):
    return json.loads(VECTORS[name].tobytes())


def normal(shape, seed):
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, np.float32))


def shapes(module):
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def filled(make, **settings):
    """The network with the deterministic weights of the vectors, in evaluation mode; none are drawn before."""
    with torch.device("meta"):
        module = make(**settings)
    module.load_state_dict({name: fill(name, shape) for name, shape in shapes(module).items()}, assign=True)
    return module.eval()


@pytest.fixture(scope="module")
def wide():
    return filled(WideResNet, classes=10)


def test_wide_resnet_has_the_official_tensors(wide):
    assert shapes(wide) == text("wrn/keys")
    assert sum(value.numel() for value in wide.state_dict().values()) == 38_913_242
    assert sum(value.numel() for value in wide.parameters()) == 38_913_242 - 128  # the frequencies are fixed


@pytest.mark.parametrize("kind", ["vp", "ve"])
@torch.inference_mode()
def test_wide_resnet(wide, kind):
    x = 0.7 * normal((2, 3, 32, 32), 60) + 0.1
    assert worst(wide(x, vector(f"wrn/{kind}/time")), vector(f"wrn/{kind}/logits")) < CLOSE


def test_wide_resnet_knows_no_brightness_or_contrast_but_the_noise_level():
    torch.manual_seed(0)
    net, x, u = WideResNet(classes=3, depth=10, widen=1).eval(), torch.randn(4, 3, 8, 8), torch.rand(4)
    logits = net(x, u)
    assert torch.allclose(net(5 * x + 2, u), logits, atol=1e-4)
    assert not torch.allclose(net(x, u + 0.3), logits, atol=1e-2)
    assert net(torch.ones(2, 3, 8, 8), u[:2]).isfinite().all()  # standard deviation 0
    logits.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_initial_weights_of_the_wide_resnet():
    torch.manual_seed(0)
    net = WideResNet(classes=10, depth=10, widen=4)
    conv = net.group3.blocks[0].conv2.weight
    assert conv.std().item() == pytest.approx((2 / conv[0].numel()) ** 0.5, rel=0.02)  # Kaiming, fan in
    assert net.time_emb.W.std().item() == pytest.approx(16, rel=0.2)


@torch.inference_mode()
def test_classifier_of_features():
    net, t = filled(FeatureClassifier, dim=256, classes=10), vector("mlp/dim256_classes10/t")
    assert shapes(net) == text("mlp/keys")
    assert worst(net(normal((4, 256), 61), t), vector("mlp/dim256_classes10/logits")) < CLOSE
    assert (sinusoid(t, 64) - vector("embed/integer_t_E256/sinusoid")).abs().max() < 5e-5  # angles up to 1000


def mini_dit():
    c = text("dit/mini/config")
    settings = {"size": c["input_size"], "patch": c["patch_size"], "channels": c["in_channels"]}
    settings |= {"width": c["hidden_size"], "depth": c["depth"], "heads": c["num_heads"], "classes": c["num_classes"]}
    return filled(DiT, **settings)


@pytest.mark.parametrize("t", [81, 121])
@torch.inference_mode()
def test_dit(t):
    net, times = mini_dit(), torch.full((2,), t)
    assert shapes(net) == text("dit/mini/keys")
    alpha_bar = LinearBeta(1000).log_s(times)[0].exp() ** 2
    x_t = (alpha_bar**0.5 * normal((2, 4, 8, 8), 70) + (1 - alpha_bar) ** 0.5 * normal((2, 4, 8, 8), 71)).float()
    assert worst(x_t, vector(f"dit/mini/t{t}/x_t")) < 1e-6
    assert worst(net(x_t, times), vector(f"dit/mini/t{t}/out")) < CLOSE
    names = [f"layer-{i}" for i in range(3)]
    pooled = net(x_t, times, blocks=names)
    assert worst(torch.stack([pooled[name] for name in names]), vector(f"dit/mini/t{t}/pooled")) < CLOSE
    assert torch.equal(net(x_t, times, y=torch.tensor([10, 10])), net(x_t, times))  # the last row is no class
    assert not torch.equal(net(x_t, times, y=torch.tensor([0, 9])), net(x_t, times))


@torch.inference_mode()
def test_dit_stops_after_the_last_block_asked_for():
    net, calls = mini_dit(), []
    for block in net.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    found = net(normal((2, 4, 8, 8), 70), torch.full((2,), 81), blocks=["layer-1"])
    assert list(found) == ["layer-1"] and found["layer-1"].shape == (2, 48) and len(calls) == 2


def test_dit_of_the_released_size():
    with torch.device("meta"):
        net = DiT()
    ours = shapes(net)
    assert (len(ours), sum(value.numel() for value in net.state_dict().values())) == (292, 675_129_632)
    assert ours["blocks.27.adaLN_modulation.1.weight"] == [6912, 1152]
    assert ours["final_layer.linear.weight"] == [32, 1152]
    rows = position_embedding(1152, 16)[[0, 1, 17]]
    assert (rows - vector("dit/pos_embed_1152_grid16_rows0_1_17")).abs().max() < 1e-6


def test_new_dit_leaves_residual_branches_closed():
    torch.manual_seed(0)
    net, x = DiT(size=8, width=32, depth=2, heads=2, classes=3), torch.randn(1, 4, 8, 8)
    first, second = net(x, torch.tensor([5]), blocks=["layer-0", "layer-1"]).values()
    assert torch.equal(first, second)


def test_noise_levels_of_dit():
    stored = vector("dit/alphas_cumprod_at_0_81_121_999")
    alpha_bar = LinearBeta(1000).log_s(torch.tensor([0, 81, 121, 999])).exp() ** 2
    assert (alpha_bar / stored - 1).abs().max() < 1e-9


def test_vae_encoder_of_the_released_size():
    with torch.device("meta"):
        net = VAEEncoder()
    ours = shapes(net)
    sizes = {name: value.numel() for name, value in net.state_dict().items()}
    assert sum(size for name, size in sizes.items() if name.startswith("encoder.")) == 34_163_592
    assert sum(size for name, size in sizes.items() if name.startswith("quant_conv.")) == 72
    assert ours["encoder.down_blocks.1.resnets.0.conv_shortcut.weight"] == [256, 128, 1, 1]
    assert ours["encoder.mid_block.attentions.0.to_out.0.weight"] == [512, 512]
    assert not any(name.startswith("encoder.down_blocks.3.downsamplers") for name in ours)


@torch.inference_mode()
def test_vae_encoder():
    net = filled(VAEEncoder, widths=(32, 64, 64))
    x = normal((2, 3, 16, 32), 80)
    mean, log_variance = net(x)
    assert mean.shape == log_variance.shape == (2, 4, 4, 8)
    net.quant_conv.bias[4:] += torch.tensor([1e3, -1e3, 0, 0])
    clamped = net(x)[1]
    assert (clamped[:, 0] == 20).all() and (clamped[:, 1] == -30).all()
    assert torch.equal(clamped[:, 2:], log_variance[:, 2:])


def test_older_names_of_the_autoencoder():
    net = filled(VAEEncoder, widths=(32, 32))
    state = net.state_dict()
    older, place = {}, "encoder.mid_block.attentions.0."
    for name, tensor in state.items():
        for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
            name = name.replace(f"{place}{new}.", f"{place}{old}.")
        older[name] = tensor
    assert older.keys() != state.keys()
    older["decoder.conv_in.weight"] = older["post_quant_conv.weight"] = torch.zeros(1)  # the other half
    for given in (older, state):
        read = encoder_state(given)
        assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)
