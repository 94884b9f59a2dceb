"""The benchmarks' clock and tables, what each program prints and writes, and that variants of the same work agree.

Speed itself is not tested. But for two tests, variants are built in this process.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial

import pytest
import tiny
import torch
from lmdb_fixtures import image_folder
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import quality_vs_nfe, speed, timing
from benchmarks.reference import REFERENCE, reference, reference_step
from benchmarks.timing import Timing, Work
from dbae.config import TrainConfig, UserError
from dbae.io import seed_for
from dbae.methods.dbae import DBAE
from scripts.cli import run

CPU = torch.device("cpu")


# Clock and tables


def test_variants_alternate():
    log = []

    def variant(name, seconds):
        return lambda: log.append(name) or (seconds * log.count(name), None)

    timings = timing.alternate({"a": variant("a", 1), "b": variant("b", 10), "c": variant("c", 100)}, 3)
    assert "".join(log) == "abc" + "cba" + "abc"
    assert [each.seconds for each in timings.values()] == [(1, 2, 3), (10, 20, 30), (100, 200, 300)]


def test_ratios_compare_medians_and_rounds(capsys):
    timings = {"plain": Timing((4.0, 2.0, 6.0), 3_000_000), "fast": Timing((1.0, 2.0, 5.0), None)}
    plain, fast = timing.table(timings, {"plain": 8, "fast": 8})
    assert (plain["median_s"], plain["low_s"], plain["high_s"]) == (4, 2, 6)
    assert (plain["ratio"], plain["ratio_low"], plain["ratio_high"]) == (1, 1, 1)
    assert (fast["ratio"], fast["ratio_low"], fast["ratio_high"]) == (2, 1, 4)
    assert (plain["images_per_s"], fast["images_per_s"], plain["peak_mb"], fast["peak_mb"]) == (2, 4, 3, None)
    timing.print_table([plain, fast])
    head, line, *rows = (shown.strip("|").split("|") for shown in capsys.readouterr().out.splitlines())
    assert [title.strip() for title in head][-2:] == ["ratio in rounds", "peak MB"]
    assert {len(each) for each in (head, line, *rows)} == {7} and rows[1][-1].strip() == ""


def git(folder, *words):
    subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *words], cwd=folder, check=True)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_commit_of_a_report(monkeypatch, tmp_path):
    assert timing.commit(tmp_path) is None
    (tmp_path / "file").write_text("one")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    clean = timing.commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (tmp_path / "file").write_text("two")
    assert timing.commit(tmp_path) == clean + "+changes"
    monkeypatch.setenv("PATH", "")
    assert timing.commit(tmp_path) is None


# Isolated processes


def held(device_name, megabytes):
    """Work that tells its process, and holds some memory."""
    if megabytes < 0:
        raise UserError("megabytes: expected a number from 0")
    memory = b"x" * (megabytes << 20)
    return Work(lambda: (os.getpid(), len(memory)))


def result_of(work, device):
    return work.run()


def end(work, device):
    os._exit(3)


def test_each_variant_is_a_process_with_memory_of_its_own():
    variants = {"light": ("cpu", 1), "heavy": ("cpu", 100)}
    timings, found = timing.measure(held, variants, 2, [result_of, result_of])
    (light, again), (heavy, _) = found.values()
    assert light == again and len({os.getpid(), light[0], heavy[0]}) == 3 and heavy[1] == 100 << 20
    assert all(len(each.seconds) == 2 and min(each.seconds) >= 0 for each in timings.values())
    if sys.platform.startswith("linux"):
        assert timings["heavy"].peak_bytes - timings["light"].peak_bytes > 50 << 20
    with pytest.raises(UserError, match="megabytes"):
        timing.measure(held, {"bad": ("cpu", -1)}, 1)
    with pytest.raises(RuntimeError, match="variant 'light' ended"):
        timing.measure(held, {"light": ("cpu", 1)}, 1, [end])


# Programs


def measure_here(build, variants, rounds, tasks=(), processes=None):
    works = {name: build(*arguments) for name, arguments in variants.items()}
    timings = timing.alternate({name: partial(timing.clocked, work, CPU) for name, work in works.items()}, rounds)
    return timings, {name: [task(work, CPU) for task in tasks] for name, work in works.items()}


@pytest.fixture
def report_of(monkeypatch, capsys, tmp_path):
    """Run a command of speed in one round; the report that it wrote, its rows by variant. All must be printed, too."""
    monkeypatch.setattr(speed, "measure", measure_here)
    monkeypatch.setattr(timing, "MATMUL_SIZE", {"cpu": 64})

    def run_main(*words):
        path = tmp_path / "report.json"
        speed.main([*words, "--rounds=1", "--device=cpu", f"--json={path}"])
        shown, written = capsys.readouterr().out, json.loads(path.read_text())
        written["rows"] = {row["variant"]: row for row in written["rows"]}
        assert all(f"| {name} |" in shown and row["median_s"] > 0 for name, row in written["rows"].items())
        assert shown.startswith(written["title"]) and written["about"] in shown and torch.__version__ in shown
        return written

    return run_main


def test_train(report_of):
    names = ["reference", "default"]
    written = report_of("train", f"--variants={','.join(names)}", "--batch_size=2", "--steps=1", "--profile=3")
    for name in names:
        found = written["profiles"][name]
        assert [row["operation"] for row in found].index("others") == 3 and found[0]["ms"] >= found[1]["ms"] > 0
        assert sum(row["share"] for row in found) == pytest.approx(1)
        assert "convolution" in found[0]["operation"] and found[0]["calls"] > 10
    seconds = written["rows"]["reference"]["median_s"]
    for row in written["rows"].values():
        assert row["images_per_s"] == pytest.approx(2 / row["median_s"])
        assert row["ratio"] == pytest.approx(seconds / row["median_s"])
        speed = row["images_per_s"] * written["flops_per_image"]
        assert row["matmul_share"] == pytest.approx(speed / written["matmul_flops"])


def test_variants_of_training_are_what_they_are_called():
    found = {}
    for name in ("default", "fp32", "bf16", "eager", "checkpointing"):
        model = tiny.model()
        speed.default_step(model, TrainConfig(**speed.TRAINING[name]), iter(()))
        thrifty = any(getattr(module, "checkpointing", False) for module in model.modules())
        found[name] = (model.precision, thrifty)
    full = ("fp32", False)
    assert found == {
        "default": full, "fp32": full, "bf16": ("bf16", False), "eager": full, "checkpointing": ("fp32", True)
    }  # fmt: skip


def test_sample_compares_the_images_of_a_checkpoint(report_of, checkpoint):
    names = ["reference", "default", "bf16", "one by one"]
    words = [f"--model_path={checkpoint}", f"--variants={','.join(names)}", "--batch_size=2", "--steps=2"]
    first, default, bf16, alone = report_of("sample", *words)["rows"].values()
    assert first["difference"] == 0 and default["difference"] < 1e-3 < bf16["difference"] < 0.1
    assert "difference" not in alone and default["images_per_s"] == pytest.approx(2 / default["median_s"])


def test_variants_of_sampling_are_what_they_are_called(monkeypatch):
    found, usual = {}, DBAE.reconstruct

    def noted(self, x, **how):
        found.setdefault(name, []).append((self.precision, len(x)))
        return usual(self, x, **how)

    monkeypatch.setattr(DBAE, "reconstruct", noted)
    for name in ("reference", "default", "bf16", "one by one"):
        made = speed.sample_work("cpu", name, speed.SamplingOptions(batch_size=2, steps=1)).run()
        assert made.shape == (2, 3, 32, 32)
    assert found == {"default": [("fp32", 2)], "bf16": [("bf16", 2)], "one by one": 2 * [("fp32", 1)]}


def test_data(report_of, tmp_path):
    photos = image_folder(tmp_path / "photos", [f"{i}.png" for i in range(11)])
    words = [f"--dataset=folder:{photos}", "--images=10", "--batch_size=4", "--num_workers=1", "--consumes=1e-3"]
    rows = report_of("data", *words)["rows"]
    assert list(rows) == list(speed.LOADING)
    for row in rows.values():
        assert row["images_per_s"] == pytest.approx(12 / row["median_s"])  # three batches hold all ten
        assert row["feeds"] == pytest.approx(1000 * row["images_per_s"])


def test_scaling(capsys):
    speed.main(["scaling", "--processes=1,2", "--steps=1", "--rounds=1", "--batch_size=2", "--device=cpu"])
    shown = capsys.readouterr().out
    assert "| 1 process |" in shown and "| 2 processes |" in shown and "| 100% |" in shown


def test_weak_scaling_counts_the_images_of_all_processes(report_of, monkeypatch):
    seconds = {"1 process": Timing((1.0,), None), "4 processes": Timing((2.0,), None)}  # four times the images
    monkeypatch.setattr(speed, "measure", lambda *_, **__: (seconds, {}))
    one, four = report_of("scaling", "--processes=1,4", "--steps=10", "--batch_size=3", "--weak")["rows"].values()
    assert (one["images_per_s"], four["images_per_s"]) == (30, 60)
    assert (four["ratio"], four["efficiency"]) == (2, 0.5)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "command"),
        (["trian"], "trian"),
        (["train", "--rounds=0"], "rounds"),
        (["train", "--dataset=cats"], "dataset"),
        (["train", "--json=."], "json"),
        (["train", "--device=tpu"], "device"),
        (["train", "--variants=reference,fast"], "'fast'"),
        (["train", "--profile=-1"], "profile"),
        (["train", "--batch_size=4", "--microbatch=3"], "microbatch"),
        (["sample", "--variants="], "variants"),
        (["sample", "--model_path=absent.pt"], "absent.pt"),
        (["data", "--images=0"], "images"),
        (["data", "--dataset=folder:absent"], "absent"),
        (["scaling", "--processes=2"], "processes"),
        (["scaling", "--processes=1,1"], "processes"),
        (["scaling", "--processes=1,3"], "batch_size"),
    ],
)
def test_wrong_options(words, named, monkeypatch, capsys):
    monkeypatch.setattr(speed, "measure", measure_here)
    with pytest.raises(SystemExit, match="2"):
        run(lambda: speed.main(words))
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and named in error


# The reference


@pytest.mark.parametrize("stochastic", [False, True])
def test_reference_networks_compute_the_same(stochastic):
    default = tiny.model(stochastic=stochastic)
    other = reference(default)
    assert {*REFERENCE} & {type(module) for module in default.modules()}
    assert not {*REFERENCE} & {type(module) for module in other.modules()}
    x, x_T, z = tiny.images(), tiny.images(seed=1), torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.01, 0.3, 0.7, 1.0])
    with torch.no_grad():
        pairs = zip(
            *([m.encode(x, sample=False), m.decode(z), m.denoise(x, t, x_T=x_T, z=z)] for m in (default, other)),
            strict=True,
        )
        for ours, theirs in pairs:
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("microbatch", [4, 2])
def test_a_reference_step_is_a_step_of_training(microbatch):
    """From equal weights, images, flips, times and noise, with a rate that moves the weights far."""
    config = TrainConfig(batch_size=4, microbatch=microbatch, lr=0.1)
    default = tiny.model().train()
    start, other = [p.detach().clone() for p in default.parameters()], reference(default)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    normed = [module for module in other.modules() if hasattr(module, "weight_orig")]

    def drawn_alike():
        for position in range(0, 4, microbatch):
            torch.manual_seed(seed_for(config.seed, position))
            for module in normed:  # the official code refines spectral norms in every pass
                module.train(position == 0)
            yield images[position : position + microbatch], None

    batches = ((part, None) for part in images.split(microbatch))
    loss, taken, _ = speed.default_step(default, config, batches)()
    assert reference_step(other, config, drawn_alike())() == pytest.approx(loss, rel=1e-5) and taken
    for ours, theirs in zip(default.parameters(), other.parameters(), strict=True):
        assert (ours - theirs).abs().max() <= 1e-6
    moved = {
        name: (now - before).abs().max() for (name, now), before in zip(default.named_parameters(), start, strict=True)
    }
    for network in ("encoder", "decoder", "unet"):
        assert max(far for name, far in moved.items() if name.startswith(network)) > 1e-3


def test_counted_operations():
    """Forward passes of the three networks at 64 px in GFLOP per image; backward passes take twice as many."""
    options = speed.StepOptions(dataset="celeba")
    with torch.device("meta"):
        model = reference(options.build_model())
        x, z, t = torch.empty(1, 3, 64, 64), torch.empty(1, model.config.latent_dim), torch.ones(1)

    def counted(work):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work()
        return counter.get_total_flops() / 1e9

    forward = {
        3.1: counted(lambda: model.encode(x)),
        6.1: counted(lambda: model.decode(z)),
        30.8: counted(lambda: model.denoise(x, t, x_T=x, z=z)),
    }
    for expected, found in forward.items():
        assert found == pytest.approx(expected, rel=0.02)
    assert speed.flops_of(options) / 1e9 == pytest.approx(3 * sum(forward), rel=0.02)


# Quality


def test_quality_against_calls(checkpoint, capsys, tmp_path):
    words = [f"--model_path={checkpoint}", "--limit=2", "--calls=1,3", f"--out={tmp_path / 'quality'}", "--device=cpu"]
    quality_vs_nfe.main(words)
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "quality.json").read_text())
    rows = report["rows"]
    assert report["images"] == 2 and {row["nfe"] for row in rows} == {1, 3}
    assert {row["sampler"] for row in rows} == {"one-step", "euler", "heun", "dbim", "dbim2", "dbim3", "dbm2"}
    assert all(row["setting"] in shown and row["MSE"] > 0 for row in rows)
    assert (tmp_path / "quality.png").exists()


def test_savings_count_only_where_the_row_is_as_good():
    rows = [
        {"setting": "official", "nfe": 100, "ms": 10.0, "MSE": 0.2},
        {"setting": "better", "nfe": 5, "ms": 1.0, "MSE": 0.1},
        {"setting": "worse", "nfe": 5, "ms": 1.0, "MSE": 0.3},
    ]
    _, better, worse = quality_vs_nfe.with_savings(rows, {"MSE": "official", "LPIPS": "absent"})
    assert better["saves_MSE"] == 20 and better["faster_MSE"] == 10 and "saves_MSE" not in worse
