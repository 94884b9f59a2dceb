"""The probe of DiT from images to accuracies, with drawn networks small enough for a test."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from lmdb_fixtures import image_folder
from PIL import Image
from test_commands import assert_one_line_error, bash

from datasets import base, build
from dbae import runtime
from dbae.config import UserError
from dbae.diffusion import Diffusion, LinearBeta
from dbae.nn.dit import DiT
from dbae.nn.vae import VAEEncoder
from eval.features import FeatureCache
from scripts import dit_latents, dit_linear
from scripts.dit import Codes, load_dit, load_vae, read_folder
from scripts.dit_encoding import SCALE, Enlarged, posterior_encoder

CPU = torch.device("cpu")
SHAPE = {"size": 8, "patch": 2, "width": 32, "depth": 3, "heads": 4, "classes": 5}  # of the small DiT


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weight files of a small autoencoder, decoder included, and a small DiT; images in folders of two classes."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    vae, dit = VAEEncoder(widths=(32, 32)), DiT(**SHAPE)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(vae.state_dict() | {"decoder.conv_in.weight": torch.zeros(3)}, folder / "vae.bin")
    torch.save(dit.state_dict(), folder / "dit.pt")
    names = [f"{name}/{i:02d}.png" for name in ("a", "b") for i in range(20)]
    image_folder(folder / "photos", names, 20, 20)
    return folder


def latents(files, out, **changes):
    settings = {"dataset": f"folder:{files / 'photos'}", "vae_path": files / "vae.bin", "out": out, "native_size": 16}
    settings |= {"size": 16, "copies": 2, "device": "cpu", **changes}
    return [f"--{name}={value}" for name, value in settings.items()]


def linear(files, folder, **changes):
    settings = {"dataset": "folder:photos", "dit_path": files / "dit.pt", "codes": folder, "heads": 4, "device": "cpu"}
    settings |= {"layers": "layer-1", "epochs": 2, "batch_size": 8, "out": folder, **changes}
    words = [f"--{name}={value}" for name, value in settings.items() if name != "layers"]
    return [*words, "--layers", *settings["layers"].split()]


@pytest.fixture(scope="module")
def codes(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("codes")
    dit_latents.main(latents(files, out))
    return out


def arrays(out):
    return {path.name: np.load(path) for path in sorted((out / "photos").glob("*.npy"))}


def test_codes_have_the_official_files(codes):
    found = arrays(codes)
    assert set(found) == {
        f"{n}.npy" for n in ("train_code_0", "train_code_1", "train_label", "test_code_0", "test_label")
    }
    assert {name: (str(a.dtype), a.shape) for name, a in found.items() if name.startswith("test")} == {
        "test_code_0.npy": ("float32", (4, 4, 8, 8)),
        "test_label.npy": ("int64", (4,)),
    }
    assert found["train_code_1.npy"].shape == (32, 4, 8, 8) and found["train_label.npy"].tolist() == [0] * 16 + [1] * 16
    assert not np.array_equal(found["train_code_0.npy"], found["train_code_1.npy"])
    about = json.loads((codes / "photos" / "latents.json").read_text())
    assert about["classes"] == ["a", "b"] and about["made_from"]["size"] == 16 and about["made_from"]["margin"] == 2
    assert {path.name for path in (codes / "photos").iterdir()} == {*found, "latents.json", ".lock"}


def test_codes_do_not_depend_on_batches_or_interruptions(files, codes, tmp_path, monkeypatch, program):
    """A run that dies in the second copy goes on there, and one that had fewer copies gets more."""
    add, calls = FeatureCache.add, []

    def dying(self, *args):
        calls.append(self.path)
        if len(calls) == 14:  # two batches of test, nine of each copy
            raise KeyboardInterrupt
        add(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureCache, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            dit_latents.main(latents(files, tmp_path, batch_size=4))
    assert not (tmp_path / "photos" / "train_code_1.npy").exists()
    status, shown, _ = program(dit_latents, *latents(files, tmp_path, batch_size=4))
    assert status == 0 and "codes of 32 of train, 4 of test, 2 copies" in shown
    for name, array in arrays(tmp_path).items():
        assert np.allclose(array, arrays(codes)[name], atol=1e-5), name
    program(dit_latents, *latents(files, tmp_path, copies=3))
    assert len(arrays(tmp_path)) == 6


def test_codes_of_other_settings_are_not_mixed(files, codes, tmp_path, program):
    assert_one_line_error(
        program(dit_latents, *latents(files, codes, seed=1)), "another seed (0, now 1), made by:", "--overwrite"
    )
    words = latents(files, tmp_path, copies=1, limit=4)
    program(dit_latents, *words)
    before = arrays(tmp_path)
    assert before["train_label.npy"].tolist() == [0, 0, 1, 1]  # spread over the classes
    (tmp_path / "photos" / "train_code_7.npy").write_bytes(b"")
    program(dit_latents, *words, "--seed=1", "--overwrite")
    after = arrays(tmp_path)
    assert after.keys() == before.keys() and not np.array_equal(after["test_code_0.npy"], before["test_code_0.npy"])


def test_copies_are_cropped_and_mirrored_before_they_are_enlarged(files):
    data = build(f"folder:{files / 'photos'}", "train", 16)
    image = data[3][0]
    windows = set()
    for mirrored in (image, image.flip(2)):
        padded = torch.nn.functional.pad(mirrored, (2,) * 4).permute(1, 2, 0).numpy()
        for top in range(5):
            for left in range(5):
                window = Image.fromarray(padded[top : top + 16, left : left + 16])
                windows.add(np.asarray(window.resize((24, 24), Image.Resampling.BILINEAR)).tobytes())
    state = torch.get_rng_state()
    drawn = [Enlarged(data, 24, 0, copy)[3][0].permute(1, 2, 0).contiguous().numpy().tobytes() for copy in range(30)]
    assert set(drawn) <= windows and len(set(drawn)) > 15
    assert torch.equal(torch.get_rng_state(), state)
    plain = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((24, 24), Image.Resampling.BILINEAR)
    assert np.array_equal(Enlarged(data, 24, 0, None)[3][0].permute(1, 2, 0), plain)


def test_codes_are_scaled_draws_from_the_posterior(files):
    vae, images = load_vae(str(files / "vae.bin")), torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        mean, log_variance = vae(images / 127.5 - 1)
        encode = posterior_encoder(vae, CPU, None, 0, "train", 0)
        draws = encode(images.expand(300, -1, -1, -1), range(300))["z"]
        assert torch.equal(encode(images, [7])["z"], encode(images, [7])["z"])
    normal = (draws / SCALE - mean) / (log_variance / 2).exp()
    assert normal.mean().abs() < 0.05 and (normal.std() - 1).abs() < 0.05


def test_networks_are_as_their_files_tell(files, tmp_path):
    net = load_dit(str(files / "dit.pt"), heads=4)
    assert (len(net.blocks), net.patch, net.no_class) == (3, 2, 5)
    torch.save(load_vae(str(files / "vae.bin")).half().state_dict(), tmp_path / "half.bin")
    assert load_vae(str(tmp_path / "half.bin")).quant_conv.weight.dtype == torch.float32


def planted(folder, n=60):
    """Codes in the official code's files alone, whose mean tells the class."""
    (folder / "cifar10").mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        labels = rng.integers(2, size=n)
        np.save(folder / "cifar10" / f"{split}_label.npy", labels)
        for copy in range(2 if split == "train" else 1):
            code = 2 * labels[:, None, None, None] - 1 + 0.5 * rng.standard_normal((n, 4, 8, 8))
            np.save(folder / "cifar10" / f"{split}_code_{copy}.npy", code.astype(np.float32))


