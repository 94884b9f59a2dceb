"""Presets by size: which there are, which is chosen, what a run keeps, and when it says that it will be done."""

import json
from datetime import datetime

import pytest
from lmdb_fixtures import encoded, picture

from dbae import progress
from dbae.config import TrainConfig, UserError
from dbae.methods import DBAE, DDIM, METHODS, DiffAE, preset
from dbae.methods.presets import SIZES, choose
from scripts import train, train_options

SIZED = (DBAE, DiffAE, DDIM)


def test_base_is_what_a_folder_always_had():
    assert DBAE.preset_row("folder:x") == {"image_size": 64, "num_channels": 64}
    steps = {"total_steps": 562_500, "optimizer": "adam", "clip": 1.0, "batch_size": 128}
    assert DiffAE.preset_row("folder:x") == {"image_size": 64, "num_channels": 64, **steps}
    for method in SIZED:
        assert method.preset_row("folder:x", "base") == method.preset_row("folder:x")


@pytest.mark.parametrize("method", SIZED)
def test_sizes_fit_every_image_size(method):
    for size in SIZES:
        for pixels in (32, 64, 128, 256):
            model = preset(method, method.Config, "folder:x", {"image_size": pixels}, size)
            assert model.image_size == pixels and model.channel_mult
        assert preset(method, TrainConfig, "folder:x", {"lr": 0.5}, size).lr == 0.5
    counts = [sum(p.numel() for p in method(preset(method, method.Config, "folder:x", {}, s)).parameters()) for s in
              SIZES[:2]]  # fmt: skip
    assert 1e6 < counts[0] < 7e6 and 3 * counts[0] < counts[1] < 3e7


def test_a_size_takes_the_place_of_a_published_row_but_for_its_images():
    row = DBAE.preset_row("sprites", "small")
    assert (row["image_size"], row["flip"], row["num_channels"]) == (64, False, 32) and "channel_mult" not in row
    with pytest.raises(UserError, match="preset: expected tiny or small or base, got 'huge'"):
        DBAE.preset_row("celeba", "huge")
    with pytest.raises(UserError, match=r"preset: expected none with ddae.*got 'tiny'"):
        train.parse(["--method=ddae", "--config=DDPM_small", "--preset=tiny"])
    with pytest.raises(UserError, match="preset: expected none, prior has no sizes"):
        METHODS["prior"].preset_row("ffhq", "tiny")


@pytest.mark.parametrize(
    ("pixels", "device", "images", "size"),
    [
        (64, "cpu", 10**6, "tiny"),
        (64, "cuda", 4_999, "small"),
        (64, "cuda", 5_000, "base"),
        (128, "cuda", 1_250, "base"),
        (32, "cuda", 19_999, "small"),
    ],
)
def test_what_is_chosen(pixels, device, images, size):
    assert choose(pixels, device, images) == size


def chosen(*words):
    options, model, training = train.parse(list(words))
    return options.preset, model.num_channels, training.batch_size


def test_a_folder_is_trained_by_size_and_typed_options_win(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    words = [f"--dataset=folder:{tmp_path}", f"--workdir={tmp_path / 'run'}"]
    assert chosen(*words, "--device=cpu") == ("tiny", 16, 16)
    assert chosen(*words, "--device=cpu", "--preset=base", "--batch_size=8") == ("base", 64, 8)
    assert chosen(*words, "--device=cuda:1") == ("small", 32, 64)
    assert chosen("--dataset=cifar10", "--device=cpu") == ("tiny", 16, 16)
    assert chosen("--dataset=celeba", "--device=cpu") == (None, 64, 256)
    monkeypatch.setattr(train_options, "build", lambda *where: range(1250))
    assert chosen(*words, "--device=cuda", "--image_size=128") == ("base", 64, 256)
    assert chosen(*words, "--device=cuda") == ("small", 32, 64)


def test_a_run_keeps_its_size(tmp_path):
    """Also one of an earlier version, which was base; of two runs the one that suits goes on."""
    words = ["--dataset=folder:photos", f"--workdir={tmp_path}", "--device=cpu", "--stochastic=true"]
    for name, content, size in (("64_64_512d", {}, "base"), ("64_32_256d", {"preset": "small"}, "small")):
        run_dir = tmp_path / f"folder-photos-{name}_true_vp"
        run_dir.mkdir()
        (run_dir / "config.json").write_text(json.dumps({"model": {}, **content}))
        assert chosen(*words)[0] == size
        assert chosen(*words, "--preset=tiny")[0] == "tiny" and chosen(*words, "--image_size=32")[0] == "tiny"
    tiny = tmp_path / "folder-photos-64_16_128d_true_vp"
    tiny.mkdir()
    (tiny / "config.json").write_text(json.dumps({"model": {}, "preset": "tiny"}))
    assert chosen(*words)[0] == "tiny"


@pytest.mark.parametrize(
    ("seconds", "steps", "shown"),
    [
        (2.14, 5_325, "2.1 s a step: done in 3 h 9 min, at 14:04"),
        (0.5, 3_600, "0.5 s a step: done in 30 min, at 11:25"),
        (0.01234, 1_000, "0.012 s a step: done in 12 s, at 10:55"),
        (1.0, 50_000, "1 s a step: done in 13 h 53 min, at 00:48 on 2025-03-02"),
        (60.0, 1_020_000, "60 s a step: done in 708 d 8 h, at 18:55 on 2027-02-07"),
    ],
)
def test_the_end_of_a_run_is_foretold(seconds, steps, shown):
    assert progress.pace(seconds, steps, datetime(2025, 3, 1, 10, 55)) == shown


def lines_of_eleven_steps(folder, capsys, first=100, total=200, **options):
    with progress.Progress(str(folder), first, TrainConfig(total_steps=total), **options) as report:
        for step in range(first + 1, first + 12):
            assert capsys.readouterr().out == ""
            report.update(step, step * 4, 1.0)
    return capsys.readouterr().out.splitlines()


def test_after_ten_steps_one_line_says_when(tmp_path, capsys, monkeypatch):
    assert lines_of_eleven_steps(tmp_path, capsys) == []  # they were too quick to tell
    monkeypatch.setattr(progress, "TIMED_SECONDS", 0)
    (line,) = lines_of_eleven_steps(tmp_path, capsys, hint="try tiny")
    assert "a step: done in 0 s, at " in line and "tiny" not in line
    monkeypatch.setattr(progress, "DAY", 1e-9)
    monkeypatch.setattr(progress, "pace", lambda seconds, steps, now: f"{steps} steps left")
    assert lines_of_eleven_steps(tmp_path, capsys, hint="try tiny") == ["89 steps left; try tiny"]
    assert lines_of_eleven_steps(tmp_path, capsys) == ["89 steps left"]
    assert lines_of_eleven_steps(tmp_path, capsys, quiet=True) == []
    assert lines_of_eleven_steps(tmp_path, capsys, total=111) == []
