"""Every fast path against the plain one: layers, layout, optimizer, half precision, compilation, checkpointing."""

import copy
import ctypes
import os
import subprocess
import sys

import pytest
import tiny
import torch
import torch.nn.functional as F
from conftest import ROOT
from parity import images as official_images
from parity import released_model, vector, worst
from test_networks import GRADIENTS
from torch import nn
from torch.nn.utils import spectral_norm

from benchmarks.plain import plain
from dbae import performance
from dbae.checkpoint import to_released_names
from dbae.flat import Kept, flatten, parts
from dbae.nn.layers import DownConv2d, UpConv2d, with_channels
from dbae.nn.spectral import SpectralConv2d, SpectralConvTranspose2d, SpectralUpConv2d
from dbae.optimizer import RAdam
from dbae.outcomes import Outcomes
from dbae.performance import use_checkpointing, use_compile, use_half

CPU = torch.device("cpu")
YES, NO = torch.tensor(True), torch.tensor(False)


def close(ours, theirs, bound=1e-5):
    """Whether tensors agree up to a part of the largest value."""
    return ours.shape == theirs.shape and (ours - theirs).abs().max() <= bound * theirs.abs().max()


def gradients(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def loss_and_gradients(model, **changes):
    """The loss of fixed images at fixed times with fixed noise, and its gradients."""
    x, t = tiny.images(), torch.tensor([0.1, 0.4, 0.7, 0.95])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    torch.manual_seed(3)
    loss = model.loss(x, t, noise)
    loss.sum().backward()
    return loss.detach(), gradients(model)


def assert_same_training(ours, theirs, bound):
    """Losses and gradients agree; gradients that are 0 but for rounding are held against the largest of all."""
    (loss, grads), (expected, expected_grads) = ours, theirs
    assert close(loss, expected, bound) and len(grads) == len(expected_grads)
    floor = 0.01 * max(gradient.abs().max() for gradient in expected_grads)
    for ours_, theirs_ in zip(grads, expected_grads, strict=True):
        assert (ours_ - theirs_).abs().max() <= bound * max(theirs_.abs().max(), floor)


# Layers


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("conv", "resample"),
    [(UpConv2d, lambda x: F.interpolate(x, scale_factor=2)), (DownConv2d, lambda x: F.avg_pool2d(x, 2))],
)
def test_convolutions_that_resample(conv, resample, layout):
    torch.manual_seed(0)
    layer = conv(5, 7, 3, padding=1).to(memory_format=layout)
    x = torch.randn(2, 5, 6, 10).to(memory_format=layout)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(inputs[0]), F.conv2d(resample(inputs[1]), layer.weight, layer.bias, padding=1)]
    slope = torch.randn_like(outputs[1])
    slopes = [
        torch.autograd.grad(y, (x, layer.weight, layer.bias), slope) for x, y in zip(inputs, outputs, strict=True)
    ]
    for ours, theirs in zip((outputs[0], *slopes[0]), (outputs[1], *slopes[1]), strict=True):
        assert close(ours, theirs, 2e-6)


def test_resampling_convolutions_keep_names_and_initial_values():
    torch.manual_seed(0)
    layer = UpConv2d(4, 4, 3, padding=1)
    torch.manual_seed(0)
    assert all(
        torch.equal(layer.state_dict()[name], v) for name, v in nn.Conv2d(4, 4, 3, padding=1).state_dict().items()
    )
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_channels_of_zeros_change_nothing():
    x, weight = torch.randn(2, 6, 4, 4), torch.randn(16, 6, 3, 3)
    assert with_channels(x, 8).shape[1] == with_channels(weight, 8).shape[1] == 8
    assert torch.allclose(F.conv2d(with_channels(x, 8), with_channels(weight, 8)), F.conv2d(x, weight), atol=1e-5)
    assert with_channels(torch.randn(1, 8, 2, 2), 8).shape[1] == 8


