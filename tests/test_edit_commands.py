"""Interpolation, manipulation and the editor of own images, from the command line to the pictures."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from lmdb_fixtures import image_folder
from parity import released_state
from PIL import Image

from datasets import toyfaces
from dbae.config import SampleConfig, UserError
from dbae.io import fingerprint, save_grid, to_uint8
from eval.features import encode_batches
from scripts import edit, figures, interpolate, manipulate
from scripts.cli import run
from scripts.edit_inputs import different
from scripts.figures import Row, plain_text, strip
from scripts.probe_figure import draw
from scripts.trained import TrainedModel

IMAGES = [str(ROOT / "assets" / f"img{i}.png") for i in range(1, 5)]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a program's main in this process; returns (status, standard output, standard error)."""

    def run_main(program, *words, status=0):
        monkeypatch.chdir(ROOT)
        found = 0
        try:
            run(lambda: program.main(list(map(str, words))))
        except SystemExit as stop:
            found = stop.code
        shown = capsys.readouterr()
        assert found == status, shown.err
        return shown.err if status else shown.out

    return run_main


@pytest.fixture(scope="module")
def classifier(checkpoint):
    """A linear classifier of four attributes beside the checkpoint."""
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(8, 4).state_dict(), checkpoint.parent / "best.pt")
    names = ["Male", "Young", "Smiling", "Eyeglasses"]
    weights = fingerprint(str(checkpoint))
    about = {
        "attributes": names,
        "weights": weights,
        "codes": {"std": [1.0] * 8, "median_logit_of_positives": [1.0] * 4, "median_logit_of_negatives": [-1.0] * 4},
    }
    (checkpoint.parent / "best.json").write_text(json.dumps(about))


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_interpolation_launcher(checkpoint, tmp_path):
    (tmp_path / "a b.png").write_bytes((ROOT / "assets" / "img1.png").read_bytes())
    words = ["toyfaces", "vp", checkpoint, "0.33", "1", "test", "7", "euler", "2", "true", "--device=cpu"]
    words += ["--images", "a b.png", IMAGES[1], IMAGES[2], "--frames", "4"]
    command = ["bash", str(ROOT / "interpol_dbae.sh"), *map(str, words)]
    environment = os.environ | {"PYTHON": sys.executable, "NPROC": "2"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    folder = checkpoint.parent / "sample_20" / "interpolation_euler_7.0_2_w=1.0_churn=0.33"
    names = {"a b-img2-img3_linear_4.png", "a b-img2-img3_linear_4.gif", "edits.json"}
    assert {path.name for path in folder.iterdir()} == names
    with Image.open(folder / "a b-img2-img3_linear_4.gif") as animation:
        assert animation.n_frames == 8 + 6 - 2  # there and back; the repeated middle image merges into one frame


def test_manipulation_of_a_data_sets_images(checkpoint, classifier, call, tmp_path):
    words = ["--dataset=toyfaces", f"--model_path={checkpoint}", "--steps=1", f"--out={tmp_path}"]
    more = ["--split=test", "--indices=3,14", "--attributes", "smiling,3", "--scales", "-0.5,0.5"]
    call(manipulate, *words, *more, "--fix_xT=false", "--normalised")
    name = "toyfaces-011003-toyfaces-011014_Smiling-Eyeglasses_normalised_moved_xT"
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png", f"{name}.gif", "edits.json"}
    shown = call(manipulate, *words, "--strength=median")
    assert (tmp_path / "img3-img4_Male-Young_median.png").exists()
    assert "note: the official setting; more moves with --fix_xT false\n" in shown


def test_images_of_sub_folders_are_told_apart(checkpoint, call, tmp_path):
    folder = image_folder(tmp_path / "own", [f"{kind}/{i}.png" for kind in ("a", "b") for i in range(2)], 32, 32)
    words = ["reconstruct", f"--dataset=folder:{folder}", f"--model={checkpoint}", "--steps=1", "--split=all"]
    call(edit, *words, "--indices=0,2", f"--out={tmp_path / 'out'}")
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made >= {"a_0.png.png", "b_0.png.png", "edits.json"}


def test_a_strip_shows_some_of_many_frames():
    assert figures.evenly(11) == list(range(11))
    many = figures.evenly(600)
    assert (many[0], many[-1], len(many)) == (0, 599, 48) and many == sorted(set(many))
    with pytest.raises(UserError, match="a picture of 50 columns, these take 51"):
        figures.check_rows(1, 51)


def test_a_bare_released_file(tmp_path, call):
    """As the official release ships them: a weight file, and a classifier of 40 attributes without names."""
    model = tmp_path / "ema_0.9999_980000.pt"
    torch.save(released_state(64, "sto"), model)
    torch.save(torch.nn.Linear(512, 40).state_dict(), tmp_path / "best.pt")
    words = ["--dataset=celeba", "--schedule=vp", f"--model_path={model}", "--sampler=heun", "--steps=1"]
    call(manipulate, *words, "--device=cpu", "--images", IMAGES[0], "--attributes=Young", "--scales=0.3")
    folder = tmp_path / "sample_980000" / "manipulation_heun_7.0_1_w=1.0_churn=0.0"
    assert (folder / "img1_Young.png").exists()


def test_editor_reconstructs_and_pastes(checkpoint, call, tmp_path):
    photo = Image.new("RGB", (300, 200), "olive")
    photo.paste(toyfaces.render(toyfaces.describe(3), 128), (80, 30))
    photo.save(tmp_path / "photo.jpg")
    words = ["reconstruct", f"--model={checkpoint}", "--steps=1", "--latent=mean", "--out", tmp_path / "out"]
    call(edit, *words, "--images", tmp_path / "photo.jpg", IMAGES[0])
    assert pixels(tmp_path / "out" / "photo.png").shape == (32, 32, 3)
    assert (tmp_path / "out" / "photo-img1_reconstruction.png").exists()
    call(edit, *words, "--images", tmp_path / "photo.jpg", "--paste", "--overwrite")
    whole, before = pixels(tmp_path / "out" / "photo.png"), pixels(tmp_path / "photo.jpg")
    assert whole.shape == (200, 300, 3)
    assert np.array_equal(whole[:, :50], before[:, :50])
    assert not np.array_equal(whole[:, 60:240], before[:, 60:240])


def test_editor_encodes_and_manipulates(checkpoint, classifier, call, tmp_path):
    words = [f"--model={checkpoint}", "--steps=1", "--out", tmp_path, "--images", *IMAGES[:3]]
    call(edit, "encode", *words)
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as found:
        assert found["z"].shape == (3, 8) and list(found["name"]) == ["img1", "img2", "img3"]
    shown = call(edit, "manipulate", *words, "--attributes=Eyeglasses", "--scales=0.1", "--paste")
    assert "note" not in shown and (tmp_path / "img1-img2-img3_Eyeglasses_median_moved_xT.png").exists()
    assert pixels(tmp_path / "img2_Eyeglasses_+0.1.png").shape == (256, 256, 3)


def test_inputs_and_earlier_results_are_not_overwritten(checkpoint, call, tmp_path):
    """Not a photo, whatever it is called, nor a file of somebody else, nor a result of other settings."""
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    shutil.copy(IMAGES[0], a), shutil.copy(IMAGES[1], b)
    words = ["reconstruct", f"--model={checkpoint}", "--steps=1", "--out", tmp_path / "out", "--images", a]
    before = a.read_bytes()
    for out in (tmp_path, tmp_path / "linked"):
        if out != tmp_path:
            out.mkdir()
            os.link(a, out / "a.png")
        error = call(edit, *words, "--out", out, "--overwrite", status=2)
        assert "a.png is an input" in error and a.read_bytes() == before
    error = call(edit, *words[:3], "--out", tmp_path, "--images", tmp_path / "linked" / "..", "--limit=1", status=2)
    assert "a.png is an input" in error

    (tmp_path / "out").mkdir()
    shutil.copy(b, tmp_path / "out" / "a.png")  # of somebody else
    assert "a.png holds a result with another origin" in call(edit, *words, status=2)
    call(edit, *words, "--overwrite")
    call(edit, *words)
    made = (tmp_path / "out" / "a.png").read_bytes()
    for more, told in ((["--steps=2"], "steps (1, now 2)"), (["--seed=1"], "seed (0, now 1)")):
        assert told in call(edit, *words, *more, status=2)
    shutil.copy(b, a)
    assert "another images" in call(edit, *words, status=2)
    assert (tmp_path / "out" / "a.png").read_bytes() == made
    call(edit, *words, "--overwrite")
    shutil.copy(IMAGES[0], a)
    assert "another images" in call(edit, *words, status=2)  # the last one counts
    for content in ("[]", '{"edits": [1]}', "{"):
        (tmp_path / "out" / "edits.json").write_text(content)
        assert "edits.json: " in call(edit, *words, status=2)


def test_results_have_different_names(checkpoint, call, tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        shutil.copy(IMAGES[0], folder / "x.png")
    for name in ("x_0.png", "X.PNG", "x_2_0.png"):
        shutil.copy(IMAGES[1], tmp_path / "a" / name)
    words = ["reconstruct", f"--model={checkpoint}", "--steps=1", "--out", tmp_path / "out", "--images", *folders]
    paths = [line.removeprefix("wrote ") for line in call(edit, *words).splitlines()]
    assert len(paths) == 7 and len({path.casefold() for path in paths}) == 7 and all(map(os.path.exists, paths))
    assert different(["a", "a", "a_1", "b"]) == ["a_0", "a_2", "a_1", "b"]
    twice = ["manipulate", *words[1:], "--paste", "--strength=scales", "--attributes=0", "--scales=0.1,0.1"]
    torch.save(torch.nn.Linear(8, 1).state_dict(), tmp_path / "best.pt")
    error = call(edit, *twice, f"--classifier={tmp_path / 'best.pt'}", status=2)
    assert "expected another name for every result" in error


def test_a_classifier_of_other_weights(checkpoint, classifier, call, tmp_path):
    """Is refused by name, or passed over where there is another."""
    probe = tmp_path / "sample_20" / "downstream_inference" / "multitask_ema_faces"
    probe.mkdir(parents=True)
    for path in (checkpoint, checkpoint.parent / "config.json", *checkpoint.parent.glob("best.*")):
        shutil.copy(path, tmp_path)
    for path in tmp_path.glob("best.*"):
        shutil.copy(path, probe)
    words = ["manipulate", f"--model={tmp_path / checkpoint.name}", "--steps=1", "--out", tmp_path / "out"]
    words += ["--images", IMAGES[0]]
    about = json.loads((tmp_path / "best.json").read_text())
    (tmp_path / "best.json").write_text(json.dumps(about | {"weights": "0" * 16}))
    call(edit, *words)
    error = call(edit, *words, f"--classifier={tmp_path / 'best.pt'}", status=2)
    assert f"{tmp_path / 'best.pt'} is of the weights 0000" in error
    del about["weights"]
    (probe / "best.json").write_text(json.dumps(about))
    assert "is of the weights 0000" in call(edit, *words, status=2)
    (tmp_path / "best.pt").unlink()
    assert "weights that its JSON does not state" in call(edit, *words, status=2)
    shutil.copy(checkpoint.parent / "best.json", probe)
    shutil.move(tmp_path / "sample_20", tmp_path / "out")  # of a probe with the same --out
    assert f"along the classifier {tmp_path / 'out'}" in call(edit, *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("interpolate", "photos: expected image files or folders"),
        ("interpolate --images {0}", "images: expected at least two"),
        ("interpolate --images {0} {1} --frames=1", "frames: "),
        ("interpolate --images" + " {0} {1}" * 30, "images: expected few enough for a picture of 100 rows"),
        ("interpolate --dataset=toyfaces --indices=0,1 --images {0}", "indices: expected either"),
        ("interpolate --dataset=toyfaces --indices=0,1000000", "indices: expected numbers"),
        ("reconstruct --dataset=toyfaces --indices=0 --paste", "paste: "),
        ("reconstruct --images README.md", "README.md is a bad image"),
        ("reconstruct --images {0} --landmarks=absent.json", "absent.json"),
        ("manipulate --images {0} --attributes=Beard", "attributes: "),
        ("manipulate --images {0} --scales=nan", "scales: "),
        ("manipulate --images {0} --classifier=absent.pt", "absent.pt"),
        ("draw", "action: invalid choice: 'draw'"),
    ],
)
def test_wrong_input(checkpoint, classifier, call, words, told):
    error = call(edit, *words.format(*IMAGES).split(" "), f"--model={checkpoint}", status=2)
    assert error.startswith("error: ") and told in error and error.count("\n") == 1


def test_no_classifier(checkpoint, call, tmp_path):
    for name in (checkpoint.name, "config.json"):
        (tmp_path / name).write_bytes((checkpoint.parent / name).read_bytes())
    error = call(edit, "manipulate", f"--model={tmp_path / checkpoint.name}", "--images", IMAGES[0], status=2)
    assert error.startswith("error: classifier: no ") and error.count("\n") == 1


def test_dry_run(checkpoint, call):
    for program, more in ((interpolate, []), (manipulate, []), (edit, ["encode"])):
        shown = call(program, *more, "--dataset=toyfaces", f"--model={checkpoint}", "--dry_run")
        assert json.loads(shown)["model"]["latent_dim"] == 8


def trained_tiny(**settings):
    return TrainedModel(tiny.model(), SampleConfig("euler", 2, churn=0.3), **settings)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_no_picture_and_no_code_from_what_is_not_finite(value):
    trained, images = trained_tiny(), to_uint8(tiny.images(2))
    z = trained.encode(images)
    bias = trained.model.unet.out[2].bias
    with torch.no_grad():
        bias.fill_(value)
        for made in (
            lambda: trained.reconstruct(images),
            lambda: trained.interpolate(images, 2, "linear"),
            lambda: trained.shift(images, z, torch.zeros(1, 8), True),
        ):
            with pytest.raises(UserError, match="images: expected finite numbers"):
                made()
        list(trained.model.encoder.parameters())[-1].fill_(value)
    for codes in (
        lambda: trained.encode(images),
        lambda: list(encode_batches(trained.encode_arrays, [(images, torch.arange(2))])),
    ):
        with pytest.raises(UserError, match="codes: expected finite numbers"):
            codes()


NAMES = ["$x^$", r"a\$b$", "a_b#[1]{}%", "x\udce9", "a\nb\x07", "名前 🙂", "_hidden"]


@pytest.mark.filterwarnings("error")
def test_names_are_text_in_figures(tmp_path):
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    rows = [Row(plain_text(name), [image], [name]) for name in NAMES]
    strip(str(tmp_path / "strip.png"), rows, "title")
    scores = {name: {"ap": 0.5} for name in NAMES}
    report = {"features": "model", "solver": "exact", "data": "folder:$x^$", "images": {"test": 9}}
    draw(str(tmp_path / "bars.png"), report | {"test": {"ap": 0.5}, "attributes": scores})
    assert plain_text("$x$") == r"\$x\$" and plain_text("a\n\udce9") == r"a\n\udce9"


def test_labels_are_not_clipped_and_do_not_meet(tmp_path, monkeypatch):
    image, path, name = torch.zeros(3, 8, 8, dtype=torch.uint8), str(tmp_path / "one.png"), "a_long_name_of_photo_1"
    for write in (
        lambda: strip(path, [Row("reconstruction", [image], [name])], "a title that is wider than the only image"),
        lambda: save_grid(path, [("reconstruction", image[None])]),
    ):
        write()
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert all((edge == 255).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))

    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda path, figure, **options: drawn.append(figure))
    strip(path, [Row("reconstruction", [image] * 3, [name] * 3)], "")
    drawn[0].draw_without_rendering()
    captions = [axis.title.get_window_extent() for axis in drawn[0].axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(captions))


