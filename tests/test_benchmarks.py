"""The benchmarks' clock and tables, what each program prints and writes, and that variants of the same work agree.

Speed itself is not tested. But for one test, variants are built in this process.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import tiny
import torch
from lmdb_fixtures import image_folder
from matplotlib.figure import Figure

from benchmarks import gpu, gpu_parts, measures, quality_vs_nfe, speed, timing
from benchmarks.reference import REFERENCE, reference, reference_step
from benchmarks.timing import Work
from dbae.checkpoint import config_content, save_weights, write_config
from dbae.config import TrainConfig, UserError
from dbae.io import seed_for
from dbae.methods import DBAE, DiffAE
from dbae.methods.diffae import DiffAEConfig
from scripts.cli import run

# Clock and tables


def here(build, arguments, world=1):
    """In place of processes of their own."""
    return nullcontext(partial(next, timing.runs(build, *arguments)))


def test_variants_alternate(monkeypatch):
    log = []
    monkeypatch.setattr(timing, "isolated", here)
    variants = {name: ("cpu", name) for name in "abc"}
    timings, made = timing.measure(lambda _, name: Work(lambda: log.append(name) or name), variants, 3)
    assert "".join(log) == "abc" + "abc" + "cba" + "abc" and made == {name: name for name in "abc"}
    assert all(len(rounds) == 3 and min(rounds)[0] >= 0 for rounds in timings.values())


def test_no_two_lines_of_the_quality_plot_are_alike_and_all_are_seen():
    def rows(method):
        for i, each in enumerate(
            quality_vs_nfe.settings(quality_vs_nfe.QualityOptions(model_path="ema_0.9999_1.pt", official=True), method)
        ):
            yield {**each.as_dict(), "nfe": 1 + i % 5, "MSE": 10.0 ** -(i % 7), "SSIM": 1 - 10.0 ** -(i % 6)}

    for method in (DBAE, DiffAE):
        table, figure = list(rows(method)), Figure()
        quality_vs_nfe.draw(figure, table, ["MSE", "SSIM"])
        for axis in figure.axes:
            lines = axis.get_lines()
            looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
            assert len(looks) == len(lines) == len(set(map(quality_vs_nfe.series_of, table))) > 10
            low, high = axis.get_ylim()
            assert all(low < value < high for line in lines for value in line.get_ydata())


def test_ratios_compare_medians_and_rounds(capsys):
    timings = {"plain": [(4.0, 3_000_000), (2.0, 3), (6.0, 3)], "fast": [(1.0, None), (2.0, None), (5.0, None)]}
    plain, fast = timing.table(timings, 8)
    assert (plain["median_s"], plain["low_s"], plain["high_s"]) == (4, 2, 6)
    assert (plain["ratio"], plain["ratio_low"], plain["ratio_high"]) == (1, 1, 1)
    assert (fast["ratio"], fast["ratio_low"], fast["ratio_high"]) == (2, 1, 4)
    assert (plain["images_per_s"], fast["images_per_s"], plain["peak_mb"], "peak_mb" in fast) == (2, 4, 3, False)
    print(timing.markdown([plain, fast]))
    head, line, *rows = (shown.strip("|").split("|") for shown in capsys.readouterr().out.splitlines())
    assert head[-1].strip() == "peak MB" and rows[1][-1].strip() == ""
    assert {len(each) for each in (head, line, *rows)} == {7}


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_commit_of_a_report(tmp_path):
    assert timing.commit(tmp_path) is None
    (tmp_path / "file").write_text("one")
    for words in ("init -q", "add file", "-c user.name=x -c user.email=x@x commit -q -m one"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    clean = timing.commit(tmp_path)
    (tmp_path / "file").write_text("two")
    assert re.fullmatch("[0-9a-f]{7,}", clean) and timing.commit(tmp_path) == clean + "+changes"


def held(device_name, megabytes):
    """Work that tells its process, and holds some memory; none of it: a process that ends."""
    memory = b"x" * (megabytes << 20)
    return Work(lambda: (os.getpid(), len(memory)) if memory else os._exit(3))


def test_each_variant_is_a_process_with_memory_of_its_own():
    with timing.isolated(held, ("cpu", 0)) as ended, timing.isolated(held, ("cpu", 300)) as heavy:
        assert heavy()[0] != os.getpid()
        if sys.platform.startswith("linux"):
            assert 300 << 20 < heavy()[1] < 800 << 20
        with pytest.raises(BrokenProcessPool):
            ended()


@pytest.mark.parametrize(("device", "order"), [("cuda", "+a -a +b -b"), ("cpu", "+a +b -b -a")])
def test_on_a_gpu_one_variant_ends_before_the_next_begins(device, order, monkeypatch):
    log = []

    @contextmanager
    def isolated(build, arguments, world):
        log.append(f"+{arguments[1]}")
        yield lambda: (1.0, None)
        log.append(f"-{arguments[1]}")

    monkeypatch.setattr(timing, "isolated", isolated)
    timings, made = timing.measure(held, {name: (device, name) for name in "ab"}, 2)
    assert " ".join(log) == order and list(made) == list(timings) == ["a", "b"]


# One GPU


def gpu_options(folder, **more):
    return gpu.GPUOptions(out=str(folder), device="cpu", toy=True, **more)


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu.PARTS)
def test_every_part_runs_on_a_cpu(name, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "isolated", here)
    gpu.measure_here(gpu_options(tmp_path, only=name))
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["toy"] and all(table["rows"] for table in found["tables"])
    assert not any("error" in row for table in found["tables"] for row in table["rows"])


def test_parts_that_are_not_done_are_tried_again(monkeypatch, tmp_path, capsys):
    tried, table = [], {"title": "Some table", "columns": {"n": "{n}"}, "rows": [{"n": 3}]}

    def measure(options, name):
        tried.append(name)
        problem = "out of memory" if name == "ffhq" and tried.count(name) == 1 else None
        return {"about": "a GPU", "commit": "abc", "tables": [table], "seconds": 1.5, "error": problem}

    monkeypatch.setattr(gpu, "measure", measure)
    words = [f"--out={tmp_path}", "--parts=training,ffhq,ffhq256"]
    with pytest.raises(SystemExit, match="not done: ffhq;"):
        gpu.main(words)
    page = (tmp_path / "gpu.md").read_text()
    assert tried == ["training", "ffhq", "ffhq256"] and "Not done: out of memory." in page
    assert page.count("| 3 |") == 3
    gpu.main(words)
    assert tried[3:] == ["ffhq"] and "Not done" not in (tmp_path / "gpu.md").read_text()


def test_a_part_ends_at_its_limit(monkeypatch, tmp_path):
    monkeypatch.setitem(gpu.PARTS, "upsampling", gpu.PARTS["upsampling"]._replace(limit=0.01))
    found = gpu.measure(gpu_options(tmp_path), "upsampling")
    assert found["tables"] == [] and found["error"] == "not done after 0.01 s"


def test_a_variant_that_fails_leaves_the_others(monkeypatch):
    def build(device, name):
        if name == "large":
            raise RuntimeError("out of memory\nat some place")
        return Work(lambda: {})

    monkeypatch.setattr(timing, "isolated", here)
    variants = {name: ("cpu", name) for name in ("small", "large", "again")}
    *_, rows = gpu_parts.compare(build, variants, 4, rounds=1)
    assert [row["variant"] for row in rows] == ["small", "again", "large"] and rows[-1]["error"] == "out of memory"


# Programs


@pytest.fixture
def report_of(monkeypatch, capsys, tmp_path):
    """Run a command of speed in one round; the rows that it wrote, by variant. All must be printed, too."""
    monkeypatch.setattr(timing, "isolated", here)
    monkeypatch.setattr(speed.ModelBenchmark, "build_model", lambda self: tiny.model())

    def run_main(*words):
        path = tmp_path / "report.json"
        speed.main([*words, "--rounds=1", "--device=cpu", f"--json={path}"])
        shown, written = capsys.readouterr().out, json.loads(path.read_text())
        assert shown.startswith(written["title"]) and torch.__version__ in written["about"] in shown
        assert all(f"| {row['variant']} |" in shown for row in written["rows"])
        return {row["variant"]: row for row in written["rows"]}

    return run_main


def test_train(report_of):
    names = ["reference", "default", "default by 2"]  # here, one process does the work of each
    rows = report_of("train", "--processes=1,2", "--batch_size=2", "--steps=1")
    assert list(rows) == names
    for row in rows.values():
        assert row["images_per_s"] == pytest.approx(2 / row["median_s"])
        assert row["ratio"] == pytest.approx(rows["reference"]["median_s"] / row["median_s"])


def test_variants_of_training_are_what_they_are_called():
    full, found = ("fp32", False), {}
    for name in ("default", "fp32", "bf16", "eager", "checkpointing"):
        model = tiny.model()
        speed.default_step(model, TrainConfig(**speed.TRAINING[name]), iter(()))
        thrifty = any(getattr(module, "checkpointing", False) for module in model.modules())
        found[name] = (model.precision, thrifty)
    changed = {"bf16": ("bf16", False), "checkpointing": ("fp32", True)}
    assert found == {"default": full, "fp32": full, "eager": full} | changed


def test_sample_compares_the_images_of_a_checkpoint(report_of, checkpoint):
    words = [f"--model_path={checkpoint}", "--variants=reference,default,bf16", "--batch_size=2", "--steps=2"]
    first, default, bf16 = report_of("sample", *words).values()
    assert first["difference"] == 0 and default["difference"] < 1e-3 < bf16["difference"] < 0.1


def test_encode_takes_the_model_of_a_checkpoint(report_of, checkpoint):
    rows = report_of("encode", f"--model_path={checkpoint}", "--batch_size=3")
    for row in rows.values():
        assert row["images_per_s"] == pytest.approx(3 / row["median_s"])


def test_data(report_of, tmp_path):
    photos = image_folder(tmp_path / "photos", [f"{i}.png" for i in range(11)])
    rows = report_of("data", f"--dataset=folder:{photos}", "--images=10", "--batch_size=4", "--num_workers=1")
    assert list(rows) == list(speed.LOADING)
    for row in rows.values():
        assert row["images_per_s"] == pytest.approx(12 / row["median_s"])  # three batches hold all ten


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["trian"], "trian"),
        (["train", "--rounds=0"], "rounds"),
        (["train", "--dataset=cats"], "dataset"),
        (["train", "--variants=reference,fast"], "'fast'"),
        (["train", "--processes=0,1"], "processes"),
        (["sample", "--model_path=absent.pt"], "absent.pt"),
    ],
)
def test_wrong_options(words, named, monkeypatch, capsys):
    monkeypatch.setattr(timing, "isolated", here)
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
        made = [(m.encode(x, sample=False), m.decode(z), m.denoise(x, t, x_T=x_T, z=z)) for m in (default, other)]
    for ours, theirs in zip(*made, strict=True):
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
    moved = dict.fromkeys(("encoder", "decoder", "unet"), 0.0)
    pairs = zip(default.named_parameters(), other.parameters(), start, strict=True)
    for (name, ours), theirs, before in pairs:
        assert (ours - theirs).abs().max() <= 1e-6
        moved[name.split(".")[0]] = max(moved[name.split(".")[0]], (ours - before).abs().max().item())
    assert min(moved.values()) > 1e-3


# Quality


@pytest.fixture(scope="module")
def diffae(tmp_path_factory):
    """The EMA file of a run folder with a small DiffAE."""
    options = {name: value for name, value in tiny.OPTIONS.items() if name != "decoder_channels"}
    model, folder = DiffAE(DiffAEConfig(**options, emb_channels=8)), tmp_path_factory.mktemp("diffae")
    write_config(str(folder), config_content(model, "toyfaces"))
    save_weights(str(folder / "ema_0.9999_000020.pt"), model)
    return folder / "ema_0.9999_000020.pt"


@pytest.mark.parametrize(
    ("method", "calls", "samplers"),
    [
        ("checkpoint", {1, 3}, {"one-step", "euler", "heun", "dbim", "dbim2", "dbim3", "dbm2"}),
        ("diffae", {2, 6}, {"one-step", "ddim", "dbim2", "dbim3"}),  # inversion and decoding
    ],
)
def test_quality_against_calls(method, calls, samplers, request, capsys, tmp_path):
    words = [f"--model_path={request.getfixturevalue(method)}", f"--calls={','.join(map(str, calls))}"]
    quality_vs_nfe.main([*words, "--limit=2", f"--out={tmp_path / 'quality'}", "--device=cpu"])
    shown, report = capsys.readouterr().out, json.loads((tmp_path / "quality.json").read_text())
    rows = report["rows"]
    assert report["images"] == 2 and {row["nfe"] for row in rows} == calls
    assert {row["sampler"] for row in rows} == samplers
    assert len({row["setting"] for row in rows}) == len(rows)
    assert all(row["setting"] in shown and row["MSE"] > 0 for row in rows)
    assert (tmp_path / "quality.png").exists()
    with pytest.raises(UserError, match=r"quality.json is there already; give another --out, or --overwrite true"):
        quality_vs_nfe.main([*words, f"--out={tmp_path / 'quality'}", "--device=cpu"])
    quality_vs_nfe.main([*words, f"--out={tmp_path / 'other'}", "--device=cpu", "--check=1"])
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("method", [DBAE, DiffAE])
def test_official_settings_come_first(method):
    options = quality_vs_nfe.QualityOptions(method=method.method, model_path="a.pt", official=True, calls=(2,))
    found = [method.nfe(sampling) for sampling in quality_vs_nfe.settings(options, method)]
    assert found[:2] == ([100, 666] if method is DBAE else [200, 100]) and set(found[3:]) == {2}


def test_savings_count_only_where_the_row_is_as_good():
    values = {"official": (100, 0.2), "better": (5, 0.1), "worse": (5, 0.3)}
    rows = [{"setting": name, "nfe": calls, "MSE": error} for name, (calls, error) in values.items()]
    _, better, worse = quality_vs_nfe.with_savings(rows, {"MSE": "official", "LPIPS": "absent"})
    assert better["saves_MSE"] == 20 and "saves_MSE" not in worse


# Measures of generated images


def test_measures_agree_with_the_reference(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(timing, "isolated", here)
    words = ["--rows=300", "--width=20", "--rounds=1", "--device=cpu", f"--json={tmp_path / 'rows.json'}"]
    measures.main([*words, "--metrics", "FD", "KID", "PR"])
    assert "default, FD, KID, PR: " in capsys.readouterr().out
    written = json.loads((tmp_path / "rows.json").read_text())["rows"]
    values = {row["variant"]: row["values"] for row in written}
    for metric, numbers in (("FD", 1), ("KID", 1), ("PR", 4)):
        assert len(values[f"{metric}, default"]) == numbers
        assert values[f"{metric}, default"] == pytest.approx(values[f"{metric}, reference"], rel=1e-9)
    assert 0 < values["PR, default"][0] < 1
    for wrong in (["--metrics", "IS"], ["--variants", "fast"], ["--rows=3"]):
        with pytest.raises(UserError, match=wrong[0].strip("-").split("=")[0]):
            measures.main(wrong)
