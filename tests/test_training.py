"""Training: micro-batches, resume, averages, optimizers, precision, and two processes against one."""

import csv
import math
import subprocess
import sys

import pytest
import tiny
import torch
from conftest import ROOT

from dbae import runtime
from dbae.checkpoint import complete_sets
from dbae.config import TrainConfig, UserError
from dbae.methods import DBAE, DDIM, DiffAE, preset
from dbae.runtime import Stop, amp_dtype
from dbae.state import EMA, EMA_RULES, OPTIMIZERS, TrainState
from dbae.training import take_step, train
from scripts.train import fit, summary

CPU = torch.device("cpu")
SETTINGS = {
    "total_steps": 4, "batch_size": 4, "microbatch": 2, "lr": 1e-2, "ema_rate": 0.9, "log_interval": 2,
    "sample_interval": 2, "save_interval": 4, "save_interval_for_preemption": 1,
}  # fmt: skip
DATA = ((tiny.images(8, seed=1) + 1) * 127.5).to(torch.uint8)


def stream(position: int, microbatch: int):
    """Micro-batches of an endless repetition of DATA, from an image position on."""
    while True:
        yield DATA[[p % len(DATA) for p in range(position, position + microbatch)]], None
        position += microbatch


def create(config: TrainConfig, **changes) -> TrainState:
    """A fresh state of the tiny model."""
    torch.manual_seed(0)
    return TrainState.create(DBAE(tiny.config(**changes)), config, CPU, scaled=False)


def run(run_dir, previews=None, **changes) -> TrainState:
    """Train the tiny model, resuming where ``run_dir`` says."""
    config = TrainConfig(**{**SETTINGS, **changes})
    state = create(config, stochastic=True)
    state.restore_newest(str(run_dir))
    previews = [] if previews is None else previews
    batches = stream(state.images, config.microbatch)
    train(state, batches, config, str(run_dir), CPU, lambda model, step: previews.append(step))
    return state


def assert_same(one: dict, other: dict, tolerance=0.0):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if tolerance:
            assert torch.allclose(value, other[name], atol=tolerance), name
        else:
            assert torch.equal(value, other[name]), name


def test_run_writes_what_it_promises(tmp_path):
    previews = []
    state = run(tmp_path, previews)
    assert (state.step, state.images) == (4, 16) and previews == [2, 4]
    assert complete_sets(str(tmp_path), 0.9) == [(3, "freq_"), (4, "")]
    names = {path.name for path in tmp_path.iterdir() if path.suffix == ".pt"}
    kept = {"model_000004.pt", "ema_0.9_000004.pt", "opt_000004.pt"}
    assert names == kept | {"freq_model_000003.pt", "freq_ema_0.9_000003.pt", "freq_opt_000003.pt"}
    rows = list(csv.DictReader((tmp_path / "progress.csv").open()))
    assert [(row["step"], row["images"]) for row in rows] == [("2", "8"), ("4", "16")]
    assert all(float(row["loss"]) > 0 and float(row["images_per_second"]) > 0 for row in rows)


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = run(tmp_path / "whole", total_steps=6)
    run(tmp_path / "parts", total_steps=3)
    (tmp_path / "parts" / "opt_000003.pt").replace(tmp_path / "parts" / "elsewhere")  # the newest set is incomplete
    resumed = run(tmp_path / "parts", total_steps=6)
    assert resumed.images == whole.images == 24
    assert_same(whole.model.state_dict(), resumed.model.state_dict())
    assert_same(whole.ema.module.state_dict(), resumed.ema.module.state_dict())
    rows = [list(csv.reader((tmp_path / part / "progress.csv").open())) for part in ("whole", "parts")]
    assert [row[:3] for row in rows[0]] == [row[:3] for row in rows[1]]


def test_preemption_sets_rotate_by_number(tmp_path):
    (tmp_path / "freq_opt_000001.pt.0123abcd.tmp").touch()  # of a process that was killed in a save
    run(tmp_path, total_steps=4, save_interval=2)
    assert complete_sets(str(tmp_path), 0.9) == [(2, ""), (3, "freq_"), (4, "")]
    run(tmp_path, total_steps=5, save_interval=2)
    assert complete_sets(str(tmp_path), 0.9) == [(2, ""), (4, ""), (5, "")]
    assert not [path for path in tmp_path.iterdir() if "00001" in path.name or "freq" in path.name]


def test_weights_alone_start_a_run(tmp_path):
    first = run(tmp_path / "first")
    path = tmp_path / "model_000004.pt"
    (tmp_path / "first" / "model_000004.pt").replace(path)
    state = create(TrainConfig(**SETTINGS), stochastic=True)
    assert "weights alone" in state.restore_from(str(path))
    assert state.step == 0
    assert_same(first.model.state_dict(), state.model.state_dict())
    assert_same(first.model.state_dict(), state.ema.module.state_dict())