def test_probe(files, tmp_path, program):
    planted(tmp_path)
    words = linear(files, tmp_path, dataset="cifar10", layers="layer-1 layer-0", epochs=8, lr=0.01)
    status, shown, error = program(dit_linear, *words)
    assert status == 0, error
    folder = tmp_path / "sample_dit" / "linear" / "cifar10_t121"
    assert {path.name for path in folder.iterdir()} == {"results.json", "linear.pt", ".lock"}
    report = json.loads((folder / "results.json").read_text())
    assert list(report["accuracy"]) == ["layer-0", "layer-1"] and min(report["accuracy"].values()) > 0.95
    assert report["images"] == {"train": 60, "test": 60} and report["made_from"]["copies"] == 2
    assert f"| layer-1 | {100 * report['accuracy']['layer-1']:.2f} |" in shown
    state = torch.load(folder / "linear.pt", weights_only=True)
    assert {name: tuple(value.shape) for name, value in state.items() if "layer-0" in name} == {
        "layer-0.weight": (2, 32),
        "layer-0.bias": (2,),
    }
    assert "nothing computed" in program(dit_linear, *words)[1]
    assert_one_line_error(program(dit_linear, *words, "--seed=1"), "another seed (0, now 1), made by: python3 ")


def test_an_interrupted_probe_ends_with_the_same_bits(files, codes, tmp_path, monkeypatch, program):
    whole = linear(files, codes, out=tmp_path / "whole")
    assert program(dit_linear, *whole)[0] == 0
    stop, rows, calls = runtime.Stop(), Codes.rows, []

    def interrupting(self, *args):
        calls.append(1)
        stop.signum = 15 * (len(calls) == 3)
        return rows(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "Stop", lambda: stop)
        patch.setattr(Codes, "rows", interrupting)
        part = linear(files, codes, out=tmp_path / "part")
        assert program(dit_linear, *part)[0] == 128 + 15
    status, shown, error = program(dit_linear, *part)
    assert status == 0 and "going on after step 3" in shown, error
    states = [torch.load(tmp_path / name / "sample_dit/linear/photos_t121/linear.pt") for name in ("whole", "part")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_training_draws_any_copy_and_fresh_noise_and_evaluation_the_first(files):
    folder = Codes([np.full((6, 4, 8, 8), k, np.float32) for k in range(3)])
    torch.manual_seed(0)
    assert folder.rows(list(range(6)) * 20, CPU, True).unique().tolist() == [0, 1, 2]
    x = folder.rows([0, 1], CPU, False)
    assert not x.any()
    net, seen = load_dit(str(files / "dit.pt"), heads=4), []
    net.register_forward_pre_hook(lambda _, args: seen.append(args))
    inputs = dit_linear.features(net, ["layer-0"], 121, None)
    inputs(torch.ones(1, 4, 8, 8).expand(300, -1, -1, -1), None)
    x_t, t = seen[0]
    _, b, c = Diffusion(LinearBeta(1000)).abc(torch.tensor([121]).double())
    assert (t == 121).all() and (x_t.mean() - b).abs() < 0.02 and (x_t.std() - c).abs() < 0.02
    assert not torch.equal(inputs(x, None)["layer-0"][0], inputs(x, None)["layer-0"][0])


def test_layers_that_nobody_asks_for_are_not_kept(files, codes, tmp_path, monkeypatch, program):
    kept = []
    monkeypatch.setattr(dit_linear, "features", lambda net, *args: kept.append(len(net.blocks)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program(dit_linear, *linear(files, codes, out=tmp_path, layers="layer-1"))
    assert kept == [2]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"vae_path": "missing.bin"}, ["vae_path: no such file: missing.bin"]),
        ({"vae_path": "dit.pt"}, ["is not the autoencoder of Stable Diffusion", "encoder.conv_in.weight"]),
        ({"size": 17}, ["size: expected a multiple of 2, got 17"]),
        ({"copies": 0}, ["copies"]),
        ({"dataset": "sprites"}, ["labels"]),
        ({"dataset": "nothing"}, ["nothing"]),
        ({"precision": "fp16"}, ["fp16 needs a GPU"]),
    ],
)
def test_wrong_input_of_latents(files, tmp_path, program, changes, parts):
    if (files / str(changes.get("vae_path"))).exists():
        changes = {"vae_path": files / changes["vae_path"]}
    assert_one_line_error(program(dit_latents, *latents(files, tmp_path / "out", **changes)), *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"dit_path": "missing.pt"}, ["dit_path: no such file: missing.pt"]),
        ({"dit_path": "vae.bin"}, ["is not a DiT", "x_embedder.proj.weight"]),
        ({"codes": "missing"}, ["no such file: missing/photos/train_code_0.npy", "dit_latents.sh"]),
        ({"copies": 3}, ["no such file", "train_code_2.npy"]),
        ({"heads": 0}, ["heads", "a width of 32 does not tell"]),
        ({"heads": 5}, ["heads", "divides the width of 32"]),
        ({"layers": "layer-3"}, ["layers: expected layer-0 to layer-2, got 'layer-3'"]),
        ({"time": 1000}, ["time: expected 0 to 999, got 1000"]),
    ],
)
def test_wrong_input_of_the_probe(files, codes, program, changes, parts):
    if (files / str(changes.get("dit_path"))).exists():
        changes = {"dit_path": files / changes["dit_path"]}
    assert_one_line_error(program(dit_linear, *linear(files, codes, **changes)), *parts)