SPECTRAL = {
    SpectralConv2d: (lambda: nn.Conv2d(6, 4, 3, bias=False), (2, 6, 5, 5), lambda x: x),
    SpectralUpConv2d: (
        lambda: nn.Conv2d(6, 4, 3, padding=1, bias=False), (2, 6, 5, 5), lambda x: F.interpolate(x, scale_factor=2)
    ),
    SpectralConvTranspose2d: (lambda: nn.ConvTranspose2d(6, 4, 4, bias=False), (2, 6, 1, 1), lambda x: x),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_norm_is_the_classic_one(kind):
    make, shape, before = SPECTRAL[kind]
    torch.manual_seed(0)
    theirs = spectral_norm(make())
    kernel = theirs.weight_orig.shape[2]
    ours = kind(6, 4, kernel, bias=False, **({"padding": 1} if kind is SpectralUpConv2d else {}))
    assert set(ours.state_dict()) == set(theirs.state_dict()) == {"weight_orig", "weight_u", "weight_v"}
    ours.load_state_dict(theirs.state_dict())
    for training in (True, True, True, False, True):
        ours.train(training), theirs.train(training)
        x = torch.randn(shape)
        y, expected = ours(x), theirs(before(x))
        slope = torch.randn_like(y)
        (ours_,), (theirs_,) = (
            torch.autograd.grad(v, m.weight_orig, slope) for v, m in ((y, ours), (expected, theirs))
        )
        assert close(y, expected) and close(ours_, theirs_)
        assert all(torch.allclose(v, theirs.state_dict()[n], atol=1e-6) for n, v in ours.state_dict().items())


def test_spectral_norm_starts_with_unit_vectors_of_the_matrix():
    layer = SpectralConvTranspose2d(6, 4, 4, bias=False)
    assert layer.weight_u.shape == (4,) and layer.weight_v.shape == (6 * 16,)
    assert layer.weight_u.norm().item() == pytest.approx(1) == layer.weight_v.norm().item()


def test_spectral_norm_is_taken_in_float32_under_autocast():
    layer = SpectralConv2d(6, 4, 3, bias=False).eval()
    exact = layer.normalised()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.normalised(), exact)
        assert layer(torch.randn(1, 6, 5, 5)).dtype == torch.bfloat16


# The whole model


@pytest.fixture(scope="module")
def model():
    return tiny.model(stochastic=True, norm_groups=4).train()


def fresh(model):
    return copy.deepcopy(model)


