"""Probes and encoding from the command line, on a bare released-format checkpoint and generated data."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from lmdb_fixtures import image_folder, image_lmdb
from parity import released_state
from test_commands import assert_one_line_error, bash
from test_labelled import lfw  # noqa: F401 - a fixture

from datasets import toyfaces
from dbae.config import UserError
from dbae.io import fingerprint
from dbae.methods.ddae import DDAE, DDPMConfig
from eval.arrays import read_arrays
from scripts import convert, edit, encode, infer_class, infer_reg, probe_table, reconstruct


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    path = tmp_path_factory.mktemp("ckpt") / "ema_0.9999_980000.pt"
    torch.save(released_state(64, "sto"), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    image_folder(folder, [f"{i:03d}.png" for i in range(40)], 40, 40)
    rows = "".join(f"{i:03d}.png,{i % 2},{i % 3 == 0:d}\n" for i in range(40))
    (folder / "labels.csv").write_text("file,left,third\n" + rows)
    rows = "".join(f"{i:03d}.png,{('red', 'green', 'blue')[i % 3]}\n" for i in range(40))
    (folder / "colours.csv").write_text("file,colour\n" + rows)
    return folder


def words_for(path, data="", *more):
    """Options of a probe of the small model (or a released one), two epochs of it."""
    return [f"--model_path={path}", f"--probe_data={data}", "--device=cpu", "--epochs=2", *map(str, more)]


def small(checkpoint, photos, *more):
    return ["--dataset=toyfaces", *words_for(checkpoint, f"folder:{photos}", *more)]


def results(path, name, file="results.json"):
    return json.loads(
        (path.parent / f"sample_{int(path.stem.split('_')[2])}/downstream_inference/{name}/{file}").read_text()
    )


def test_classification_on_a_released_file(released, tmp_path, capsys):
    image_lmdb(tmp_path / "celeba", "None-%07d", 40, 89, 109)
    lines = ["40", " ".join(toyfaces.ATTRIBUTES)]  # each attribute is positive in every split
    lines += [f"{i + 1:06d}.jpg {' '.join('1' if (i + k) % 3 == 0 else '-1' for k in range(40))}" for i in range(40)]
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    words = ["--dataset=celeba", "--schedule=vp", *words_for(released), f"--data_root={tmp_path}"]
    infer_class.main(words)
    assert "encode train" in capsys.readouterr().err
    folder = released.parent / "sample_980000" / "downstream_inference" / "multitask_ema"
    assert {path.name for path in folder.iterdir()} == {
        "best.pt", "best.json", "test.txt", "results.json", "attributes.png",
    }  # fmt: skip
    layer = torch.load(folder / "best.pt", weights_only=True)
    assert {name: tuple(value.shape) for name, value in layer.items()} == {"weight": (40, 512), "bias": (40,)}
    torch.nn.Linear(512, 40).load_state_dict(layer)
    report = results(released, "multitask_ema")
    assert report["images"] == {"train": 32, "valid": 4, "test": 4} and len(report["epochs"]) == 2
    assert report["attributes"]["Male"].keys() == {"ap", "auroc", "positives"}
    assert all(report["standard_errors"][name] > 0 for name in ("ap", "auroc"))
    beside = results(released, "multitask_ema", "best.json")
    assert beside["attributes"][20] == "Male" and len(beside["codes"]["std"]) == 512
    assert f"ap: {report['test']['ap']}" in (folder / "test.txt").read_text()
    infer_class.main(words)
    assert "encode" not in capsys.readouterr().err  # the second probe reads its codes
    assert results(released, "multitask_ema") == report


def test_regression_on_a_released_file(released, lfw):  # noqa: F811
    infer_reg.main(["--dataset=celeba", "--schedule=vp", *words_for(released), f"--data_root={lfw.parent}"])
    report = results(released, "regression_ema")
    assert len(report["attributes"]) == 73 and {"last", "best", "constant"} <= report.keys()
    assert report["best"]["selected_on"] == "test" and len(report["epochs"]) == 2
    layer = released.parent / "sample_980000/downstream_inference/regression_ema/best.pt"
    assert torch.load(layer, weights_only=True)["weight"].shape == (73, 512)


@pytest.mark.parametrize(
    ("words", "tag"),
    [
        ("--solver=exact", "_model_exact"),
        ("--solver=knn --label_fraction=0.9 --repeats=2", "_model_knn"),
        ("--features=pixels", "_pixels_adam"),
        ("--features=thumbnail", "_thumbnail_adam"),
        ("--features=pca --solver=exact", "_pca_exact"),
        ("--features=input_blocks.1 --time=0.2", "_input_blocks.1@0.2_adam"),
    ],
)
def test_own_labels_solvers_and_features(checkpoint, photos, words, tag):
    infer_class.main(small(checkpoint, photos, *words.split()))
    report = results(checkpoint, f"multitask_ema_{photos.name}", f"results{tag}.json")
    assert report["attributes"].keys() == {"left", "third"}
    assert ("label_fractions" in report) == ("label_fraction" in words)
    folder = checkpoint.parent / f"sample_20/downstream_inference/multitask_ema_{photos.name}"
    assert (folder / f"attributes{tag}.png").exists() and (folder / f"best{tag}.pt").exists() == ("knn" not in words)


def test_a_class_of_own_images(checkpoint, photos):
    more = ["--kind=class", f"--labels={photos / 'colours.csv'}", "--label_fraction=0.9"]
    infer_class.main(small(checkpoint, photos, *more))
    report = results(checkpoint, f"class_ema_{photos.name}")
    assert report["attributes"].keys() == {"red", "green", "blue"} and 0 <= report["test"]["accuracy"] <= 1
    assert report["test"]["top5"] == 1 and len(report["label_fractions"][0]["scores"]) == 5


def test_two_processes_share_the_encoding(checkpoint, photos):
    infer_class.main(small(checkpoint, photos))
    alone = results(checkpoint, f"multitask_ema_{photos.name}")
    for path in (checkpoint.parent / "sample_20" / "latents").glob("*.npz"):
        path.unlink()
    more = [f"--probe_data=folder:{photos}", "--device=cpu", "--epochs=2"]
    status, _, error = bash("infer_class_dbae.sh", "toyfaces", "vp", checkpoint, "true", *more, NPROC="2")
    assert status == 0, error
    assert results(checkpoint, f"multitask_ema_{photos.name}")["test"] == pytest.approx(alone["test"], abs=1e-6)


def test_table_and_baseline_picture(checkpoint, photos, tmp_path):
    infer_reg.main(small(checkpoint, photos))
    folder = checkpoint.parent / "sample_20" / "downstream_inference" / f"regression_ema_{photos.name}"
    infer_reg.main(small(checkpoint, photos, "--features=pixels", f"--baseline={folder / 'results.json'}"))
    assert (folder / "attributes_pixels_adam.png").exists()
    for name in ("table.md", "table.csv"):
        probe_table.main([f"--runs={checkpoint.parent}", f"--out={tmp_path / name}"])
        text = (tmp_path / name).read_text()
        assert "DBAE-d" in text and "0.650" in text and "toyfaces" in text
    report = json.loads((folder / "results.json").read_text())
    rows = len(list(probe_table.rows_of(str(checkpoint.parent))))
    for name, changes in (("celeba", {"data": "celeba"}), ("time", {"time": 400.0})):  # each has a row of its own
        other = folder / f"results_{name}.json"
        other.write_text(json.dumps(report | changes))
        rows += 1
        assert len(list(probe_table.rows_of(str(checkpoint.parent)))) == rows
    assert any("time 400" in row[0] for row in probe_table.rows_of(str(checkpoint.parent)))
    baseline = f"--baseline={folder / 'results_celeba.json'}"
    with pytest.raises(UserError, match=r"a probe of folder:.* scored by r, .*_celeba.json is one of celeba by r"):
        infer_reg.main(small(checkpoint, photos, "--features=thumbnail", baseline))
    for name in ("celeba", "time"):
        (folder / f"results_{name}.json").unlink()
    words = [f"--runs={checkpoint.parent}", f"--out={tmp_path / 'table.md'}"]
    probe_table.main(words)  # the same again
    (tmp_path / "table.md").write_text("mine")
    with pytest.raises(UserError, match=r"table\.md is there already"):
        probe_table.main(words)
    assert (tmp_path / "table.md").read_text() == "mine"
    probe_table.main([*words, "--overwrite"])


@pytest.mark.parametrize("name", ["export [1] $x$.safetensors", "weights.bin"])
def test_every_program_reads_weights_of_any_name(checkpoint, photos, tmp_path, name):
    path, out = tmp_path / name, tmp_path / "out"
    if name.endswith(".safetensors"):
        convert.main([f"--model_path={checkpoint}", f"--out={path}"])
    else:
        path.write_bytes(checkpoint.read_bytes())
        (tmp_path / "config.json").write_bytes((checkpoint.parent / "config.json").read_bytes())
    infer_class.main(small(path, photos))
    folder = tmp_path / f"sample_{path.stem}"
    assert (folder / f"downstream_inference/multitask_ema_{photos.name}/results.json").exists()
    words = [f"--dataset=folder:{photos}", f"--model_path={path}", "--device=cpu", "--limit=2"]
    reconstruct.main([*words, "--steps=1", "--split=test"])
    assert (folder / "euler_7.0_1_w=1.0_churn=0.0/metrics.json").exists()
    encode.main([*words, f"--out={tmp_path / 'codes.npz'}"])
    for action in (["reconstruct"], ["manipulate", "--attributes=left"]):  # along the probe that was made above
        edit.main([*action, f"--model={path}", f"--images={photos / '000.png'}", f"--out={out}", "--steps=1"])
    assert (out / "000_left_median_moved_xT.png").exists()


def test_a_label_with_one_class_is_named_wherever_its_mean_stands(checkpoint, photos, tmp_path, capsys):
    (tmp_path / "one.csv").write_text("file,all $,mix\n" + "".join(f"{i:03d}.png,1,{i // 2 % 2}\n" for i in range(40)))
    for solver, score in (("adam", "ap"), ("knn", "accuracy")):
        more = [f"--labels={tmp_path / 'one.csv'}", f"--solver={solver}", "--overwrite=true"]
        infer_class.main(small(checkpoint, photos, *more))
        assert " over 1 of 2 labels (" in capsys.readouterr().out
        tag = "" if solver == "adam" else "_model_knn"
        report = results(checkpoint, f"multitask_ema_{photos.name}", f"results{tag}.json")
        assert report["test"][score] == report["attributes"]["mix"][score]
        assert report["single_class"]["test"] == ["all $"] and report["attributes"]["all $"][score] is None
        folder = checkpoint.parent / f"sample_20/downstream_inference/multitask_ema_{photos.name}"
        assert (
            "mean: over 1 of 2 labels\nleft out, with one value on test: all $"
            in (folder / f"test{tag}.txt").read_text()
        )
    assert any(" over 1 of 2 labels" in row[2] for row in probe_table.rows_of(str(checkpoint.parent)))


def test_a_launcher_without_its_arguments():
    assert_one_line_error(bash("infer_class_dbae.sh", "ffhq", "vp"), "4 arguments", "got 2")


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        (infer_class, "--label_fraction=2", r"label_fraction: .*\(0, 1\]"),
        (infer_class, "--label_fraction=0.5 --repeats=1", "repeats: expected 2 or more"),
        (infer_class, "--probe_lr=1e38", "probe_lr: expected a number up to 1e6"),
        (infer_class, "--probe_data=lfw", "lfw"),
        (infer_class, "--probe_data=sprites", "sprites has no labels"),
        (infer_class, "--baseline=absent.json", "baseline: expected the results.json of a probe"),
        (encode, "--out=codes.txt", "out: expected a name that ends in .npz or .safetensors"),
        (infer_class, "--features=input_blocks.1", "time: expected one with --features BLOCK"),
        (infer_class, "--features=absent --time=0.5", "blocks: expected some of input_blocks.0, .* got absent"),
        (infer_reg, "--solver=knn", "solver: expected adam or exact"),
        (infer_reg, "--probe_data=lfw --data_root=absent", "lfw_attributes.txt"),
    ],
)
def test_wrong_probe_arguments(checkpoint, photos, program, words, message):
    given = ["--dataset=toyfaces", f"--model_path={checkpoint}"] if program is encode else small(checkpoint, photos)
    with pytest.raises(UserError, match=message):
        program.main([*given, *words.split()])


def test_wrong_baseline_ends_before_any_work(checkpoint, photos, tmp_path):
    for content, message in {"[]": "results.json of a probe", '{"last": {"r": 0.5}}': "scored by ap, .* by r"}.items():
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(UserError, match=message):
            infer_class.main(small(checkpoint, photos, f"--baseline={tmp_path}/results.json"))


def test_dry_run(checkpoint, capsys):
    infer_class.main(["--dataset=toyfaces", f"--model_path={checkpoint}", "--dry_run"])
    assert json.loads(capsys.readouterr().out)["probe_data"] == "toyfaces"
    infer_reg.main(["--dataset=ffhq", "--model_path=absent/ema_0.9999_7.pt", "--dry_run"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["output"] == "absent/sample_7/downstream_inference/regression_ema"


def test_encode(checkpoint, photos, tmp_path):
    out = tmp_path / "codes.npz"
    words = [f"--dataset=folder:{photos}", f"--model_path={checkpoint}", f"--out={out}", "--batch_size=7", "--limit=33"]
    words += ["--device=cpu", "--split=all"]
    encode.main(words)
    arrays, about = read_arrays(str(out))
    assert {name: value.shape for name, value in arrays.items()} == {
        "mu": (33, 8), "log_sigma": (33, 8), "z": (33, 8), "index": (33,), "labels": (33, 2),
    }  # fmt: skip
    assert json.loads(about["names"])[5] == "005.png" and json.loads(about["label_names"]) == ["left", "third"]
    assert np.array_equal(arrays["index"], np.arange(33))
    before = out.stat().st_mtime_ns
    encode.main(words)
    assert out.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"holds codes with another seed \(0, now 3\)"):
        encode.main([*words, "--seed=3"])
    with pytest.raises(UserError, match=r"holds codes with another precision \(none, now bf16\)"):
        encode.main([*words, "--precision=bf16"])
    encode.main([*words, "--precision=bf16", "--overwrite"])
    half = read_arrays(str(out))[0]["mu"]
    assert 0 < np.abs(half - arrays["mu"]).max() < 0.1 * arrays["mu"].std()


@pytest.fixture
def changing(photos, checkpoint, tmp_path):
    """A copy of the images and of the model, to be changed: words of its probe, and the folder of images."""
    shutil.copytree(photos, tmp_path / "a" / "images")
    shutil.copytree(photos, tmp_path / "b" / "images")
    weights = tmp_path / "run" / checkpoint.name
    weights.parent.mkdir()
    for name in (checkpoint.name, "config.json"):
        shutil.copy(checkpoint.parent / name, weights.parent)
    return small(weights, tmp_path / "a" / "images"), tmp_path / "a" / "images"


def test_probes_are_identified_by_content(changing, tmp_path, capsys):
    """Of other images, labels, settings or weights, results are refused and codes computed anew."""
    words, images = changing
    folder = tmp_path / "run" / "sample_20" / "downstream_inference" / "multitask_ema_images"
    codes, weights = tmp_path / "run" / "sample_20" / "latents", tmp_path / "run" / "ema_0.9999_000020.pt"
    infer_class.main(words)
    first = (folder / "results.json").read_text()
    assert "nothing computed" not in capsys.readouterr().out and len(list(codes.iterdir())) == 4
    assert json.loads((folder / "best.json").read_text())["weights"] == fingerprint(str(weights))
    infer_class.main(words)
    assert capsys.readouterr().out.count("is complete already: nothing computed") == 4
    assert (folder / "results.json").read_text() == first

    rows = (images / "labels.csv").read_text()
    (images / "labels.csv").write_text(rows.replace("001.png,1,0", "001.png,1,1"))
    with pytest.raises(UserError, match=r"another t.* labels \(.*--overwrite true"):
        infer_class.main(words)
    (images / "labels.csv").write_text(rows)
    for more, message in (
        (["--seed=1"], "another seed"),
        ([f"--probe_data=folder:{tmp_path / 'b' / 'images'}"], "another train data"),
        (["--check=2", "--epochs=3"], r"another epochs \(2, now 3\)"),
    ):
        with pytest.raises(UserError, match=message):
            infer_class.main([*words, *more])
    assert (folder / "results.json").read_text() == first and len(list(codes.iterdir())) == 4

    os.utime(images / "000.png", ns=(1, 1))
    with pytest.raises(UserError, match="another train digest"):
        infer_class.main(words)
    infer_class.main([*words, "--overwrite"])
    assert len(list(codes.iterdir())) == 6  # of the training images, either way round
    torch.save({name: tensor * 1.01 for name, tensor in torch.load(weights, weights_only=True).items()}, weights)
    with pytest.raises(UserError, match="another weights"):
        infer_class.main(words)
    report = json.loads((folder / "results.json").read_text())
    del report["made_from"]
    (folder / "results.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="another origin"):  # of an earlier version
        infer_class.main(words)
    infer_class.main([*words, f"--out={tmp_path / 'elsewhere'}"])
    assert {path.name for path in (tmp_path / "elsewhere" / "sample_20").iterdir()} == {
        "downstream_inference",
        "latents",
    }


def test_codes_do_not_overwrite_what_they_are_made_from(changing, tmp_path, capsys):
    words, images = changing
    words, out = [f"--dataset=folder:{images}", *words[1:2], "--device=cpu", "--split=all"], tmp_path / "codes.npz"
    weights = words[1].partition("=")[2]
    for path in (images / "003.png", images / "labels.csv", weights):
        out.unlink(missing_ok=True)
        os.link(path, out)
        with pytest.raises(UserError, match="is an input, and inputs are never overwritten"):
            encode.main([*words, f"--out={out}", "--overwrite"])
    out.unlink()
    encode.main([*words, f"--out={out}"])
    capsys.readouterr()
    encode.main([*words, f"--out={out}"])
    assert capsys.readouterr().out == f"{out} is complete already: nothing computed\n"
    os.utime(images / "003.png", ns=(1, 1))
    before = out.read_bytes()
    with pytest.raises(UserError, match="holds codes with another digest"):
        encode.main([*words, f"--out={out}"])
    assert out.read_bytes() == before
    encode.main([*words, f"--out={out}", "--overwrite"])
    (images / "labels.csv").write_text((images / "labels.csv").read_text().replace("001.png,1", "001.png,0"))
    with pytest.raises(UserError, match="holds codes with another labels"):
        encode.main([*words, f"--out={out}"])


def test_features_with_noise_depend_on_the_bridge(changing, tmp_path):
    words, _ = changing
    block = ["--features=input_blocks.1", "--time=0.2", "--overwrite"]
    infer_class.main([*words, *block])
    infer_class.main([*words, *block, "--end_data=0"])
    assert len(list((tmp_path / "run" / "sample_20" / "latents").iterdir())) == 8


def test_features_with_noise_depend_on_the_code_that_the_network_is_told(changing):
    """Drawn, or the mean: of a stochastic encoder they are in files of their own."""
    words, _ = changing
    words += ["--features=middle_block", "--time=0.5", "--solver=exact"]
    infer_class.main([*words, "--latent=sample"])
    infer_class.main([*words, "--latent=mean", "--overwrite"])
    folder = Path(words[1].partition("=")[2]).parent / "sample_20" / "latents"
    found = [read_arrays(str(path))[0]["z"] for path in folder.glob("test_*.npz")]
    assert len(found) == 2 and not np.allclose(found[0], found[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--time=5"], "time: expected"), (["--time=0.5", "--features=attic"], "attic")],
)
def test_times_and_blocks_that_there_are_not(checkpoint, photos, words, message):
    given = {"--features": "middle_block"} | dict(word.split("=") for word in words)
    with pytest.raises(UserError, match=message):
        infer_class.main([*small(checkpoint, photos), *map("=".join, given.items()), "--check=1"])


def test_encoded_features_are_of_the_block_and_time_that_were_asked_for(photos, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "run").mkdir()
    small_net = DDPMConfig(num_channels=32, channel_mult=(1, 1), num_res_blocks=1, feature_block="out_1")
    path = tiny.written(tmp_path / "run", DDAE(small_net))
    words = [f"--dataset=folder:{photos}", f"--model_path={path}", "--split=all", "--device=cpu", "--method=ddae"]
    words += ["--config=DDPM_toyfaces", f"--out={tmp_path}/codes.npz"]
    encode.main([*words, "--feature_time=11"])
    with pytest.raises(UserError, match="holds codes with another feature_time"):
        encode.main([*words, "--feature_time=501"])


def test_an_image_that_was_left_out_is_no_complete_file(changing, tmp_path, capsys):
    words, images = changing
    words = [f"--dataset=folder:{images}", words[1], "--device=cpu", "--split=all", f"--out={tmp_path}/codes.npz"]
    (images / "003.png").write_bytes((images / "003.png").read_bytes()[:60])
    encode.main([*words, "--on_bad_image=skip"])
    encode.main([*words, "--on_bad_image=skip"])
    assert "is complete already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"003.png.*left out before"):
        encode.main(words)
