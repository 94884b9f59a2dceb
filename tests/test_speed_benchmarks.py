"""The speed benchmarks' clock and tables, that each program prints what it promises, and that ways to do the same work
agree; speed is not tested."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from conftest import ROOT
from dbae.nn.spectral import set_power_iteration
from dbae.performance import precision_of
from lmdb_fixtures import image_folder
from test_edit_commands import call  # noqa: F401 - a fixture
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import data_loading, measure, probe, report, sampling, scaling, train_step
from benchmarks.apart import alternate_apart, apart
from benchmarks.measure import Timing
from benchmarks.plain import PLAIN, plain, plain_step
from dbae.config import ModelConfig, TrainConfig, preset
from dbae.io import seed_for, to_float
from dbae.methods.dbae import DBAE

CPU = torch.device("cpu")


class Clock:
    """Time that passes only where a way says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


def ways_of(clock, log):
    """Three ways that take 1, 10 and 100 seconds more with every run."""

    def way(name, seconds):
        def work():
            log.append(name)
            clock.now += seconds * log.count(name)

        return work

    return {name: way(name, seconds) for name, seconds in (("a", 1), ("b", 10), ("c", 100))}


def test_ways_alternate_after_a_warm_up(clock):
    log = []
    timings = measure.alternate(ways_of(clock, log), 3, CPU)
    assert "".join(log) == "abc" + "abc" + "cba" + "abc"
    assert {way: timing.seconds for way, timing in timings.items()} == {
        "a": (2, 3, 4), "b": (20, 30, 40), "c": (200, 300, 400),
    }  # fmt: skip


