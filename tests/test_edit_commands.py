"""Interpolation, manipulation and the editor of own images, from the command line to the pictures."""

import json
import sys

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from parity import released_state
from PIL import Image
from scripts.editing import Editor
from test_commands import assert_one_line_error, bash

from datasets import toyfaces
from dbae.config import SampleConfig
from scripts import edit as dbae_edit
from scripts import interpolate as dbae_interpolation
from scripts import manipulate as dbae_manipulation
from scripts.cli import run
from scripts.edit_actions import Edit, manipulate

IMAGES = [str(ROOT / "assets" / f"img{i}.png") for i in range(1, 5)]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a program's main in this process; returns (status, standard output, standard error)."""

    def run_main(program, *words):
        monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, words)])
        monkeypatch.chdir(ROOT)
        status = 0
        try:
            run(program.main)
        except SystemExit as stop:
            status = stop.code
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run_main


@pytest.fixture(scope="module")
def classifier(checkpoint):
    """A linear classifier of four attributes beside the checkpoint."""
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(8, 4).state_dict(), checkpoint.parent / "best.pt")
    names = ["Male", "Young", "Smiling", "Eyeglasses"]
    about = {"attributes": names, "codes": {"std": [1.0] * 8, "median_logit_of_positives": [1.0] * 4}}
    (checkpoint.parent / "best.json").write_text(json.dumps(about))
    return checkpoint.parent / "best.pt"


def positions(checkpoint, sampler="euler", n=2):
    return ["toyfaces", "vp", checkpoint, "0.33", "1", "test", "7", sampler, n, "true", "--device=cpu"]


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_interpolation_launcher(checkpoint, tmp_path):
    (tmp_path / "a b.png").write_bytes((ROOT / "assets" / "img1.png").read_bytes())
    words = positions(checkpoint) + ["--images", "a b.png", IMAGES[1], IMAGES[2], "--frames", "4"]
    status, _, error = bash(ROOT / "interpol_dbae.sh", *words, cwd=tmp_path, NPROC="2")
    assert status == 0, error
    folder = checkpoint.parent / "sample_20" / "interpolation_euler_7.0_2_w=1.0_churn=0.33"
    assert {path.name for path in folder.iterdir()} == {
        "a b-img2-img3_linear_4.png", "a b-img2-img3_linear_4.gif",
    }  # fmt: skip
    with Image.open(folder / "a b-img2-img3_linear_4.gif") as animation:
        assert animation.n_frames == 8 + 6 - 2  # there and back; the repeated middle image merges into one frame


def test_default_images_are_the_official_ones(checkpoint, classifier, call):
    launched = dict(zip(["dataset", "schedule", "model_path"], ["toyfaces", "vp", checkpoint], strict=True))
    words = [f"--{name}={value}" for name, value in launched.items()] + ["--steps=1", "--frames=2"]
    status, shown, error = call(dbae_interpolation, *words)
    assert status == 0 and "img1-img2_linear_2.png" in shown, error
    status, shown, error = call(dbae_manipulation, *words[:-1])
    assert status == 0 and "img3-img4_Male-Young.png" in shown and ".gif" in shown, error


def test_manipulation_of_a_data_sets_images(checkpoint, classifier, call, tmp_path):
    words = ["--dataset=toyfaces", "--schedule=vp", f"--model_path={checkpoint}", "--split=test", "--steps=1"]
    words += ["--indices=3,14", "--attributes", "smiling,3", "--scales", "-0.5,0.5", "--out", tmp_path]
    status, _, error = call(dbae_manipulation, *words, "--fix_xT=false", "--normalised")
    assert status == 0, error
    name = "toyfaces-011003-toyfaces-011014_Smiling-Eyeglasses_normalised_moved_xT"
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png", f"{name}.gif"}
    status, _, error = call(dbae_manipulation, *words[:5], "--strength=median", f"--out={tmp_path}")
    assert status == 0 and (tmp_path / "img3-img4_Male-Young_median.png").exists(), error


