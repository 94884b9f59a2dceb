"""Fine-tuning of DDAE's encoder: what is kept, how it learns, and the program."""

import json

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from PIL import Image

from dbae import runtime
from dbae.checkpoint import config_content, read_weights, save_weights, write_config
from dbae.config import TrainConfig, UserError
from dbae.finetuned import load_finetuned, save_finetuned
from dbae.io import image_generators
from dbae.methods import DDAE
from dbae.methods.ddae import EDMDDAE
from scripts import finetune
from scripts.classifiers import Training
from scripts.finetune import FinetuneOptions, build, recipe_of

SMALL = {"image_size": 8, "num_channels": 32, "channel_mult": (1, 2, 2), "num_res_blocks": 1, "attention_sizes": (4,)}
SMALL |= {"dropout": 0.1, "feature_block": "out_3", "augment": True}
CLASSES = ("dark", "light")


def ddae(cls=DDAE, **changes):
    torch.manual_seed(0)
    return cls(cls.Config(**{**SMALL, **changes})).eval()


def options(**changes):
    return FinetuneOptions(**{"dataset": "toyfaces", "model_path": "x", **changes})


def x(n=3):
    return tiny.images(n)[:, :, :8, :8]


@pytest.mark.parametrize(("cls", "resampling"), [(DDAE, False), (EDMDDAE, True)])
def test_the_network_up_to_the_block(cls, resampling):
    """The same features; a gradient for every weight; what comes later is gone."""
    model = ddae(cls, residual_resampling=resampling)
    features = model.features(x(), model.FEATURES[1], ["out_3"], generator=image_generators(0, range(3)))["out_3"]
    before = {name for name, _ in model.named_parameters()}
    network = build(model, options(), CLASSES).eval()
    found = network(x(), image_generators(0, range(3)))
    assert torch.equal(found, network.head(features)) and found.shape == (3, 2)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    dropped = before - {name.removeprefix("encoder.") for name, _ in network.named_parameters()}
    # two blocks of the lowest level, what leaves it, and the first of the next are kept
    assert {".".join(name.split(".")[1:3]) for name in dropped if "up." in name} == {f"up.{i}" for i in range(4, 8)}
    assert {name.split(".")[1] for name in dropped} == {"up", "norm", "final", "time_emb"}
    assert sum("time_emb.aug_emb" in name for name in dropped) == sum("unet.time_emb" in name for name in dropped) == 1


def test_noise_is_that_of_the_probes_time_or_none():
    noisy, clean = (build(ddae(), options(noise=noise), CLASSES).eval() for noise in (True, False))
    with torch.no_grad():
        assert torch.equal(clean(x()), clean(x())) and not torch.equal(noisy(x()), noisy(x()))
        _, b, _ = clean.encoder.process.abc(torch.tensor(11))
        seen = []
        clean.encoder.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
        clean(x())
        assert torch.allclose(seen[0][0], b * x()) and torch.allclose(seen[0][1], torch.tensor(0.011))


def test_learning_rates_fall_with_the_levels():
    network = build(ddae(), options(), CLASSES)
    groups = network.param_groups(1e-3, 0.75, 0.05)
    rate = {p: group["lr"] for group in groups for p in group["params"]}
    unet = network.encoder.unet
    expected = [
        [network.head], [unet.up[3]], [unet.up[0], unet.up[1], unet.up[2]], [unet.middle],
        [unet.down[4]], [unet.down[2], unet.down[3]], [unet.down[0], unet.down[1]], [unet.image_proj, unet.time_emb],
    ]  # fmt: skip
    for depth, modules in enumerate(expected):
        for parameter in (p for module in modules for p in module.parameters()):
            assert rate.pop(parameter) == pytest.approx(1e-3 * 0.75**depth)
    assert not rate
    assert all((p.ndim > 1) == (group["weight_decay"] == 0.05) for group in groups for p in group["params"])
    assert {group["lr"] for group in network.param_groups(1e-3, 1.0, 0.05)} == {1e-3}


def test_the_control_differs_in_the_start_alone():
    tuned, scratch = build(ddae(), options(seed=3), CLASSES), build(ddae(), options(seed=3, from_scratch=True), CLASSES)
    assert torch.equal(tuned.head.weight, scratch.head.weight)
    ours, theirs = tuned.encoder.state_dict(), scratch.encoder.state_dict()
    assert ours.keys() == theirs.keys() and not torch.equal(
        ours["unet.image_proj.weight"], theirs["unet.image_proj.weight"]
    )
    again = build(ddae(), options(seed=3, from_scratch=True), CLASSES)
    assert torch.equal(again.encoder.unet.image_proj.weight, scratch.encoder.unet.image_proj.weight)


def test_levels_of_a_whole_network():
    unet = ddae().unet
    levels = unet.levels()
    modules = [module for level in levels for module in level]
    assert [len(level) for level in levels] == [2, 2, 2, 1, 1, 3, 3, 2, 2]
    assert sum(p.numel() for m in modules for p in m.parameters()) == sum(p.numel() for p in unet.parameters())