def test_peak_of_memory_belongs_to_its_way():
    """In a process of its own: another test may have told this one's allocator to keep what is freed."""
    program = """
import torch
from benchmarks import measure
ways = {"light": lambda: None, "heavy": lambda: b"x" * (64 << 20), "light too": lambda: None}
print(*(timing.peak_bytes for timing in measure.alternate(ways, 2, torch.device("cpu")).values()))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    if "None" in done.stdout:
        pytest.skip("this system does not tell")
    light, heavy, light_too = map(int, done.stdout.split())
    assert heavy - light > 32 << 20 and heavy - light_too > 32 << 20


def test_no_peak_where_the_system_does_not_tell(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "PROCESS", tmp_path / "absent")
    timings = measure.alternate({"a": lambda: None}, 1, CPU)
    assert timings["a"].peak_bytes is None
    report.print_table(report.table(timings, "a", 1))
    assert "peak" not in capsys.readouterr().out


def test_ratios_compare_medians_and_rounds():
    timings = {"plain": Timing((4.0, 2.0, 6.0), 3_000_000), "fast": Timing((1.0, 2.0, 5.0), 1_500_000)}
    plain, fast = report.table(timings, "plain", images=8, peak_flops=100.0, flops={"fast": 20.0})
    assert (plain["median_s"], plain["low_s"], plain["high_s"]) == (4, 2, 6)
    assert (plain["ratio"], plain["ratio_low"], plain["ratio_high"]) == (1, 1, 1)
    assert (fast["ratio"], fast["ratio_low"], fast["ratio_high"]) == (2, 1, 4)
    assert (plain["images_per_s"], fast["images_per_s"], fast["peak_mb"]) == (2, 4, 1.5)
    assert fast["matmul_share"] == 0.1 and plain["matmul_share"] is None


def test_printed_columns(capsys):
    timings = {"plain": Timing((0.5,), None), "fast": Timing((0.001,), None)}
    rows = report.table(timings, "plain", images=2000)
    rows[1]["note"] = "new"
    report.print_table(rows, (("remark", ("note",), str), ("nothing", ("absent",), str)))
    head, line, plain, fast = (shown.strip("|").split("|") for shown in capsys.readouterr().out.splitlines())
    assert [title.strip() for title in head] == [
        "way", "median s", "range s", "images/s", "ratio", "ratio in rounds", "remark",
    ]  # fmt: skip
    assert len(head) == len(line) == len(plain) == len(fast)
    assert [cell.strip() for cell in fast] == [
        "fast", "0.001", "0.001 to 0.001", "2,000,000", "500x", "500 to 500", "new",
    ]  # fmt: skip
    assert plain[-1].strip() == ""


def test_speed_of_a_matrix_product(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 4))
    monkeypatch.setattr(measure, "MATMUL_SIZE", {"cpu": 8})
    assert measure.matmul_peak(CPU, torch.bfloat16) == 2 * 8**3 / 0.25


def git(folder, *words):
    subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *words], cwd=folder, check=True)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_report_names_the_commit(monkeypatch, tmp_path):
    def commit():
        report.write_json(str(tmp_path / "out.json"), "title", CPU, [{"way": "a"}], more=1)
        written = json.loads((tmp_path / "out.json").read_text())
        assert written["title"] == "title" and written["rows"] == [{"way": "a"}] and written["more"] == 1
        assert torch.__version__ in written["about"]
        return written["commit"]

    clone = tmp_path / "clone"
    clone.mkdir()
    monkeypatch.setattr(report, "__file__", str(clone / "report.py"))
    assert commit() is None
    (clone / "file").write_text("one")
    git(clone, "init", "-q")
    git(clone, "add", "file")
    git(clone, "commit", "-q", "-m", "one")
    clean = commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (clone / "file").write_text("two")
    assert commit() == clean + "+changes"
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_programs_start_without_torch():
    programs = ", ".join(program.__name__ for program in (data_loading, probe, sampling, scaling, train_step))
    code = f"import sys, {programs}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.fixture
def report_of(call, tmp_path):  # noqa: F811
    """Run a program in one round; the report that it wrote, its rows by way. What it prints must hold all of them."""

    def run_main(program, *words):
        path = tmp_path / "report.json"
        status, shown, error = call(program, "--rounds=1", "--device=cpu", f"--json={path}", *words)
        assert status == 0, error
        written = json.loads(path.read_text())
        written["rows"] = {row["way"]: row for row in written["rows"]}
        assert all(f"| {way} |" in shown and row["median_s"] > 0 for way, row in written["rows"].items())
        assert shown.startswith(written["title"]) and written["about"] in shown
        return written

    return run_main


@pytest.fixture
def rows_of(report_of):
    """The same; its rows alone."""
    return lambda *words: report_of(*words)["rows"]


def test_probe(rows_of):
    rows = rows_of(probe, "--images=8", "--epochs=2")
    assert list(rows) == ["encode every epoch", "encode once", "codes on disk"]


def test_probe_whose_ways_differ(call, monkeypatch):  # noqa: F811
    numbers = iter(range(100))
    monkeypatch.setattr("eval.probe.train_linear", lambda *_, **__: [torch.nn.Linear(next(numbers) + 1, 1)])
    with pytest.raises(RuntimeError, match="agree"):
        call(probe, "--images=2", "--epochs=1", "--rounds=1", "--device=cpu")


def test_data_loading_of_generated_images(rows_of):
    words = ["--images=10", "--image_size=8", "--batch_size=4", "--num_workers=1"]
    rows = rows_of(data_loading, *words, "--consumes=1e-3")
    assert list(rows) == ["plain", "0 workers", "1 workers", "cache: host", "cache: device"]
    for row in rows.values():
        assert row["images_per_s"] == pytest.approx(12 / row["median_s"])  # three batches hold all ten
        assert row["feeds"] == pytest.approx(1000 * row["images_per_s"]) and row["enough"]


def test_data_loading_of_a_data_set(rows_of, tmp_path):
    photos = image_folder(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    words = [f"--dataset=folder:{photos}", "--images=2", "--image_size=8", "--batch_size=2", "--num_workers=1"]
    rows = rows_of(data_loading, *words, "--consumes=1e12")
    assert not any(row["enough"] for row in rows.values())


def test_all_ways_deliver_the_same_images(tmp_path):
    torch.manual_seed(0)
    photos = image_folder(tmp_path / "photos", [f"{i}.png" for i in range(5)])
    options = data_loading.LoadingOptions(
        dataset=f"folder:{photos}", image_size=16, batch_size=3, num_workers=1, device="cpu"
    )
    with data_loading.images_to_read(options) as data:
        plain, *others = (
            torch.cat([next(batches) for _ in range(4)])
            for batches in (start() for start in data_loading.streams(data, options, CPU).values())
        )
    assert len(others) == 4 and all(torch.equal(others[0], other) for other in others)
    found = {
        (torch.allclose(x, to_float(y), atol=1e-6), torch.allclose(x.flip(2), to_float(y), atol=1e-6))
        for x, y in zip(plain, others[0], strict=True)
    }
    assert found == {(True, False), (False, True)}  # some are flipped


def test_scaling(rows_of):
    words = ["--processes=1,2", "--steps=1", "--warm_up=1", "--batch_size=2", "--threads=1"]
    one, two = rows_of(scaling, *words).values()
    assert one["efficiency"] == 1 and two["efficiency"] == pytest.approx(two["ratio"] / 2)
    assert two["images_per_s"] == pytest.approx(2 / two["median_s"])


def test_weak_scaling_counts_the_images_of_all_processes(rows_of, monkeypatch):
    seconds = {1: 1.0, 4: 2.0}  # four times the images in twice the time
    monkeypatch.setattr(scaling, "launch", lambda options, number, device: (seconds[number], None))
    one, four = rows_of(scaling, "--processes=1,4", "--steps=10", "--batch_size=3", "--weak").values()
    assert (one["images_per_s"], four["images_per_s"]) == (30, 60)
    assert (four["ratio"], four["efficiency"]) == (2, 0.5)


def test_processes_train_as_the_training_command_does(monkeypatch, tmp_path):
    """What it does on a GPU: in half precision, networks and optimizer compiled."""
    done = []

    def use_compile(model, mode, device):
        done.append(f"networks: {mode}")
        return True

    def train(state, batches, *_, **__):
        done.append(precision_of(state.model))
        done.append(len(list(itertools.islice(batches, 4))))

    monkeypatch.setattr("dbae.performance.half_dtype", lambda precision, device: {"auto": torch.bfloat16}[precision])
    monkeypatch.setattr("dbae.performance.use_compile", use_compile)
    monkeypatch.setattr("dbae.optimizer.RAdam.compile", lambda self: done.append("optimizer"))
    monkeypatch.setattr("dbae.training.train", train)
    scaling.work(scaling.ScalingOptions(device="cpu", batch_size=2, warm_up=1, steps=2, worker=str(tmp_path)))
    assert done == ["networks: auto", "optimizer", "bf16", 4]
    assert float((tmp_path / "seconds").read_text()) > 0


def test_a_process_that_fails(call, monkeypatch):  # noqa: F811
    monkeypatch.setattr(scaling.sys, "executable", shutil.which("false"))
    status, _, error = call(scaling, "--device=cpu", "--rounds=1")
    assert status == 2 and "1 processes ended with status 1" in error


@pytest.mark.parametrize(
    ("program", "words", "named"),
    [
        (probe, ["--rounds=0"], "rounds"),
        (probe, ["--epochs=0"], "epochs"),
        (probe, ["--dataset=cats"], "dataset"),
        (probe, ["--json=."], "json"),
        (probe, ["--device=tpu"], "device"),
        (data_loading, ["--batch_size=0"], "batch_size"),
        (data_loading, ["--images=0"], "images"),
        (data_loading, ["--consumes=fast"], "consumes"),
        (data_loading, ["--data_dir=photos"], "data_dir"),
        (data_loading, ["--dataset=folder:absent"], "absent"),
        (scaling, ["--processes=2"], "processes"),
        (scaling, ["--processes=1,1"], "processes"),
        (scaling, ["--processes=1,3"], "batch_size"),
        (scaling, ["--threads=0"], "threads"),
        (train_step, ["--ways=plain,fast"], "'fast'"),
        (train_step, ["--ways="], "ways"),
        (train_step, ["--batch_size=0"], "batch_size"),
        (train_step, ["--steps=0"], "steps"),
        (train_step, ["--microbatch=-1"], "microbatch"),
        (train_step, ["--operations=-1"], "operations"),
        (train_step, ["--batch_size=4", "--microbatch=3"], "microbatch"),
        (sampling, ["--ways=plain,eager"], "'eager'"),
        (sampling, ["--batch_size=0"], "batch_size"),
        (sampling, ["--steps=0"], "steps"),
        (sampling, ["--model_path=absent.pt"], "absent.pt"),
    ],
)
def test_wrong_options(call, program, words, named):  # noqa: F811
    status, _, error = call(program, *words)
    assert status == 2 and error.count("\n") == 1 and error.startswith("error: ") and named in error


# Training steps and sampling


def test_train_step(report_of, monkeypatch):
    monkeypatch.setattr(measure, "MATMUL_SIZE", {"cpu": 256})
    monkeypatch.setattr(measure, "MATMUL_ROUNDS", 1)
    ways = ["plain", "default", "checkpointing"]
    words = [f"--ways={','.join(ways)}", "--batch_size=4", "--microbatch=2", "--steps=2", "--operations=3"]
    written = report_of(train_step, *words)
    for way in ways:
        found = written["operations"][way]
        assert [row["operation"] for row in found].index("others") == 3 and found[0]["ms"] >= found[1]["ms"] > 0
        assert sum(row["share"] for row in found) == pytest.approx(1)
        assert "convolution" in found[0]["operation"] and found[0]["calls"] > 10
    assert list(written["rows"]) == ways and written["matmul_flops"] > 0
    model = DBAE(preset(ModelConfig, "toyfaces", {}))
    assert written["flops_per_image"] == train_step.flops_of(model.config, 1)
    seconds = written["rows"]["plain"]["median_s"]
    for row in written["rows"].values():
        assert row["images_per_s"] == pytest.approx(8 / row["median_s"])
        assert row["ratio"] == pytest.approx(seconds / row["median_s"])
        speed = row["images_per_s"] * written["flops_per_image"]
        assert row["matmul_share"] == pytest.approx(speed / written["matmul_flops"])


def test_ways_to_train_are_what_they_are_called():
    found = {}
    for way in ("default", "fp32", "bf16", "eager", "checkpointing"):
        model = tiny.model()
        train_step.default_step(model, TrainConfig(**train_step.WAYS[way]), iter(()))
        thrifty = any(getattr(module, "checkpointing", False) for module in model.modules())
        found[way] = (precision_of(model), thrifty)
    full = ("fp32", False)
    assert found == {
        "default": full, "fp32": full, "bf16": ("bf16", False), "eager": full, "checkpointing": ("fp32", True)
    }  # fmt: skip


def test_sampling_with_random_weights(rows_of):
    rows = rows_of(sampling, "--ways=plain,fp32", "--batch_size=2", "--steps=2", "--apart")
    assert list(rows) == ["plain", "fp32", "default, one by one"]
    for row in rows.values():
        assert row["images_per_s"] == pytest.approx(2 / row["median_s"])
        assert row["ratio"] == pytest.approx(rows["plain"]["median_s"] / row["median_s"])
        assert "difference" not in row


def test_ways_to_sample_are_what_they_are_called(monkeypatch):
    found, usual = {}, DBAE.reconstruct

    def noted(self, x, **how):
        found.setdefault(way, []).append((precision_of(self), len(x)))
        return usual(self, x, **how)

    monkeypatch.setattr(DBAE, "reconstruct", noted)
    for way in ("plain", "default", "fp32", "bf16", "default, one by one"):
        made = sampling.build("cpu", way, sampling.SamplingOptions(batch_size=2, steps=1))()
        assert made.shape == (2, 3, 32, 32)
    assert found == {
        "default": [("fp32", 2)], "fp32": [("fp32", 2)], "bf16": [("bf16", 2)], "default, one by one": 2 * [("fp32", 1)]
    }  # fmt: skip


def test_each_way_is_a_process_of_its_own():
    ways = {"a": ("cpu", "a"), "b": ("cpu", "b")}
    with apart(process_and_way, ways) as asked:
        ours, theirs = asked["a"](result_of), asked["b"](result_of)
        assert (ours[1], theirs[1]) == ("a", "b") and len({os.getpid(), ours[0], theirs[0]}) == 3
        assert asked["a"](result_of) == ours
        timings = alternate_apart(asked, 3)
    assert all(len(timing.seconds) == 3 and timing.low >= 0 for timing in timings.values())
    with apart(process_and_way, {"a": ("cpu", "a")}) as asked, pytest.raises(RuntimeError, match="way 'a' ended"):
        asked["a"](end)


def process_and_way(device_name, way):
    return lambda: (os.getpid(), way)


def result_of(work, device):
    return work()


def end(work, device):
    os._exit(3)


def test_sampling_of_a_checkpoint_compares_its_images(rows_of, checkpoint):
    words = [f"--model_path={checkpoint}", "--ways=plain,default,bf16", "--batch_size=2", "--steps=2", "--apart"]
    plain, default, bf16, apart = rows_of(sampling, *words).values()
    assert plain["difference"] == 0 and default["difference"] < 1e-3 < bf16["difference"] < 0.1
    assert apart["way"] == "default, one by one" and "difference" not in apart


# The plain way


@pytest.mark.parametrize("stochastic", [False, True])
def test_plain_networks_compute_the_same(stochastic):
    default = tiny.model(stochastic=stochastic)
    reference = plain(default)
    assert {*PLAIN} & {type(module) for module in default.modules()}
    assert not {*PLAIN} & {type(module) for module in reference.modules()}
    x, x_T, z = tiny.images(), tiny.images(seed=1), torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.01, 0.3, 0.7, 1.0])
    with torch.no_grad():
        pairs = zip(
            *([m.encode(x, sample=False), m.decode(z), m.denoise(x, t, x_T, z)] for m in (default, reference)),
            strict=True,
        )
        for ours, theirs in pairs:
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("microbatch", [4, 2])
def test_plain_step_is_a_step_of_training(microbatch):
    """From equal weights, images, flips, times and noise, with a rate that moves the weights far."""
    config = TrainConfig(batch_size=4, microbatch=microbatch, lr=0.1)
    default = tiny.model().train()
    start, reference = [p.detach().clone() for p in default.parameters()], plain(default)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)

    def drawn_alike():
        for position in range(0, 4, microbatch):
            torch.manual_seed(seed_for(config.seed, position))
            set_power_iteration(reference, on=position == 0)  # the official code refines them in every pass
            yield images[position : position + microbatch]

    loss, taken, _ = train_step.default_step(default, config, iter(images.split(microbatch)))()
    assert plain_step(reference, config, drawn_alike())() == pytest.approx(loss.item(), rel=1e-5) and taken
    for ours, theirs in zip(default.parameters(), reference.parameters(), strict=True):
        assert (ours - theirs).abs().max() <= 1e-6
    moved = {
        name: (now - before).abs().max() for (name, now), before in zip(default.named_parameters(), start, strict=True)
    }
    for network in ("encoder", "decoder", "unet"):
        assert max(far for name, far in moved.items() if name.startswith(network)) > 1e-3


def test_counted_operations():
    """Forward passes of the three networks at 64 px in GFLOP per image; backward passes take twice as many."""
    with torch.device("meta"):
        model = DBAE(preset(ModelConfig, "celeba", {}))
        x, z, t = torch.empty(1, 3, 64, 64), torch.empty(1, model.config.latent_dim), torch.ones(1)

    def counted(work):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work()
        return counter.get_total_flops() / 1e9

    reference = plain(model)
    forward = {
        3.1: counted(lambda: reference.encode(x)),
        6.1: counted(lambda: reference.decode(z)),
        30.8: counted(lambda: reference.denoise(x, t, x, z)),
    }
    for expected, found in forward.items():
        assert found == pytest.approx(expected, rel=0.02)
    assert train_step.flops_of(model.config, 3) / 1e9 == pytest.approx(3 * 3 * sum(forward), rel=0.02)