def test_both_on_a_bare_released_file(tmp_path):
    """As the official release ships them: a weight file, and a classifier of 40 attributes without names."""
    model = tmp_path / "ema_0.9999_980000.pt"
    torch.save(released_state(64, "sto"), model)
    torch.save(torch.nn.Linear(512, 40).state_dict(), tmp_path / "best.pt")
    words = ["celeba", "vp", model, "0.33", "1", "train", "7", "heun", "1", "true", "--device=cpu"]
    status, _, error = bash("interpol_dbae.sh", *words, "--frames=2")
    assert status == 0, error
    status, _, error = bash("manipul_dbae.sh", *words, "--scales=-0.3,0.3")
    assert status == 0, error
    folder = tmp_path / "sample_980000"
    assert (folder / "interpolation_heun_7.0_1_w=1.0_churn=0.33" / "img1-img2_linear_2.png").exists()
    assert (folder / "manipulation_heun_7.0_1_w=1.0_churn=0.33" / "img3-img4_Male-Young.png").exists()


def test_editor_reconstructs_and_pastes(checkpoint, call, tmp_path):
    photo = Image.new("RGB", (300, 200), "olive")
    photo.paste(toyfaces.render(toyfaces.describe(3), 128), (80, 30))
    photo.save(tmp_path / "photo.jpg")
    words = ["reconstruct", f"--model={checkpoint}", "--steps=1", "--latent=mean", "--out", tmp_path / "out"]
    status, _, error = call(dbae_edit, *words, "--images", tmp_path / "photo.jpg", IMAGES[0])
    assert status == 0, error
    assert pixels(tmp_path / "out" / "photo.png").shape == (32, 32, 3)
    assert (tmp_path / "out" / "photo-img1_reconstruction.png").exists()
    status, _, error = call(dbae_edit, *words, "--images", tmp_path / "photo.jpg", "--paste")
    assert status == 0, error
    whole = pixels(tmp_path / "out" / "photo.png")
    assert whole.shape == (200, 300, 3)
    assert np.array_equal(whole[:, :50], pixels(tmp_path / "photo.jpg")[:, :50])
    assert not np.array_equal(whole[:, 60:240], pixels(tmp_path / "photo.jpg")[:, 60:240])


def test_editor_encodes_and_manipulates(checkpoint, classifier, call, tmp_path):
    words = [f"--model={checkpoint}", "--steps=1", "--out", tmp_path, "--images", *IMAGES[:3]]
    status, _, error = call(dbae_edit, "encode", *words)
    assert status == 0, error
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as found:
        assert found["z"].shape == (3, 8) and list(found["name"]) == ["img1", "img2", "img3"]
    words += ["--attributes=Eyeglasses", "--scales=0.1", "--paste"]
    status, _, error = call(dbae_edit, "manipulate", *words)
    assert status == 0 and (tmp_path / "img2_Eyeglasses_+0.1.png").exists(), error
    assert pixels(tmp_path / "img2_Eyeglasses_+0.1.png").shape == (256, 256, 3)