def test_default_path_agrees_with_the_plain_one(model):
    default, reference = fresh(model), plain(model)
    first = next(p for p in default.unet.parameters() if p.ndim == 4)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert all(p.is_contiguous() for p in reference.parameters())
    assert_same_training(loss_and_gradients(default), loss_and_gradients(reference), 1e-5)
    for ours, theirs in zip(default.buffers(), (b for b in reference.buffers()), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_checkpointing_computes_the_same(model):
    config = {"dropout": 0.5}
    torch.manual_seed(0)
    usual = tiny.model(**config).train()
    thrifty = fresh(usual)
    use_checkpointing(thrifty)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        expected = loss_and_gradients(usual)
    usually = sum(kept)
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        ours = loss_and_gradients(thrifty)
    assert sum(kept) < 0.8 * usually
    assert_same_training(ours, expected, 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(usual.buffers(), thrifty.buffers(), strict=True))


def test_half_precision_of_all_networks_or_of_the_unet_alone(model):
    x, t = tiny.images(), torch.full((4,), 0.5)
    full, everything, unet = fresh(model).eval(), fresh(model).eval(), fresh(model).eval()
    use_half(everything, torch.bfloat16)
    use_half(unet, torch.bfloat16, "unet")
    z = full.encode(x, sample=False)
    x_T = full.decode(z)
    assert torch.equal(unet.encode(x, sample=False), z) and torch.equal(unet.decode(z), x_T)
    assert not torch.equal(everything.encode(x, sample=False), z) and not torch.equal(everything.decode(z), x_T)
    D_x = full.denoise(x, t, x_T, z)
    for half in (unet, everything):
        results = {half.encode(x, sample=False): z, half.decode(z): x_T, half.denoise(x, t, x_T, z): D_x}
        assert all(ours.dtype == torch.float32 and close(ours, theirs, 0.03) for ours, theirs in results.items())
        assert not torch.equal(half.denoise(x, t, x_T, z), D_x)
    use_half(everything, None)
    assert torch.equal(everything.encode(x, sample=False), z)


@pytest.fixture(scope="module")
def released():
    return released_model(64, "det")


def checkpointed(model):
    use_checkpointing(model)
    return model


PATHS = {
    "contiguous": (lambda model: model.to(memory_format=torch.contiguous_format), 1e-4),
    "plain": (plain, 1e-4),
    "checkpointing": (checkpointed, 1e-4),
    "bf16": (lambda model: use_half(model, torch.bfloat16) or model, 0.05),
    "bf16 in the U-Net": (lambda model: use_half(model, torch.bfloat16, "unet") or model, 0.05),
}


@pytest.mark.parametrize("path", PATHS)
def test_every_path_agrees_with_the_official_code(released, path):
    """The default path does in test_networks.py, by the same bound."""
    prepare, bound = PATHS[path]
    model, name = prepare(fresh(released)), "net/64_det/loss_vp"
    loss = model.loss(official_images(2, 64), vector(f"{name}/t"), vector(f"{name}/noise"))
    assert worst(loss, vector(f"{name}/loss")) < bound
    loss.mean().backward()
    parameters = to_released_names(dict(model.named_parameters()))
    norms = torch.stack([parameters[tensor].grad.norm() for tensor in GRADIENTS])
    assert torch.allclose(norms.double(), vector(f"{name}/grad_norms"), rtol=bound)


# Compilation


@pytest.fixture
def compilable():
    problem = performance._cannot_compile(CPU)
    if problem:
        pytest.skip(f"nothing compiles here: {problem}")


@torch.no_grad()
def test_compiled_networks_agree_with_the_official_code(released, compilable):
    compiled = fresh(released)
    assert use_compile(compiled, "true", CPU)
    x, name = official_images(2, 64), "net/64_det"
    z = compiled.encode(x)
    x_T = compiled.decode(z)
    assert worst(z, vector(f"{name}/z")) < 1e-4 and worst(x_T, vector(f"{name}/x_T")) < 1e-4
    assert worst(compiled.denoise(x, torch.tensor([0.3, 0.9]), x_T, z), vector(f"{name}/denoise_vp")) < 1e-4


def test_compiled_networks_agree(model, compilable):
    compiled = fresh(model)
    assert use_compile(compiled, "true", CPU)
    assert set(compiled.state_dict()) == set(model.state_dict())
    assert_same_training(loss_and_gradients(compiled), loss_and_gradients(fresh(model)), 1e-5)


def test_a_run_compiles_in_its_first_step_and_never_again(model, monkeypatch):
    """With micro-batches of two sizes and the power iteration on and off: every kind occurs in the first step."""
    from dbae.config import TrainConfig
    from dbae.signals import Stop
    from dbae.state import TrainState
    from dbae.training import take_step

    compiled = []

    def backend(graph, example):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setitem(performance.COMPILE_MODES, "true", None)
    monkeypatch.setattr(performance, "_cannot_compile", lambda device: None)
    usual = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, mode, **how: usual(self, backend=backend, fullgraph=True, **how)
    )
    torch._dynamo.reset()
    running = fresh(model)
    config = TrainConfig(batch_size=5, microbatch=2, precision="fp32")
    assert use_compile(running, "true", CPU)
    state = TrainState.create(running, config, CPU, half=False)
    buffers = Kept(list(running.buffers()))
    data = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    batches = (part for _ in range(4) for part in data.split(2))
    counts = []
    for _ in range(4):
        take_step(running, state, batches, config, CPU, buffers, Stop())
        counts.append(len(compiled))
    assert counts[0] > 0 and counts == [counts[0]] * 4


