"""Probes and encoding from the command line, on a bare released-format checkpoint and generated data."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from lmdb_fixtures import image_folder, image_lmdb
from parity import released_state
from test_commands import assert_one_line_error, bash
from test_labelled import lfw  # noqa: F401 - a fixture

from datasets import toyfaces
from eval.arrays import read_arrays


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    path = tmp_path_factory.mktemp("ckpt") / "ema_0.9999_980000.pt"
    torch.save(released_state(64, "sto"), path)
    return path


def celeba(root, rows=40):
    """A small CelebA LMDB with 40 attributes, each positive in every split."""
    image_lmdb(root / "celeba", "None-%07d", rows, 89, 109)
    lines = [str(rows), " ".join(toyfaces.ATTRIBUTES)]
    for i in range(rows):
        values = ["1" if (i + k) % 3 == 0 else "-1" for k in range(40)]
        lines.append(f"{i + 1:06d}.jpg {' '.join(values)}")
    (root / "celeba" / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")


def test_classification_on_a_released_file(released, tmp_path):
    celeba(tmp_path)
    words = ["celeba", "vp", released, "true", "--data_root", tmp_path, "--device=cpu", "--epochs=2"]
    status, _, error = bash("infer_class_dbae.sh", *words)
    assert status == 0, error
    folder = released.parent / "sample_980000" / "downstream_inference" / "multitask_ema"
    assert {path.name for path in folder.iterdir()} == {
        "best.pt", "best.json", "test.txt", "results.json", "attributes.png",
    }  # fmt: skip
    layer = torch.load(folder / "best.pt", weights_only=True)
    assert {name: tuple(value.shape) for name, value in layer.items()} == {"weight": (40, 512), "bias": (40,)}
    torch.nn.Linear(512, 40).load_state_dict(layer)
    report = json.loads((folder / "results.json").read_text())
    assert report["images"] == {"train": 32, "valid": 4, "test": 4} and len(report["epochs"]) == 2
    assert report["attributes"]["Male"].keys() == {"ap", "auroc", "positives"}
    assert json.loads((folder / "best.json").read_text())["attributes"][20] == "Male"
    assert f"ap: {report['test']['ap']}" in (folder / "test.txt").read_text()
    status, _, again = bash("infer_class_dbae.sh", *words)
    assert status == 0 and "encode train" in error and "encode" not in again  # the second probe reads its codes


def test_regression_on_a_released_file(released, lfw):  # noqa: F811
    words = ["celeba", "vp", released, "true", "--data_root", lfw.parent, "--device=cpu", "--epochs=2"]
    status, _, error = bash("infer_reg_dbae.sh", *words)
    assert status == 0, error
    folder = released.parent / "sample_980000" / "downstream_inference" / "regression_ema"
    report = json.loads((folder / "results.json").read_text())
    assert len(report["attributes"]) == 73 and {"last", "best", "constant"} <= report.keys()
    assert report["best"]["selected_on"] == "test" and len(report["epochs"]) == 2
    assert torch.load(folder / "best.pt", weights_only=True)["weight"].shape == (73, 512)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    image_folder(folder, [f"{i:03d}.png" for i in range(40)], 40, 40)
    rows = "".join(f"{i:03d}.png,{i % 2},{i % 3 == 0:d}\n" for i in range(40))
    (folder / "labels.csv").write_text("file,left,third\n" + rows)
    return folder


@pytest.mark.parametrize(
    ("words", "tag"),
    [
        ("--solver=exact", "_model_exact"),
        ("--solver=knn --label_fraction=0.9 --repeats=2", "_model_knn"),
        ("--features=pixels", "_pixels_adam"),
        ("--features=thumbnail", "_thumbnail_adam"),
        ("--features=pca --solver=exact", "_pca_exact"),
    ],
)
def test_own_labels_solvers_and_baselines(checkpoint, photos, words, tag):
    status, _, error = bash(
        "infer_class_dbae.sh", "toyfaces", "vp", checkpoint, "true", f"--probe_data=folder:{photos}", *words.split(),
        "--device=cpu", "--epochs=2",
    )  # fmt: skip
    assert status == 0, error
    folder = checkpoint.parent / "sample_20" / "downstream_inference" / f"multitask_ema_{photos.name}"
    report = json.loads((folder / f"results{tag}.json").read_text())
    assert report["attributes"].keys() == {"left", "third"} and (folder / f"attributes{tag}.png").exists()
    assert ("label_fractions" in report) == ("label_fraction" in words)


def test_two_processes_share_the_encoding(checkpoint, photos):
    words = ["toyfaces", "vp", checkpoint, "true", f"--probe_data=folder:{photos}", "--device=cpu", "--epochs=2"]
    reports = []
    for processes in ("1", "2"):
        for path in (checkpoint.parent / "sample_20" / "latents").glob("*.npz"):
            path.unlink()
        status, _, error = bash("infer_class_dbae.sh", *words, NPROC=processes)
        assert status == 0, error
        folder = checkpoint.parent / "sample_20" / "downstream_inference" / f"multitask_ema_{photos.name}"
        reports.append(json.loads((folder / "results.json").read_text()))
    assert reports[0]["test"] == pytest.approx(reports[1]["test"], abs=1e-6)


def test_table_and_baseline_picture(checkpoint, photos, tmp_path):
    words = ["toyfaces", "vp", checkpoint, "true", f"--probe_data=folder:{photos}", "--device=cpu", "--epochs=2"]
    assert bash("infer_reg_dbae.sh", *words)[0] == 0
    folder = checkpoint.parent / "sample_20" / "downstream_inference" / f"regression_ema_{photos.name}"
    status, _, error = bash("infer_reg_dbae.sh", *words, "--features=pixels", f"--baseline={folder / 'results.json'}")
    assert status == 0, error
    for name in ("table.md", "table.csv"):
        command = ["-m", "scripts.probe_table", f"--runs={checkpoint.parent}", f"--out={tmp_path / name}"]
        assert subprocess.run([sys.executable, *command], cwd=ROOT).returncode == 0
        text = (tmp_path / name).read_text()
        assert "DBAE-d" in text and "0.650" in text and "toyfaces" in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("infer_class_dbae.sh ffhq vp", ["four arguments", "got 2"]),
        ("infer_class_dbae.sh toyfaces vp {} true --solver=svm", ["--solver", "'svm'"]),
        ("infer_class_dbae.sh toyfaces vp {} true --label_fraction=2", ["label_fraction", "(0, 1]"]),
        ("infer_class_dbae.sh toyfaces vp {} true --probe_data=lfw", ["lfw", "regression"]),
        ("infer_class_dbae.sh toyfaces vp {} true --probe_data=ffhq", ["one with labels", "'ffhq'"]),
        ("infer_class_dbae.sh toyfaces vp {} true --baseline=absent.json", ["baseline: no such file"]),
        ("infer_reg_dbae.sh toyfaces vp {} true --solver=knn", ["solver", "adam or exact"]),
        ("infer_reg_dbae.sh toyfaces vp {} true --probe_data=lfw --data_root=absent", ["lfw_attributes.txt"]),
        ("infer_reg_dbae.sh toyfaces vp absent/ema_0.9_1.pt true", ["no such file", "absent/ema_0.9_1.pt"]),
    ],
)
def test_wrong_probe_arguments(checkpoint, words, parts):
    assert_one_line_error(bash(*words.format(checkpoint).split()), *parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "expected the results.json of a probe"),
        ("[]", "expected the results.json of a probe"),
        ('{"last": {"r": 0.5}}', "expected a probe scored by ap, .* is by r"),
    ],
)
def test_wrong_baseline_ends_before_any_work(checkpoint, photos, tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    words = [
        "toyfaces",
        "vp",
        checkpoint,
        "true",
        f"--probe_data=folder:{photos}",
        f"--baseline={tmp_path}/results.json",
    ]
    status, _, error = bash("infer_class_dbae.sh", *words)
    assert status == 2 and re.search(message, error) and error.count("\n") == 1


def test_dry_run(checkpoint):
    status, shown, _ = bash("infer_class_dbae.sh", "toyfaces", "vp", checkpoint, "true", "--dry_run")
    assert status == 0 and json.loads(shown)["probe_data"] == "toyfaces"
    status, shown, _ = bash("infer_reg_dbae.sh", "ffhq", "vp", "absent/ema_0.9999_7.pt", "true", "--dry_run")
    assert json.loads(shown)["output"] == "absent/sample_7/downstream_inference/regression_ema"


@pytest.mark.parametrize("processes", [1, 2])
def test_encode(checkpoint, photos, tmp_path, processes):
    out = tmp_path / "codes.npz"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        sys.executable, *(torchrun if processes > 1 else []), "-m", "scripts.encode", f"--dataset=folder:{photos}",
        f"--model_path={checkpoint}", f"--out={out}", "--batch_size=7", "--limit=33", "--device=cpu",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    arrays, about = read_arrays(str(out))
    assert {name: value.shape for name, value in arrays.items()} == {
        "mu": (33, 8), "log_sigma": (33, 8), "z": (33, 8), "index": (33,), "labels": (33, 2),
    }  # fmt: skip
    assert json.loads(about["names"])[5] == "005.png" and json.loads(about["label_names"]) == ["left", "third"]
    assert np.array_equal(arrays["index"], np.arange(33))
    before = out.stat().st_mtime_ns
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert out.stat().st_mtime_ns == before
    wrong = subprocess.run([*command, "--seed=3"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode != 0 and "holds codes with seed 0, expected 3" in wrong.stderr
