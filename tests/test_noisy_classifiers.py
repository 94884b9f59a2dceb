"""Classifiers of noisy images that are told the noise: what they see and are told, their training, and their curves."""

import json
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from dbae.checkpoint import config_content, save_weights, write_config
from dbae.config import TrainConfig, UserError
from dbae.methods.ddae import DDAE, EDMDDAE
from dbae.methods.ddae_config import DDPMConfig, EDMConfig, sigma_of_step
from scripts import classifier_ddae, classifier_wrn, cli, noisy_classifier, noisy_figure
from scripts.classifier_wrn import WRNOptions, recursive_cosine
from scripts.noisy_classifier import FRAMEWORKS

CPU = torch.device("cpu")
TINY = ["--depth=10", "--width=1", "--image_size=8", "--device=cpu", "--quiet"]
NETWORK = {"image_size": 8, "num_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "attention_sizes": ()}
# lr/wrn_200_warm5_base0.1 of the official vectors, by epoch
OFFICIAL_RATES = {
    0: 0.02, 3: 0.08, 4: 0.1, 5: 0.09994447548276714, 6: 0.09987664009744603, 50: 0.08543963686258724,
    100: 0.05004938050987135, 150: 0.014659124157155503, 198: 2.4696348014150902e-05, 199: 6.174467867927777e-06,
}  # fmt: skip


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """A folder of images of two classes, which no flip, crop, brightness or contrast changes: kinds of stripes."""
    folder, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for name in ("across", "down"):
        (folder / name).mkdir()
        for i in range(100):
            rows = 220 * ((np.arange(8) + rng.integers(4)) // 2 % 2)[:, None] * np.ones((8, 8))
            image = (rows if name == "across" else rows.T)[:, :, None] + rng.integers(0, 30, size=(8, 8, 3))
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"{i:03d}.png")
    return f"folder:{folder}"


def made(kind, **changes):
    """A small frozen model with random weights."""
    torch.manual_seed(0)
    cls, config = (EDMDDAE, EDMConfig) if kind == "EDM" else (DDAE, DDPMConfig)
    return cls(config(**NETWORK, **{"dropout": 0.0, "feature_block": "out_2", **changes})).eval()


def test_official_learning_rates():
    factor = recursive_cosine(200, 5)
    for epoch, rate in OFFICIAL_RATES.items():
        assert 0.1 * factor(epoch + 0.9) == pytest.approx(rate, rel=1e-9)
    assert recursive_cosine(10, 0)(0) == 1 and recursive_cosine(10, 0)(5) == pytest.approx(0.5)


def test_levels_of_the_curve():
    assert list(FRAMEWORKS["DDPM"].tested) == list(range(1, 952, 50))
    assert list(FRAMEWORKS["EDM"].tested) == list(range(1, 19))
    for kind, number, expected in (("DDPM", 1, (1e-4 / (1 - 1e-4)) ** 0.5), ("EDM", 4, 0.05995), ("EDM", 18, 80.0)):
        process, times, _ = FRAMEWORKS[kind]
        assert process.schedule.s_sigma(times[number])[1].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["DDPM", "EDM"])
def test_head_is_told_the_number_and_the_network_its_own_time(kind):
    model = made(kind)
    task, seen = classifier_ddae.task_of(model, 3), []
    numbers = task.draw(40_000, CPU)
    count = 1000 if kind == "DDPM" else 18
    assert not numbers.is_floating_point() and set(numbers.tolist()) == set(range(1, count + 1))
    assert numbers.double().mean().item() == pytest.approx((count + 1) / 2, rel=0.01)

    model.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    later = []
    for name, block in model.unet.named_blocks():
        block.register_forward_hook(lambda *_, name=name: later.append(name))
    numbers, x = torch.tensor([1, 4, count]), torch.full((3, 3, 8, 8), 0.5)
    torch.manual_seed(1)
    features, told = task.see(x, numbers, None)
    assert torch.equal(told, numbers) and features.shape == (3, 32) and later == ["out_1", "out_2"]
    own = numbers / 1000 if kind == "DDPM" else torch.tensor([sigma_of_step(k) for k in (1, 4, 18)]).log() / 4
    assert torch.allclose(seen[0][1], own.to(seen[0][1]))
    t = numbers if kind == "DDPM" else torch.tensor([sigma_of_step(k) for k in (1, 4, 18)])
    torch.manual_seed(1)
    assert torch.equal(features, model.features(x, t, ["out_2"])["out_2"])
    assert task.network(features, told).shape == (3, 3) and not features.requires_grad