def test_wrong_codes(files, tmp_path, program):
    planted(tmp_path, 12)
    label = tmp_path / "cifar10" / "test_label.npy"
    words = linear(files, tmp_path, dataset="cifar10")
    small = DiT(**{**SHAPE, "size": 4})
    torch.save(small.state_dict(), tmp_path / "small.pt")
    wrong = program(dit_linear, *words, f"--dit_path={tmp_path / 'small.pt'}")
    assert_one_line_error(wrong, "expected codes of 4x4x4 for this DiT, got 4x8x8", "--size")
    for content, message in (
        (np.zeros(12, np.float32), "expected int64"),
        (np.zeros(5, np.int64), "expected [5, 4, 8, 8]"),
        (np.array([object()] * 12), "damaged, or not an array"),
        (np.full(12, -1), "labels from 0"),
    ):
        np.save(label, content)
        assert_one_line_error(program(dit_linear, *words), message)
    label.unlink()
    assert_one_line_error(program(dit_linear, *words), "no such file", "test_label.npy")


def test_several_sets_of_weights_and_odd_shapes(files, tmp_path):
    state = torch.load(files / "dit.pt")
    torch.save({"model": state, "ema": state}, tmp_path / "both.pt")
    with pytest.raises(UserError, match="several sets of weights"):
        load_dit(str(tmp_path / "both.pt"), 4)
    torch.save({**state, "pos_embed": torch.zeros(1, 15, 32)}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="square grid"):
        load_dit(str(tmp_path / "odd.pt"), 4)
    torch.save({name: value for name, value in state.items() if "fc2" not in name}, tmp_path / "part.pt")
    with pytest.raises(UserError, match="lacks 6 tensors"):
        load_dit(str(tmp_path / "part.pt"), 4)