def test_a_set_that_has_taken_all_steps_is_no_start(tmp_path):
    run(tmp_path / "first")
    path, model = str(tmp_path / "first" / "model_000004.pt"), tiny.model(stochastic=True)
    with pytest.raises(UserError, match=r"total_steps: expected more than the 4 of .*model_000004.pt, got 4; to begin"):
        fit(model, TrainConfig(**SETTINGS), str(tmp_path / "new"), {}, "", iter, print, path, quiet=True)


def gradients(microbatch):
    """Gradients of one step over the same images, cut differently; fixed times and noise, no batch statistics."""
    model = tiny.model()
    noise, t = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 0.9, 8)
    x0 = tiny.images(8)
    for start in range(0, 8, microbatch):
        part = slice(start, start + microbatch)
        (model.loss(x0[part], t=t[part], noise=noise[part]).sum() / 8).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_micro_batches_average():
    whole, parts = gradients(8), gradients(2)
    for name, gradient in whole.items():
        assert (gradient - parts[name]).norm() < 1e-4 * gradient.norm() + 1e-7, name


def test_uneven_micro_batches_weigh_images_equally(tmp_path, monkeypatch):
    """The loss of a step is the mean over its images, also where the last micro-batch is short."""
    seen = []

    class Counting(DBAE):
        def forward(self, x0, y=None):
            seen.append((len(x0), y.tolist()))
            return super().loss(x0) * 0 + torch.arange(len(x0))

    config = TrainConfig(**{**SETTINGS, "total_steps": 1, "batch_size": 5, "microbatch": 3, "log_interval": 1})
    state = TrainState.create(Counting(tiny.config()), config, CPU, scaled=False)
    batches = [(DATA[:3], torch.arange(3)), (DATA[3:5], torch.arange(3, 5))]
    train(state, iter(batches), config, str(tmp_path), CPU, lambda model, step: None)
    row = next(csv.DictReader((tmp_path / "progress.csv").open()))
    assert seen == [(3, [0, 1, 2]), (2, [3, 4])] and float(row["loss"]) == pytest.approx((0 + 1 + 2 + 0 + 1) / 5)


def test_whole_batch_at_once(tmp_path):
    config = TrainConfig(**{**SETTINGS, "total_steps": 1, "microbatch": -1})
    state = create(config)
    train(state, iter([(DATA[:4], None)]), config, str(tmp_path), CPU, lambda model, step: None)
    assert state.images == 4


def test_average_follows_its_definition():
    model = torch.nn.Linear(2, 1)
    ema, expected = EMA(model, 0.9), model.weight.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            model.weight += 1
        ema.update(step)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    assert torch.allclose(ema.module.weight, expected)


@pytest.mark.parametrize(
    ("rule", "step", "rate"),
    [("constant", 1, 0.9999), ("warmup", 8, 0.5), ("warmup", 10**6, 0.9999), ("inverse-power", 1, 0.0)]
    + [("inverse-power", 1000, 0.99), ("inverse-power", 10**7, 0.9999)],
)
def test_rates_of_the_average(rule, step, rate):
    assert EMA_RULES[rule](0.9999, step) == pytest.approx(rate)


def share_of_start(steps):
    """What an average holds of the random start after ``steps`` steps of such a run, by the rule of `auto`."""
    config = TrainConfig(total_steps=steps)
    rule = EMA_RULES[config.resolved().ema_rule]
    return math.prod(rule(config.ema_rate, k) for k in range(1, steps + 1))


def test_the_average_suits_the_length_of_the_run():
    """Of 250 steps at (1 + k) / (10 + k) it is 251! 10! / 260!; at a constant rate it would be 0.975."""
    assert share_of_start(250) == pytest.approx(math.factorial(10) * math.factorial(251) / math.factorial(260))
    assert share_of_start(250) < 1e-14 and all(share_of_start(steps) < 1e-6 for steps in (20, 1000, 199_999, 200_000))
    rules = {steps: TrainConfig(total_steps=steps).resolved().ema_rule for steps in (199_999, 200_000)}
    assert rules == {199_999: "warmup", 200_000: "constant"}
    assert TrainConfig(total_steps=200, ema_rate=0.9).resolved().ema_rule == "constant"
    assert TrainConfig(total_steps=250, ema_rule="constant").resolved().ema_rule == "constant"
    assert create(TrainConfig(**{**SETTINGS, "ema_rate": 0.9999})).ema.rule is EMA_RULES["warmup"]