@pytest.mark.parametrize("kind", ["DDPM", "EDM"])
def test_wide_network_sees_the_noise_that_it_is_told(kind):
    task = classifier_wrn.task_of(WRNOptions(mode=kind, depth=10, width=1), 3)
    torch.manual_seed(0)
    t = task.draw(20_000, CPU)
    if kind == "DDPM":
        assert set(t.tolist()) == set(range(1, 1001))
        times, told, noise = torch.tensor([1, 500, 1000]), torch.tensor([0.001, 0.5, 1.0]), [0.01, 0.9602, 0.99998]
    else:
        assert t.log().mean().item() == pytest.approx(-1.2, abs=0.03) and t.log().std().item() == pytest.approx(
            1.2, 0.02
        )
        times, told, noise = torch.tensor([0.1, 2.0]), torch.tensor([0.1, 2.0]).log(), [0.1, 2.0]
    x, u = task.see(torch.zeros(len(times), 3, 64, 64), times, None)
    assert torch.allclose(u, told) and x.flatten(1).std(1).tolist() == pytest.approx(noise, rel=0.02)
    assert task.network(x, u).shape == (len(times), 3)


@pytest.fixture(scope="module")
def words(stripes):
    return [f"--dataset={stripes}", *TINY, "--epochs=6", "--warm_epoch=1", "--batch_size=15", "--lr=0.03"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The folder of a classifier that was trained without a stop."""
    workdir = tmp_path_factory.mktemp("whole")
    classifier_wrn.main([*words, "--mode=EDM", f"--workdir={workdir}"])
    (folder,) = workdir.iterdir()
    return folder


def test_recognition_falls_with_the_noise(whole, words):
    report = json.loads((whole / "noisy_classifier.json").read_text())
    rates = {level["timestep"]: level["accuracy"] for level in report["levels"]}
    assert min(rates[k] for k in range(1, 5)) > 0.9 and max(rates[k] for k in (17, 18)) < 0.8
    assert np.mean([rates[k] for k in range(13, 19)]) < np.mean([rates[k] for k in range(1, 7)]) - 0.2
    assert report["chance"] == 0.5 and report["images"] == {"train": 180, "test": 20}
    assert report["levels"][3]["noise_to_signal"] == pytest.approx(sigma_of_step(4))
    assert [entry["epoch"] for entry in report["history"]] == list(range(1, 7))
    settings = report["made_from"]
    assert settings["depth"] == 10 and settings["classes"] == ["across", "down"] and settings["momentum"] == 0.9
    assert (whole / "recognition.png").stat().st_size


def test_what_is_done_is_not_done_again(whole, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(noisy_classifier, "read", None)  # nor are images read
    before = (whole / "recognition.png").read_bytes()
    command = [*words, "--mode=EDM", f"--workdir={whole.parent}"]
    classifier_wrn.main(command)
    assert "[timestep 18]: Test acc: 0." in capsys.readouterr().out
    assert (whole / "recognition.png").read_bytes() == before
    with pytest.raises(UserError, match="another seed"):
        classifier_wrn.main([*command, "--seed=1"])
    with pytest.raises(UserError, match=r"another test images .*, made by: python3 "):
        classifier_wrn.main([*command, "--limit_test=5"])

    other = json.loads((whole / "noisy_classifier.json").read_text()) | {"title": "another"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    classifier_wrn.main([*command, f"--compare={tmp_path}/other.json,{whole}"])
    assert (whole / "recognition.png").read_bytes() != before


def test_curves_of_a_folder_in_one_picture(whole, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(noisy_figure, "save_figure", lambda path, figure: drawn.append(figure))
    report = json.loads((whole / "noisy_classifier.json").read_text())
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "noisy_classifier.json").write_text(json.dumps(report | {"title": "cost $5", "chance": 0.1}))
    noisy_figure.main(["--results", str(tmp_path), f"{whole}/noisy_classifier.json", f"--out={tmp_path}/all.png"])
    assert "wrote 2 curves" in capsys.readouterr().out
    (axis,) = drawn[0].axes
    curves = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert set(curves) == {r"cost \$5", report["title"]} and axis.get_xscale() == "log"
    assert list(curves[report["title"]].get_xdata()) == [level["noise_to_signal"] for level in report["levels"]]
    assert [text.get_text() for text in axis.texts] == ["chance 0.1", "chance 0.5"]


@pytest.mark.parametrize("kind", ["DDPM", "EDM"])
def test_head_on_a_frozen_model(kind, stripes, tmp_path, capsys):
    model = made(kind)
    write_config(str(tmp_path), config_content(model, "toyfaces", train=TrainConfig()))
    path = tmp_path / "ema_0.9999_000020.pt"
    save_weights(str(path), model)
    before = path.read_bytes()
    classifier_ddae.main([
        "--method=ddae", f"--config={kind}_toyfaces", f"--model_path={path}", f"--dataset={stripes}", "--device=cpu",
        "--quiet", "--epochs=2", "--batch_size=64", "--limit=100", "--limit_test=10", "--feature_block=out_1",
    ])  # fmt: skip
    folder = tmp_path / "sample_20" / "classifier_out_1"
    report = json.loads((folder / "noisy_classifier.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    tested = [level["timestep"] for level in report["levels"]]
    assert tested == list(FRAMEWORKS[kind].tested) and lines[1].startswith(f"[timestep {tested[1]}]: Test acc: ")
    assert report["images"] == {"train": 100, "test": 10} and report["made_from"]["lr"] == 4e-3
    assert report["made_from"]["block"] == "out_1" and f"{kind}_toyfaces at 20" in report["title"]
    assert path.read_bytes() == before and (folder / "recognition.png").stat().st_size


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--mode=VP"], "mode"),
        (["--depth=27"], "depth: expected 6 n"),
        (["--width=9"], "width"),
        (["--image_size=30"], "image_size: expected a multiple of 4"),
        (["--epochs=5"], "warm_epoch: expected 0 to 4"),
        (["--lr=0"], "lr: expected a number above 0"),
        (["--limit_test=0"], "limit_test"),
        (["--batch_size=30", "--check=4"], "batch_size: expected a multiple of the 4"),
        (["--dataset=sprites"], "expected labels of the kind|has no labels"),
        (["--compare=none.json"], "no such file: none.json"),
        ([f"--compare={ROOT}/tests/golden/keys_64_det.json"], "noise-conditional classifier"),
        ([f"--compare={ROOT}/ckpt"], "none"),
    ],
)
def test_wrong_input_is_one_line(wrong, said, stripes, tmp_path, monkeypatch, capsys):
    data = [f"--dataset={stripes}", *TINY]
    monkeypatch.setattr("sys.argv", ["classifier", *data, f"--workdir={tmp_path}", *wrong])
    with pytest.raises(SystemExit) as ended:
        cli.run(classifier_wrn.main)
    error = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(error) == 1 and not list(tmp_path.iterdir())
    assert any(part in error[0] for part in said.split("|")), error


def test_another_model_is_refused(checkpoint):
    with pytest.raises(UserError, match="expected a DDAE"):
        classifier_ddae.main([f"--model_path={checkpoint}", "--dataset=toyfaces", "--device=cpu"])


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["wrn", "EDM", "--dataset", "cifar100"], "--mode=EDM --data_root=data --workdir=runs --dataset cifar100"),
        (["ddae", "DDPM_small", "x.pt", "--lr=1"], "--config=DDPM_small --model_path=x.pt --data_root=data --lr=1"),
    ],
)
def test_launchers(words, command):
    kind, *rest = words
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": "echo", "NPROC": "1", "CKPT_ROOT": "runs"}
    script = ["bash", str(ROOT / "ddae" / f"classifier_{kind}.sh")]
    done = subprocess.run([*script, *rest], capture_output=True, text=True, env=environment)
    assert f"-m scripts.classifier_{kind} " in done.stdout and done.stdout.strip().endswith(command), done
    assert subprocess.run(script, capture_output=True, env=environment).returncode == 2