def test_editor_tells_what_the_model_has_not_seen(checkpoint, call, tmp_path):
    words = [f"--model={checkpoint}", "--device=cpu"]
    status, shown, error = call(dbae_edit, "calibrate", *words, "--dataset=toyfaces", "--limit=8")
    assert status == 0 and "reconstruction_error_20.json" in shown, error
    path = checkpoint.parent / "reconstruction_error_20.json"
    found = json.loads(path.read_text())
    assert found["images"] == 8 and len(found["percentiles"]) == 101
    Image.effect_noise((64, 64), 200).save(tmp_path / "noise.png")
    edit = ["reconstruct", *words, "--steps=1", "--out", tmp_path, "--images", tmp_path / "noise.png"]
    path.write_text(json.dumps({"percentiles": [0.0] * 101}))
    status, _, error = call(dbae_edit, *edit)
    assert status == 0 and "note: noise is far from what the model has seen" in error
    path.write_text(json.dumps({"percentiles": [9.0] * 101}))
    assert "far from" not in call(dbae_edit, *edit)[2]
    path.write_text(json.dumps({"percentiles": [0.0] * 101}))
    status, _, error = call(dbae_edit, *edit[:-1], *[tmp_path / "noise.png"] * 8)
    assert status == 0 and error.count("note: ") == 6 and "so are 3 more of the 8 images" in error
    path.write_text("[]")
    assert_one_line_error(call(dbae_edit, *edit), "expected 101 percentiles")
    path.unlink()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["interpolate"], ["expected image files or folders", "none"]),
        (["interpolate", "--images", IMAGES[0]], ["at least two", "got 1"]),
        (["interpolate", "--images", *IMAGES[:2], "--frames=1"], ["frames: expected at least 2, got 1"]),
        (["reconstruct", "--images", "absent.png"], ["absent.png"]),
        (["reconstruct", "--images", "README.md"], ["README.md is a bad image"]),
        (["reconstruct", "--images", IMAGES[0], "--landmarks=absent.json"], ["absent.json"]),
        (["reconstruct", "--images", IMAGES[0], "--steps=0"], ["steps: expected a number above 0"]),
        (["manipulate", "--images", IMAGES[0], "--attributes=Beard"], ["attributes", "Eyeglasses", "'Beard'"]),
        (["manipulate", "--images", IMAGES[0], "--scales=a"], ["numbers like -0.3,0,0.3", "'a'"]),
        (["manipulate", "--images", IMAGES[0], "--scales=nan"], ["scales: expected finite numbers"]),
        (["manipulate", "--images", IMAGES[0], "--scales=1", "--strength=median"], ["scales: expected none"]),
        (["manipulate", "--images", IMAGES[0], "--classifier=absent.pt"], ["absent.pt"]),
        (["calibrate"], ["dataset: expected the one the model was trained on"]),
        (["interpolate", "--images", *IMAGES * 15], ["images: expected few enough", "100 rows", "118"]),
        (["manipulate", "--images", *IMAGES * 15], ["images: expected few enough", "100 rows", "120"]),
        (["draw"], ["'draw'", "reconstruct"]),
    ],
    ids=lambda value: " ".join(value).replace(str(ROOT), "")[:60] if isinstance(value, list) else None,
)
def test_wrong_input(checkpoint, classifier, call, words, parts):
    assert_one_line_error(call(dbae_edit, *words, f"--model={checkpoint}"), *parts)


def test_both_images_and_indices(checkpoint, call):
    words = ["--dataset=toyfaces", f"--model={checkpoint}", "--indices=0,1"]
    assert_one_line_error(call(dbae_interpolation, *words, "--images", *IMAGES[:2]), "either images or indices")
    assert_one_line_error(call(dbae_interpolation, *words[:-1], "--indices=0,1000000"), "indices: expected numbers")


def test_no_classifier(checkpoint, call, tmp_path):
    for name in (checkpoint.name, "config.json"):
        (tmp_path / name).write_bytes((checkpoint.parent / name).read_bytes())
    words = ["manipulate", f"--model={tmp_path / checkpoint.name}", "--images", IMAGES[0]]
    assert_one_line_error(call(dbae_edit, *words), "classifier: no ", "run infer_class_dbae.sh")


def test_dry_run(checkpoint, call):
    words = ["--dataset=toyfaces", f"--model={checkpoint}", "--dry_run"]
    for program in (dbae_interpolation, dbae_manipulation):
        status, shown, _ = call(program, *words)
        assert status == 0 and json.loads(shown)["model"]["latent_dim"] == 8
    assert json.loads(call(dbae_edit, "encode", *words[1:])[1])["WayOptions"]["frames"] == 11


@pytest.mark.parametrize("fix_xT", [True, False])
def test_edits_sampled_together_equal_edits_sampled_apart(fix_xT, monkeypatch):
    """Of different numbers of columns; the endpoint is decoded once, and the network is called once per step."""
    model, z = tiny.model(), torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    editor = Editor(model, SampleConfig("euler", 2, churn_step_ratio=0.3))
    edits = [Edit(str(n), ("",) * n, z, z[:, None] + torch.arange(n)[:, None]) for n in (3, 1, 2)]
    apart = [manipulate(editor, [edit], fix_xT)[0] for edit in edits]
    calls = {"decode": 0, "denoise": 0}
    for name in calls:
        usual = getattr(model, name)
        monkeypatch.setattr(
            model, name, lambda *a, name=name, usual=usual: (calls.update({name: calls[name] + 1}), usual(*a))[1]
        )
    together = manipulate(editor, edits, fix_xT)
    assert calls == {"decode": 1, "denoise": 4}
    for ours, theirs in zip(together, apart, strict=True):
        for image, expected in zip(ours, theirs, strict=True):
            assert image.shape == expected.shape and (image.int() - expected.int()).abs().max() <= 1