def test_names_of_files_are_text_in_programs(checkpoint, call, tmp_path):
    paths = [os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/$x^$.png", b"/x\xe9.png", b"/a\nb.png")]
    for path in paths:
        with open(path, "wb") as file, open(IMAGES[0], "rb") as source:
            file.write(source.read())
    words = [f"--model={checkpoint}", "--images", *paths, f"--out={tmp_path / 'out'}", "--steps=1"]
    call(edit, "reconstruct", *words)
    call(edit, "encode", *words)
    with np.load(tmp_path / "out/codes.npz") as codes:
        assert codes["name"].tolist() == ["$x^$", "x\udce9", "a\nb"]
    assert {"$x^$.png", "x\udce9.png", "a\nb.png"} < set(os.listdir(tmp_path / "out"))
    error = call(edit, "encode", f"--model={checkpoint}", f"--images={tmp_path}/no\nfile\udce9", status=2)
    assert r"no\nfile\udce9" in error and error.count("\n") == 1


@pytest.mark.parametrize("batch_size", [1, 5])
def test_frames_share_their_noise_and_end_in_reconstructions(batch_size):
    """Whatever the batches: the first image draws from the same generator as all frames do."""
    images = to_uint8(tiny.images(3))
    trained = trained_tiny(batch_size=batch_size)
    states, made = trained.interpolate(images, 4, "linear")
    x_T, expected = zip(*(trained.reconstruct(images[i : i + 1], [0]) for i in range(3)), strict=True)
    for found, ends in ((states, x_T), (made, expected)):
        assert found.shape == (2, 4, 3, 32, 32)
        for pair in (0, 1):
            assert (found[pair, 0].int() - ends[pair][0].int()).abs().max() <= 1
            assert (found[pair, -1].int() - ends[pair + 1][0].int()).abs().max() <= 1
    assert (made[:, 0] != made[:, 1]).any()


@pytest.mark.parametrize("fix_xT", [True, False])
def test_edits_sampled_together_equal_edits_sampled_apart(fix_xT, monkeypatch):
    """Of different numbers of columns; states are decoded once, and the network is called once per step."""
    trained, images = trained_tiny(), to_uint8(tiny.images(2))
    z = trained.encode(images)
    shifts = [torch.arange(n)[:, None].expand(n, 8) * 0.5 for n in (3, 1, 2)]
    apart = [trained.shift(images, z, shift, fix_xT) for shift in shifts]
    calls = {"decode": 0, "denoise": 0}
    for name in calls:
        usual = getattr(trained.model, name)

        def counted(*args, name=name, usual=usual, **kwargs):
            calls[name] += 1
            return usual(*args, **kwargs)

        monkeypatch.setattr(trained.model, name, counted)
    together = trained.shift(images, z, torch.cat(shifts), fix_xT)
    assert calls["decode"] == 1 and calls["denoise"] == 4
    for k in (0, 1):
        split = together[k].split([3, 1, 2], dim=1)
        for image, expected in zip(split, (each[k] for each in apart), strict=True):
            assert image.shape == expected.shape and (image.int() - expected.int()).abs().max() <= 1


def test_an_image_has_the_same_code_however_many_are_asked_for(checkpoint, call, tmp_path):
    words = ["encode", f"--model={checkpoint}", "--dataset=toyfaces", "--split=test", "--device=cpu"]
    for name, indices in (("both", "3,14"), ("one", "14")):
        call(edit, *words, f"--indices={indices}", f"--out={tmp_path / name}")
    both, one = (np.load(tmp_path / name / "codes.npz")["z"] for name in ("both", "one"))
    assert np.allclose(both[1], one[0], atol=1e-6)


def test_long_names_are_shortened_or_refused(checkpoint, call, tmp_path):
    for i, length in enumerate((70, 70, 235)):
        shutil.copy(IMAGES[0], tmp_path / f"{i}{'x' * length}.png")
    words = ["interpolate", f"--model={checkpoint}", "--frames=2", "--steps=1", "--device=cpu", f"--out={tmp_path}/out"]
    paths = sorted(tmp_path.glob("*.png"))
    call(edit, *words, "--images", *paths[:2])
    assert any("-to-1xxx" in path.name for path in (tmp_path / "out").iterdir())
    shown = call(edit, *words, "--images", *paths[1:], status=2)
    assert "images: expected shorter names of files" in shown
