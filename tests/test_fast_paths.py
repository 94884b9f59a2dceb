"""Every fast path against the reference: layers, layout, half precision, compilation, checkpointing, memory."""

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

from benchmarks.reference import reference
from dbae import runtime
from dbae.config import COMPILE_FROM, TrainConfig
from dbae.methods.dbae import DBAE
from dbae.nn.layers import DownConv2d, UpConv2d, with_channels
from dbae.runtime import Stop, use_checkpointing, use_compile
from dbae.state import TrainState
from dbae.training import take_step
from scripts.trained import TrainedModel

CPU = torch.device("cpu")


def close(ours, theirs, bound=1e-5):
    """Whether tensors agree up to a part of the largest value."""
    return ours.shape == theirs.shape and (ours - theirs).abs().max() <= bound * theirs.abs().max()


def loss_and_gradients(model):
    """The loss of fixed images at fixed times with fixed noise, and its gradients."""
    x, t = tiny.images(), torch.tensor([0.1, 0.4, 0.7, 0.95])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    torch.manual_seed(3)
    loss = model.loss(x, t=t, noise=noise)
    loss.sum().backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


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
    assert set(layer.state_dict()) == {"weight", "bias"}
    x = torch.randn(2, 5, 6, 10).to(memory_format=layout)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(inputs[0]), F.conv2d(resample(inputs[1]), layer.weight, layer.bias, padding=1)]
    slope = torch.randn_like(outputs[1])
    slopes = [
        torch.autograd.grad(y, (x, layer.weight, layer.bias), slope) for x, y in zip(inputs, outputs, strict=True)
    ]
    for ours, theirs in zip((outputs[0], *slopes[0]), (outputs[1], *slopes[1]), strict=True):
        assert close(ours, theirs, 2e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_upsampling_kernel_is_rounded_once_under_autocast(layout):
    """It is nearer to float64 than one that is summed in bf16, also in a compiled graph."""
    torch.manual_seed(0)
    layer = UpConv2d(32, 32, 3, padding=1).to(memory_format=layout)
    x = torch.randn(2, 32, 16, 16).to(memory_format=layout)
    exact = F.conv2d(F.interpolate(x.double(), scale_factor=2), layer.weight.double(), layer.bias.double(), padding=1)

    def summed_in_bf16():
        kernel = (layer.weight.bfloat16().flatten(2) @ layer.kernels.bfloat16()).unflatten(2, (4, 4)).transpose(0, 1)
        return F.conv_transpose2d(x.bfloat16(), kernel, layer.bias.bfloat16(), stride=2, padding=1)

    def error(y):
        assert y.dtype == torch.bfloat16
        return ((y - exact).square().mean() / exact.square().mean()).sqrt().item()

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, graph, coarse = error(layer(x)), error(compiled(x)), error(summed_in_bf16())
    assert ours < 0.96 * coarse and graph == pytest.approx(ours, rel=1e-3)


def test_channels_of_zeros_change_nothing():
    x, weight = torch.randn(2, 6, 4, 4), torch.randn(16, 6, 3, 3)
    assert with_channels(x, 8).shape[1] == with_channels(weight, 8).shape[1] == 8
    assert torch.allclose(F.conv2d(with_channels(x, 8), with_channels(weight, 8)), F.conv2d(x, weight), atol=1e-5)
    assert with_channels(torch.randn(1, 8, 2, 2), 8).shape[1] == 8


# The whole model


@pytest.fixture(scope="module")
def model():
    return tiny.model(stochastic=True, norm_groups=4).train()


def fresh(model):
    return copy.deepcopy(model)


def test_default_path_agrees_with_the_reference(model):
    default, plain = fresh(model), reference(model)
    first = next(p for p in default.unet.parameters() if p.ndim == 4)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert all(p.is_contiguous() for p in plain.parameters())
    assert_same_training(loss_and_gradients(default), loss_and_gradients(plain), 1e-5)
    for ours, theirs in zip(default.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_checkpointing_computes_the_same():
    usual = tiny.model(dropout=0.5).train()
    thrifty, kept = fresh(usual), []
    use_checkpointing(thrifty)

    def saved(model):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            return loss_and_gradients(model), sum(kept)

    (expected, usually), (ours, rarely) = saved(usual), saved(thrifty)
    assert rarely < 0.8 * usually
    assert_same_training(ours, expected, 1e-6)
    assert all(torch.equal(a, b) for a, b in zip(usual.buffers(), thrifty.buffers(), strict=True))


def test_half_precision_on_a_cpu_is_laid_out_for_its_group_norm(model):
    other = copy.deepcopy(model)
    other.use_amp(torch.bfloat16)
    weight = other.get_parameter("unet.input_blocks.1.0.in_layers.2.weight")
    assert weight.is_contiguous() and not weight.is_contiguous(memory_format=torch.channels_last)
    untrained = TrainedModel(other, other.SAMPLING).untrained(seed=0).model
    assert untrained.amp == other.amp and untrained.precision == "bf16"
    assert all(a.stride() == b.stride() for a, b in zip(untrained.parameters(), other.parameters(), strict=True))


def test_half_precision_leaves_the_decoder_alone(model):
    x, t = tiny.images(), torch.full((4,), 0.5)
    full, everything, unet = fresh(model).eval(), fresh(model).eval(), fresh(model).eval()
    everything.use_amp(torch.bfloat16)
    unet.use_amp(torch.bfloat16, "unet")
    assert (full.precision, everything.precision, unet.precision) == ("fp32", "bf16", "bf16 (U-Net alone)")
    z = full.encode(x, sample=False)
    x_T = full.decode(z)
    D_x = full.denoise(x, t, x_T=x_T, z=z)
    assert torch.equal(unet.encode(x, sample=False), z) and not torch.equal(everything.encode(x, sample=False), z)
    for half in (unet, everything):
        assert torch.equal(half.decode(z), x_T)
        ours = half.denoise(x, t, x_T=x_T, z=z)
        assert ours.dtype == torch.float32 and close(ours, D_x, 0.03) and not torch.equal(ours, D_x)
    everything.use_amp(None)
    assert torch.equal(everything.encode(x, sample=False), z)


@pytest.fixture(scope="module")
def released():
    return released_model(64, "det")


PATHS = {
    "contiguous": (lambda model: model.to(memory_format=torch.contiguous_format), 1e-4),
    "reference": (reference, 1e-4),
    "checkpointing": (lambda model: use_checkpointing(model) or model, 1e-4),
    "bf16": (lambda model: model.use_amp(torch.bfloat16) or model, 0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_every_path_agrees_with_the_official_code(released, path):
    """The default path does in test_networks.py, by the same bound."""
    prepare, bound = PATHS[path]
    model, name = prepare(fresh(released)), "net/64_det/loss_vp"
    loss = model.loss(official_images(2, 64), t=vector(f"{name}/t"), noise=vector(f"{name}/noise"))
    assert worst(loss, vector(f"{name}/loss")) < bound
    loss.mean().backward()
    parameters = DBAE.to_official(dict(model.named_parameters()))
    norms = torch.stack([parameters[tensor].grad.norm() for tensor in GRADIENTS])
    assert torch.allclose(norms.double(), vector(f"{name}/grad_norms"), rtol=bound)


# Compilation


@pytest.fixture
def compilable():
    problem = runtime._cannot_compile(CPU)
    if problem:
        pytest.skip(f"nothing compiles here: {problem}")


@pytest.mark.slow
def test_compiled_networks_agree(model, compilable):
    compiled = fresh(model)
    assert use_compile(compiled, "true", CPU)
    assert set(compiled.state_dict()) == set(model.state_dict())
    assert_same_training(loss_and_gradients(compiled), loss_and_gradients(fresh(model)), 1e-5)


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that models are compiled to from now on, by a backend that runs them as they are."""
    compiled = []

    def backend(graph, example):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setitem(runtime.COMPILE_MODES, "true", None)
    monkeypatch.setattr(runtime, "_cannot_compile", lambda device: None)
    usual = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode, **how: usual(self, backend=backend, **how))
    torch._dynamo.reset()
    return compiled


@pytest.mark.slow
def test_a_run_compiles_in_its_first_step_and_never_again(model, graphs):
    """With micro-batches of two sizes and the power iteration on and off: every kind occurs in the first step."""
    running = fresh(model)
    config = TrainConfig(batch_size=5, microbatch=2, precision="fp32")
    assert use_compile(running, "true", CPU)
    state = TrainState.create(running, config, CPU, scaled=False)
    data = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    batches = ((part, None) for _ in range(4) for part in data.split(2))
    counts = []
    for _ in range(4):
        take_step(running, state, batches, config, CPU, Stop())
        counts.append(len(graphs))
    assert counts[0] > 0 and counts == [counts[0]] * 4


@pytest.mark.slow
def test_a_smaller_batch_is_not_compiled_again(model, graphs):
    running, plain, z, x_T = fresh(model).eval(), fresh(model).eval(), torch.ones(4, 8), tiny.images(4)
    assert use_compile(running, "true", CPU)
    counts = []
    for n in (3, 2, 1, 4):
        made, expected = (m.generate_from(z[:n], x_T[:n], steps=2, sampler="dbim") for m in (running, plain))
        assert close(made, expected)
        counts.append(len(graphs))
    assert 0 < counts[0] == counts[1] == counts[2] < counts[3]


def test_what_is_compiled_sees_as_few_sizes_as_it_can(model):
    """A batch is filled up to the next size that was seen; its results, and features by block, are its own."""
    running, plain, x, sizes = fresh(model).eval(), fresh(model).eval(), tiny.images(4), []
    running.compiled["unet"] = set()
    running.unet.register_forward_pre_hook(lambda _, inputs: sizes.append({len(each) for each in inputs}))
    for n in (2, 4, 3, 1):
        noise, blocks, cond = torch.randn(n, 3, 32, 32), running.block_names()[:2], plain.condition(x[:n])
        ours, theirs = (m.features(x[:n], 0.5, blocks, noise, cond=cond) for m in (running, plain))
        assert all(close(ours[name], theirs[name]) for name in blocks)
    assert sizes == [{2}, {4}, {4}, {2}]
    sizes.clear()
    running.train().loss(x[:1])
    assert sizes == [{1}]


def test_what_cannot_be_compiled_runs_on_with_one_line(model, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no compiler found\nand a long explanation")

    monkeypatch.setattr(torch, "compile", fail)
    running = fresh(model)
    assert not use_compile(running.train(), "true", CPU)
    said = capsys.readouterr().err
    assert all(part in said for part in ("without: no compiler found; ", "memory", "--microbatch", "--checkpointing"))
    assert not use_compile(running.eval(), "graphs", CPU)
    assert capsys.readouterr().err == "warning: compile: not possible here, going on without: no compiler found\n"
    assert close(running.decode(torch.ones(1, 8)), fresh(model).eval().decode(torch.ones(1, 8)))
    for mode in ("false", "auto"):  # auto is for GPUs
        assert not use_compile(running, mode, CPU) and not capsys.readouterr().err
    for calls, tried in ((COMPILE_FROM - 1, False), (COMPILE_FROM, True)):
        assert not use_compile(running, "auto", torch.device("cuda"), calls)
        assert capsys.readouterr().err.startswith("warning: compile: not possible here") == tried


@pytest.mark.slow
def test_memory_is_kept():
    """Sampling costs hardly any page faults once the allocator is told to keep what is freed."""
    if not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("only glibc's allocator can be told")
    program = """
import resource, sys, tiny, torch
from dbae.runtime import keep_freed_memory
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