def test_files(tmp_path):
    path = str(tmp_path / "classifier.safetensors")
    network = build(ddae(EDMDDAE), options(), CLASSES).eval()
    save_finetuned(path, network, "toyfaces")
    state = read_weights(path)[0][""]
    assert state.keys() == dict(network.named_parameters()).keys()
    loaded = load_finetuned(path)
    assert loaded.classes == CLASSES and loaded.time == network.time and type(loaded.encoder) is EDMDDAE
    given = (x(), image_generators(1, range(3)))
    with torch.no_grad():
        assert torch.equal(loaded(*given), network(x(), image_generators(1, range(3))))
    whole = str(tmp_path / "whole.safetensors")
    model = ddae()
    save_weights(whole, model, config_content(model, "toyfaces"))
    with pytest.raises(UserError, match="expected a fine-tuned classifier"):
        load_finetuned(whole)
    network.head = torch.nn.Linear(2, 2)
    save_finetuned(path, network, "toyfaces")
    with pytest.raises(UserError, match="does not fit"):
        load_finetuned(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A DDAE with random weights, and a folder of dark and light images."""
    folder = tmp_path_factory.mktemp("run")
    model, rng = ddae(), np.random.default_rng(0)
    write_config(str(folder), config_content(model, "toyfaces", train=TrainConfig()))
    save_weights(str(folder / "ema_0.9999_000020.pt"), model)
    for i in range(60):
        pixels = rng.integers(0, 90, (8, 8, 3)) + 160 * (i % 2)
        path = folder / "photos" / CLASSES[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def words(run, out, *more):
    return [
        f"--model_path={run}/ema_0.9999_000020.pt", "--config=DDPM_small", f"--dataset=folder:{run}/photos", "--quiet",
        "--device=cpu", "--epochs=4", "--warmup=1", "--batch_size=20", f"--out={out}", *more,
    ]  # fmt: skip


def test_program(run, tmp_path, capsys, monkeypatch):
    finetune.main(words(run, tmp_path))
    folder = tmp_path / "sample_20" / "finetune"
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [
        "classifier.safetensors", "results.json",
    ]  # fmt: skip
    report = json.loads((folder / "results.json").read_text())
    assert report["images"] == {"train": 48, "valid": 6, "test": 6} and report["steps"] == 12
    assert report["test accuracy"] == report["history"][-1]["valid"] == report["valid accuracy"] == 1.0
    assert report["made_from"]["protocol"] == "ours" and report["made_from"]["layer_decay"] == 0.75
    assert "test accuracy 1.0000" in capsys.readouterr().out
    network = load_finetuned(str(folder / "classifier.safetensors"))
    dark = torch.full((1, 3, 8, 8), -0.7)
    assert network.classes[network(dark).argmax()] == "dark"

    # Interrupted in the third epoch and gone on with: the same bits
    first = network.state_dict()
    stop, calls, inputs = runtime.Stop(), [], finetune.inputs

    def interrupting(*given):
        calls.append(1)
        stop.signum = 15 * (len(calls) == 8)
        return inputs(*given)

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "Stop", lambda: stop)
        patch.setattr(finetune, "inputs", interrupting)
        with pytest.raises(SystemExit, match="143"):
            finetune.main(words(run, tmp_path / "again"))
    again = tmp_path / "again" / "sample_20" / "finetune"
    assert (again / "state.pt").exists() and not (again / "results.json").exists()
    with pytest.raises(UserError, match=r"another lr \(0.001, now 0.01\), made by: python3 .*; give the same to go on"):
        finetune.main(words(run, tmp_path / "again", "--lr=0.01"))
    finetune.main(words(run, tmp_path / "again"))
    second = load_finetuned(str(again / "classifier.safetensors")).state_dict()
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert json.loads((again / "results.json").read_text())["history"] == report["history"]

    finetune.main(words(run, tmp_path))
    assert "complete already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another .*processes \(1, now 2\)"):  # those that are to be, in the launcher
        finetune.main(words(run, tmp_path, "--check=2"))
    finetune.main(words(run, tmp_path / "new", "--check=3", "--batch_size=4"))  # 4 on each of the 3
    with pytest.raises(UserError, match=r"results.json holds a classifier with another lr .*, made by: python3 "):
        finetune.main(words(run, tmp_path, "--lr=0.01"))


def test_the_average_is_evaluated(tmp_path):
    network = build(ddae(), options(), CLASSES)
    training = Training(
        {"classifier": network}, recipe_of(options(), network.encoder), torch.device("cpu"), str(tmp_path), {}
    )
    assert training.classifiers["classifier"] is training.ema.module[0] and training.ema.rate == 0.999
    assert training.ema.rule(0.999, 1) < 0.2 and training.ema.rule(0.999, 35_000) == 0.999
    assert training.recipe.factor(0) == 0 and training.recipe.factor(5) == 1 and training.recipe.factor(100) < 1e-9
    assert training.recipe.label_smoothing == 0.1 and not training.scaler.is_enabled()


def test_half_precision_is_trained_with_a_loss_scale():
    model = ddae()
    for dtype, scaled in ((torch.float16, True), (torch.bfloat16, False), (None, False)):
        model.use_amp(dtype)
        assert recipe_of(options(), model).scaled == scaled


def test_the_control_with_all_training_images(run, tmp_path):
    finetune.main(words(run, tmp_path, "--ema_rate=0", "--from_scratch", "--held_out=false", "--epochs=2"))
    report = json.loads((tmp_path / "sample_20" / "finetune_scratch" / "results.json").read_text())
    assert report["images"] == {"train": 54, "test": 6} and report["made_from"]["layer_decay"] == 1
    assert report["history"][-1] == {"epoch": 2} and "valid accuracy" not in report


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--warmup=4"], "warmup: expected fewer than the 4 epochs, got 4"),
        (["--layer_decay=0"], "layer_decay: expected a number above 0 and up to 1"),
        (["--label_smoothing=1"], "label_smoothing: expected a number from 0 and below 1"),
        (["--limit=0"], "limit: expected a number above 0"),
        (["--feature_block=out_9"], "feature_block: expected one of out_1 to out_6"),
        (["--dataset=sprites"], "sprites"),
        ([f"--model_path={next((ROOT / 'ckpt/toyfaces/det').glob('ema_*.pt'))}", "--config="], "expected a DDAE"),
    ],
)
def test_wrong_options(run, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        finetune.main(words(run, tmp_path / "none", *more))
    assert not (tmp_path / "none").exists()