def test_launchers(tmp_path):
    (tmp_path / "vae.bin").touch()
    status, shown, _ = bash(
        ROOT / "ddae/dit_latents.sh", "tiny", "vae.bin", "--size", "64", cwd=tmp_path, PYTHON="echo"
    )
    assert status == 0
    assert shown.split() == [
        *("-m", "scripts.dit_latents", "--dataset=tiny", f"--vae_path={tmp_path / 'vae.bin'}", "--data_root=data"),
        *("--size", "64"),
    ]
    _, shown, _ = bash("ddae/dit_linear.sh", "cifar10", "dit.pt", "--epochs=3", PYTHON="echo")
    assert shown.split() == ["-m", "scripts.dit_linear", "--dataset=cifar10", "--dit_path=dit.pt", "--epochs=3"]
    assert_one_line_error(bash("ddae/dit_linear.sh", "cifar10"), "2 arguments: DATASET DIT_PATH; got 1")


def test_dry_runs_show_the_protocol(program):
    _, shown, _ = program(dit_latents, "--dataset=tiny", "--vae_path=x", "--dry_run")
    shown = json.loads(shown)
    assert (shown["native_size"], shown["size"], shown["copies"]) == (64, 256, 10)
    assert shown["output"] == "latent_codes/tiny"
    for dataset, t in (("tiny", 81), ("cifar10", 121)):
        _, shown, _ = program(dit_linear, f"--dataset={dataset}", "--dit_path=DiT-XL-2-256x256.pt", "--dry_run")
        shown = json.loads(shown)
        assert (shown["time"], shown["layers"], shown["epochs"]) == (t, ["layer-13"], 30)
        assert (shown["batch_size"], shown["lr"]) == (512, 4e-3)
        assert shown["output"] == f"sample_DiT-XL-2-256x256/linear/{dataset}_t{t}/results.json"


def test_other_labels_and_names_are_other_codes(codes, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "CHEAP", 1000)  # as of many images: the contents of the first files alone count
    shutil.copytree(codes / "photos", tmp_path / "photos")
    before = read_folder(str(tmp_path / "photos")).digest
    labels = tmp_path / "photos" / "train_label.npy"
    kept, at = np.load(labels), labels.stat()
    np.save(labels, kept[::-1].copy())
    os.utime(labels, ns=(at.st_atime_ns, at.st_mtime_ns))  # so that contents tell them apart
    changed = read_folder(str(tmp_path / "photos")).digest
    np.save(labels, kept)
    os.utime(labels, ns=(at.st_atime_ns, at.st_mtime_ns))
    codes_of_test = tmp_path / "photos" / "test_code_0.npy"  # far behind what is read whole
    before_that = read_folder(str(tmp_path / "photos")).digest
    np.save(codes_of_test, -np.load(codes_of_test))
    with_other_codes = read_folder(str(tmp_path / "photos")).digest
    assert with_other_codes != before_that == before
    report = tmp_path / "photos" / "latents.json"
    report.write_text(report.read_text().replace('"a"', '"c"'))
    assert len({before, changed, with_other_codes, read_folder(str(tmp_path / "photos")).digest}) == 4