def test_compiled_networks_stay_whole_under_several_processes(model, monkeypatch):
    """DistributedDataParallel has graphs cut by the storage of their parameters, which is that of all."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    graphs = []
    usual = nn.Module.compile
    monkeypatch.setattr(performance, "_cannot_compile", lambda device: None)
    monkeypatch.setattr(torch._dynamo.config, "optimize_ddp", True)
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **_: usual(self, backend=lambda g, x: graphs.append(g) or g.forward)
    )
    torch._dynamo.reset()
    running = fresh(model)
    flatten([p for p in running.parameters() if p.requires_grad])
    assert use_compile(running, "true", CPU)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(running, bucket_cap_mb=0.01)
        wrapped(tiny.images()).sum().backward()
    finally:
        dist.destroy_process_group()
    assert len(graphs) == 3


def test_what_cannot_be_compiled_runs_on_with_one_line(model, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no compiler found\nand a long explanation")

    monkeypatch.setattr(torch, "compile", fail)
    running = fresh(model).eval()
    assert not use_compile(running, "graphs", CPU)
    assert capsys.readouterr().err == "warning: compile: not possible here, going on without: no compiler found\n"
    assert close(running.decode(torch.ones(1, 8)), fresh(model).eval().decode(torch.ones(1, 8)))
    for mode in ("false", "auto"):  # auto is for GPUs
        assert not use_compile(running, mode, CPU) and not capsys.readouterr().err


# Parameters as one vector


def test_flattened_tensors_keep_shape_layout_and_identity():
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    bias, scalar = nn.Parameter(torch.randn(5)), torch.tensor(2.0)
    tensors, values = [weight, bias, scalar], [weight.detach().clone(), bias.detach().clone(), scalar.clone()]
    vector = flatten(tensors)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors, values, strict=True))
    assert weight.is_contiguous(memory_format=torch.channels_last) and len(vector) == 48 + 16 + 16
    vector.mul_(2)
    assert torch.equal(weight, 2 * values[0]) and torch.equal(bias, 2 * values[1]) and scalar == 4
    assert [part.data_ptr() for part in parts(vector, tensors)] == [tensor.data_ptr() for tensor in tensors]
    assert vector.sum().item() == pytest.approx(sum(tensor.sum().item() for tensor in tensors), rel=1e-5)


def test_kept_values_come_back():
    tensors = [torch.ones(3), torch.tensor(7), torch.full((2, 2), 5.0)]
    kept = Kept(tensors)
    kept.keep()
    for tensor in tensors:
        tensor.add_(1)
    kept.restore_unless(YES)
    assert [tensor.flatten()[0].item() for tensor in tensors] == [2, 8, 6]
    tensors[0].fill_(float("nan"))
    kept.restore_unless(NO)
    assert [tensor.flatten()[0].item() for tensor in tensors] == [1, 7, 5]
    Kept([]).keep()


def twins(weight_decay=0.0):
    """Equal layers with PyTorch's RAdam and with ours."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 5)) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    theirs = torch.optim.RAdam(layers[0].parameters(), lr=0.05, weight_decay=weight_decay)
    return layers, theirs, RAdam(list(layers[1].parameters()), 0.05, weight_decay)


def feed(layers, seed):
    """Equal gradients for both."""
    for pair in zip(*(layer.parameters() for layer in layers), strict=True):
        gradient = torch.randn(pair[0].shape, generator=torch.Generator().manual_seed(seed))
        pair[0].grad = gradient
        pair[1].grad.copy_(gradient)