@pytest.mark.parametrize(("method", "dataset"), [(m, row) for m in (DBAE, DiffAE, DDIM) for row in m.PRESETS])
def test_published_presets_average_at_a_constant_rate(method, dataset):
    config = preset(method, TrainConfig, "folder:x" if dataset == "folder" else dataset, {})
    rule = "warmup" if dataset in ("toyfaces", "sprites") else "constant"
    assert (config.resolved().ema_rule, config.ema_rate) == (rule, 0.9999)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes_to_the_bit(tmp_path, name):
    settings = {"optimizer": name, "weight_decay": 0.1, "clip": 0.5, "lr_warmup": 3}
    whole = run(tmp_path / "whole", total_steps=3, **settings)
    run(tmp_path / "parts", total_steps=2, **settings)
    resumed = run(tmp_path / "parts", total_steps=3, **settings)
    assert type(resumed.optimizer) is OPTIMIZERS[name]
    assert_same(whole.model.state_dict(), resumed.model.state_dict())


def test_clipping_and_warm_up():
    """What torch's own clipping gives, at the learning rate of the step; RAdam's first steps follow the gradient."""
    plain = {**SETTINGS, "microbatch": 4}
    clipped = TrainConfig(**plain, clip=1e-3, lr_warmup=4)
    ours, theirs = create(clipped), create(clipped)
    optimizer, step = theirs.optimizer, theirs.optimizer.step

    def clip_and_step():
        assert torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1e-3) > 1e-3
        optimizer.param_groups[0]["lr"] = 1e-2 * theirs.step / 4
        step()

    optimizer.step = clip_and_step
    for _ in range(3):
        take_step(ours.model, ours, stream(ours.images, 4), clipped, CPU, Stop())
        take_step(theirs.model, theirs, stream(theirs.images, 4), TrainConfig(**plain), CPU, Stop())
    assert ours.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 3 / 4)
    initial = create(clipped).model.state_dict()
    for name, value in ours.model.state_dict().items():
        assert torch.allclose(value, theirs.model.state_dict()[name], atol=1e-7), name
    assert any(not torch.allclose(v, initial[n], atol=1e-6) for n, v in ours.model.named_parameters())


@pytest.mark.parametrize(("processes", "copies"), [(1, 5), (2, 6)])
def test_the_memory_line_counts_what_every_process_holds(monkeypatch, processes, copies):
    """DDP keeps a second copy of the gradients, which all processes average."""
    monkeypatch.setattr(runtime, "world", lambda: processes)
    model = tiny.model()
    megabytes = copies * 4e-6 * sum(p.numel() for p in model.parameters())
    line = summary(model, TrainConfig(**SETTINGS), CPU, False).split("\n")[-1]
    assert line.startswith(f"memory: {megabytes:.3g} MB = weights ") and ("DDP" in line) == (processes > 1)


def test_average_keeps_live_buffers(tmp_path):
    state = run(tmp_path)
    live, averaged = dict(state.model.named_buffers()), dict(state.ema.module.named_buffers())
    assert_same(live, averaged)
    assert not torch.equal(state.model.encoder.out[3].weight, state.ema.module.encoder.out[3].weight)


def test_precision():
    assert amp_dtype("auto", CPU) is None and amp_dtype("fp32", CPU) is None
    assert amp_dtype("bf16", CPU) == torch.bfloat16
    with pytest.raises(UserError, match="precision: fp16 needs a GPU"):
        amp_dtype("fp16", CPU)


def test_half_precision_stays_close():
    model, x, t = tiny.model(), tiny.images(), torch.full((4,), 0.5)
    noise = torch.randn_like(x)
    full = model.loss(x, t=t, noise=noise)
    model.use_amp(torch.bfloat16)
    half = model.loss(x, t=t, noise=noise)
    assert half.dtype == torch.float32 and torch.allclose(full, half, rtol=0.05) and not torch.equal(full, half)


def launch(tmp_path, name, processes, *flags):
    """Run the training script on toy faces and return the model's tensors."""
    command = [
        "--dataset=toyfaces", f"--workdir={tmp_path / name}", *tiny.FLAGS, "--total_steps=3", "--batch_size=8",
        "--microbatch=4", "--num_workers=0", "--ema_rate=0.9", "--device=cpu", *flags,
    ]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    start = [sys.executable, *(torchrun if processes > 1 else []), "-m", "scripts.train"]
    done = subprocess.run([*start, *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / name).glob("*/model_000003.pt")
    return torch.load(path, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--stochastic=true", "--tc=discriminator", "--tc_weight=0.1")])
def test_two_processes_equal_one(tmp_path, flags):
    """Same batches and noise per image; BatchNorm and total correlation over the same four images at a time."""
    one, two = launch(tmp_path, "one", 1, *flags), launch(tmp_path, "two", 2, *flags)
    assert_same(
        {name: tensor for name, tensor in one.items() if "running_" not in name and "num_batches" not in name},
        {name: tensor for name, tensor in two.items() if "running_" not in name and "num_batches" not in name},
        tolerance=1e-6,
    )