def same(layers, bound=2e-6):
    pairs = zip(*(layer.parameters() for layer in layers), strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=bound) for a, b in pairs)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_radam_is_pytorchs(weight_decay):
    layers, theirs, ours = twins(weight_decay)
    for seed in range(12):  # the first five are not rectified
        feed(layers, seed)
        theirs.step()
        ours.step(YES)
        ours.zero_grad()
        assert same(layers), seed
        assert not any(p.grad.any() for p in layers[1].parameters())


def test_radam_skips_on_the_device():
    layers, theirs, ours = twins()
    for seed in range(9):
        feed(layers, seed)
        theirs.step()
        ours.step(YES)
        for bad in (float("nan"), float("inf"), 1e30):
            ours.vector.grad.fill_(bad)
            ours.step(NO)
    assert same(layers) and ours.state_dict()["state"][0]["step"] == 9


def test_radam_skips_by_its_coefficients_alone():
    """As on a GPU, where the host does not know: gradients are set to 0, and nothing may move."""
    from dbae.optimizer import coefficients, update

    vectors = [torch.randn(8), torch.zeros(8), torch.randn(8), torch.rand(8)]
    before = [vector.clone() for vector in vectors]
    for step in (0.0, 3.0, 20.0):
        factors = coefficients(torch.tensor(step, dtype=torch.float64), NO, 0.1, 0.9, 0.999, 1e-8)
        update(*vectors, *factors, 0.1)
        assert torch.equal(vectors[0], before[0])
        assert torch.equal(vectors[2], before[2]) and torch.equal(vectors[3], before[3])


def test_radam_reads_and_writes_pytorchs_state():
    layers, theirs, ours = twins()
    for seed in range(7):
        feed(layers, seed)
        theirs.step()
    layers[1].load_state_dict(layers[0].state_dict())
    ours.load_state_dict(theirs.state_dict())
    feed(layers, 7)
    theirs.step()
    ours.step(YES)
    assert same(layers)
    back = torch.optim.RAdam(layers[0].parameters(), lr=0.05)
    back.load_state_dict(copy.deepcopy(ours.state_dict()) | {"param_groups": theirs.state_dict()["param_groups"]})
    feed(layers, 8)
    back.step()
    ours.step(YES)
    assert same(layers)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state["state"].pop(3),
        lambda state: state["state"][1].update(exp_avg=torch.zeros(1)),
        lambda state: state["state"][0].pop("exp_avg_sq"),
        lambda state: state["param_groups"].append({}),
    ],
)
def test_radam_refuses_a_state_that_does_not_fit(spoil):
    layers, theirs, ours = twins()
    feed(layers, 0)
    theirs.step()
    state = theirs.state_dict()
    spoil(state)
    with pytest.raises((KeyError, ValueError)):
        ours.load_state_dict(state)


# What the host learns, and when


def test_outcomes_may_be_a_step_late():
    late = Outcomes(CPU)
    assert late.lag == 0
    late.lag = 1
    seen = []
    for step in range(1, 6):
        late.add(step, 8 * step, torch.tensor([step / 2, 1.0, 0.0]))
        seen.append([outcome.step for outcome in late.arrived(wait=step == 4)])
    assert seen == [[], [1], [2], [3, 4], []]
    (last,) = late.arrived(wait=True)
    assert (last.step, last.images, last.loss, last.taken, last.stopping) == (5, 40, 2.5, True, False)


def test_memory_is_kept():
    """Sampling costs hardly any page faults once the allocator is told to keep what is freed."""
    if not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("only glibc's allocator can be told")
    program = """
import resource, sys, tiny, torch
from dbae.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
model, z = tiny.model(), torch.ones(16, 8)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    model.generate_from(z, steps=2)
before = faults()
for _ in range(2):
    model.generate_from(z, steps=2)
print(faults() - before)
"""
    setting = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    kept, left = (
        int(subprocess.run([sys.executable, "-c", program, how], env=setting, capture_output=True, check=True).stdout)
        for how in ("keep", "leave")
    )
    assert kept < left / 10
