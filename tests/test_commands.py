"""The command contract: launchers, their errors, and the main job end to end on a small model."""

import csv
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from lmdb_fixtures import encoded, picture, write_lmdb

from dbae.config import PRESETS, ModelConfig, TrainConfig, preset

ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "NPROC": "1"}
SETTINGS = "euler_7.0_3_w=1.0_churn=0.33"


def bash(*words, cwd=ROOT, **environment):
    """Run a launcher; returns (status, standard output, standard error)."""
    done = subprocess.run(
        ["bash", *map(str, words)],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout, done.stderr


def assert_one_line_error(result, *parts):
    status, _, error = result
    assert status == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for part in parts:
        assert part in error


def recon(checkpoint, *options, n=3, **environment):
    words = ["toyfaces", "vp", checkpoint, "0.33", "1", "test", "7", "euler", n, "true", "--device=cpu", *options]
    return bash("recon_dbae.sh", *words, **environment)


@pytest.mark.parametrize("dataset", [*(set(PRESETS) - {"folder"}), "folder:tests"])
def test_train_dry_run_is_the_preset(dataset):
    status, shown, error = bash("train_dbae.sh", dataset, "ve", "true", "--batch-size", "64", "--dry_run")
    assert status == 0, error
    shown = json.loads(shown)
    model = preset(ModelConfig, dataset, {"schedule": "ve", "stochastic": True})
    training = preset(TrainConfig, dataset, {"batch_size": 64})
    for part, config in (("model", model), ("train", training)):
        expected = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}
        assert shown[part] == expected
    if dataset == "ffhq":
        assert shown["run_dir"] == "workdir/ffhq128_128_512d_true_ve"


def test_train_fourth_argument(tmp_path):
    (tmp_path / "model_000001.pt").touch()
    _, shown, _ = bash(ROOT / "train_dbae.sh", "celeba", "vp", "false", "model_000001.pt", "--dry_run", cwd=tmp_path)
    assert json.loads(shown)["run"]["resume_checkpoint"] == str(tmp_path / "model_000001.pt")
    _, shown, _ = bash("train_dbae.sh", "celeba", "vp", "false", "--lr=1e-3", "--dry_run=true")
    assert json.loads(shown)["run"]["resume_checkpoint"] is None and json.loads(shown)["train"]["lr"] == 1e-3
    missing = bash("train_dbae.sh", "celeba", "vp", "false", "absent.pt")
    assert_one_line_error(missing, "resume_checkpoint: no such file: absent.pt")


def test_recon_dry_run(checkpoint, tmp_path):
    status, shown, error = recon(checkpoint, "--dry_run")
    assert status == 0, error
    shown = json.loads(shown)
    assert shown["nfe"] == 6 and shown["model"]["latent_dim"] == 8
    assert shown["output"] == str(checkpoint.parent / "sample_20" / SETTINGS)
    official = "celebahq vp ckpt/ffhq/det/ema_0.9999_1020000.pt 0.0 1 train 7 euler 100 false --dry_run"
    status, shown, note = bash("recon_dbae.sh", *official.split())
    assert status == 0 and "no such file yet" in note
    assert json.loads(shown)["output"] == "ckpt/ffhq/det/sample_1020000/euler_7.0_100_w=1.0_churn=0.0"


def test_recon_in_few_steps(checkpoint):
    words = ["toyfaces", "vp", checkpoint, "0.0", "1", "test", "7", "dbim", "3", "true", "--device=cpu", "--limit=2"]
    status, _, error = bash("recon_dbae.sh", *words, "--grid=uniform", "--eta=0.5", "--boot")
    assert status == 0, error
    folder = checkpoint.parent / "sample_20" / "dbim_7.0_3_w=1.0_churn=0.0_grid=uniform_eta=0.5_boot=true"
    settings = json.loads((folder / "metrics.json").read_text())["settings"]
    assert (settings["grid"], settings["eta"], settings["boot"]) == ("uniform", 0.5, True)
    assert (folder / "samples_2x32x32x3_nfe3.npz").exists()
    words[3] = "0.33"
    assert_one_line_error(bash("recon_dbae.sh", *words), "churn_step_ratio: expected 0 for dbim, got 0.33")


@pytest.mark.parametrize("launcher", ["train_dbae.sh", "recon_dbae.sh"])
def test_help(launcher):
    status, text, _ = bash(launcher, "--help")
    assert status == 0 and "--dry_run" in text and "example" in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("", ["DATASET SCHEDULE STO [CKPT]"]),
        ("celeba vp", ["DATASET SCHEDULE STO [CKPT]"]),
        ("celebb vp true", ["dataset", "ffhq", "toyfaces or folder:PATH", "'celebb'"]),
        ("celeba vq true", ["--schedule", "'vp'", "'vq'"]),
        ("celeba vp ja", ["--stochastic", "true or false", "'ja'"]),
        ("celeba vp true --batch_size many", ["--batch_size", "a whole number", "'many'"]),
        ("celeba vp true --image_size 50", ["image_size", "32, 64, 128 or 256", "50"]),
        ("celeba vp true --data_root absent", ["no LMDB of celeba", "absent/celeba", "datasets.prepare celeba"]),
        ("folder:absent vp true", ["absent"]),
        ("toyfaces vp true --precision fp16 --device cpu", ["precision", "fp16 needs a GPU"]),
        ("toyfaces vp true --device tpu", ["device: 'tpu'"]),
    ],
)
def test_wrong_training_arguments(words, parts):
    assert_one_line_error(bash("train_dbae.sh", *words.split()), *parts)


@pytest.mark.parametrize(
    ("position", "value", "parts"),
    [
        (0, "celebb", ["dataset", "'celebb'"]),
        (1, "ve", ["schedule", "trained with vp", "got ve"]),
        (2, "absent/ema_0.9999_1.pt", ["no such file", "absent/ema_0.9999_1.pt"]),
        (3, "1.5", ["churn_step_ratio", "[0, 1)", "1.5"]),
        (4, "w", ["--guidance", "a number", "'w'"]),
        (5, "all", ["--split", "'all'"]),
        (6, "0", ["rho", "above 0"]),
        (7, "rk4", ["--sampler", "'rk4'"]),
        (8, "hundred", ["--steps", "a whole number", "'hundred'"]),
        (9, "false", ["stochastic", "trained with True", "got False"]),
    ],
)
def test_wrong_reconstruction_arguments(checkpoint, position, value, parts):
    words = ["toyfaces", "vp", str(checkpoint), "0.0", "1", "test", "7", "euler", "3", "true"]
    words[position] = value
    assert_one_line_error(bash("recon_dbae.sh", *words), *parts)


def test_model_path_given_twice_and_missing_arguments(checkpoint):
    words = ["toyfaces", "vp", checkpoint, checkpoint, "0.0", "1", "test", "7", "euler", "3", "true"]
    assert_one_line_error(bash("recon_dbae.sh", *words), "MODEL_PATH is given twice")
    assert_one_line_error(bash("recon_dbae.sh", *words[:3]), "ten arguments", "got 3")


def read(folder, kind, rank=0, i=0):
    with np.load(folder / f"{rank}_{kind}_sample_{i}.npz", allow_pickle=False) as content:
        return content["samples"]


def in_order(folder):
    """All reconstructions by the images' numbers, and those numbers."""
    parts = [np.load(path) for path in sorted(folder.glob("*_fake_sample_*.npz"))]
    index = np.concatenate([part["index"] for part in parts])
    return np.concatenate([part["samples"] for part in parts])[index.argsort()], sorted(index.tolist())


def test_reconstruction_files_and_evaluation(checkpoint, tmp_path):
    flags = ["--limit=5", "--batch_size=2", "--evaluate", "--metrics=MSE,SSIM,SSIM_official", "--overwrite"]
    status, _, error = recon(checkpoint, *flags)
    assert status == 0, error
    folder = checkpoint.parent / "sample_20" / SETTINGS
    names = {path.name for path in folder.iterdir()}
    parts = {f"0_{kind}_sample_{i}.npz" for kind in ("real", "fake") for i in range(3)}
    assert names == parts | {f"0_sample_{i}.png" for i in range(3)} | {"samples_5x32x32x3_nfe6.npz", "metrics.json"}
    real, fake = read(folder, "real"), read(folder, "fake")
    assert real.dtype == fake.dtype == np.uint8 and real.shape == fake.shape == (2, 32, 32, 3)
    with zipfile.ZipFile(folder / "samples_5x32x32x3_nfe6.npz") as archive:
        assert archive.namelist() == ["arr_0.npy"]
    combined = np.load(folder / "samples_5x32x32x3_nfe6.npz")["arr_0"]
    assert np.array_equal(combined, in_order(folder)[0])

    report = json.loads((folder / "metrics.json").read_text())
    assert report["complete"] and report["settings"]["limit"] == 5 and report["images_evaluated"] == 5
    assert set(report["metrics"]) == {"MSE", "SSIM", "SSIM_official"}
    command = [sys.executable, "eval_reconstruction.py", f"--sample_path={folder}", "--metrics=mse,ssim,ssim_official"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "MSE" in done.stdout and "(5 images)" in done.stdout
    again = json.loads((folder / "metrics.json").read_text())
    assert again["metrics"] == pytest.approx(report["metrics"], rel=1e-6) and again["settings"] == report["settings"]


def test_reconstruction_continues_and_does_not_mix(checkpoint):
    flags = ["--limit=4", "--batch_size=2", "--split_range=0:4"]
    assert recon(checkpoint, *flags, "--overwrite")[0] == 0
    folder = checkpoint.parent / "sample_20" / SETTINGS
    kept, lost = folder / "0_fake_sample_0.npz", folder / "0_fake_sample_1.npz"
    before, samples = kept.stat().st_mtime_ns, read(folder, "fake", i=1)
    lost.unlink()
    assert recon(checkpoint, *flags)[0] == 0
    assert kept.stat().st_mtime_ns == before and np.array_equal(read(folder, "fake", i=1), samples)
    assert_one_line_error(recon(checkpoint, *flags, "--seed=1"), "another seed", "--overwrite true")


@pytest.mark.parametrize(("processes", "batch_size"), [(1, 3), (2, 2), (2, 4)])
def test_an_image_does_not_depend_on_batches_or_processes(checkpoint, processes, batch_size):
    folder = checkpoint.parent / "sample_20" / SETTINGS
    status, _, error = recon(checkpoint, "--limit=7", "--batch_size=7", "--overwrite")
    assert status == 0, error
    expected, index = in_order(folder)
    assert index == list(range(7))
    status, _, error = recon(checkpoint, "--limit=7", f"--batch_size={batch_size}", "--overwrite", NPROC=str(processes))
    assert status == 0, error
    samples, index = in_order(folder)
    assert index == list(range(7))
    assert np.abs(samples.astype(int) - expected.astype(int)).max() <= 1
    assert np.array_equal(np.load(folder / "samples_7x32x32x3_nfe6.npz")["arr_0"], samples)


def test_evaluation_errors(tmp_path):
    def evaluate(*words):
        command = [sys.executable, "eval_reconstruction.py", *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    assert_one_line_error(evaluate(f"--sample_path={tmp_path / 'absent'}"), "sample_path: no such folder")
    assert_one_line_error(evaluate(f"--sample_path={tmp_path}"), "no files like 0_real_sample_0.npz")
    np.savez(tmp_path / "0_real_sample_0.npz", samples=np.zeros((1, 8, 8, 3), np.uint8))
    assert_one_line_error(evaluate(f"--sample_path={tmp_path}"), "0_fake_sample_0.npz is missing")
    np.savez(tmp_path / "0_fake_sample_0.npz", samples=np.array([{}], dtype=object))
    status, _, error = evaluate(f"--sample_path={tmp_path}", "--metrics=MSE")
    assert status == 2 and "damaged, or not a file of arrays" in error.splitlines()[-1]
    assert_one_line_error(evaluate(f"--sample_path={tmp_path}", "--metrics=PSNR"), "metrics: expected some of MSE")
    assert_one_line_error(evaluate(), "--sample_path")


def test_training_from_the_launcher_resumes_by_itself(tmp_path):
    words = ["toyfaces", "vp", "false", *tiny.FLAGS, "--batch_size=4", "--num_workers=1", f"--workdir={tmp_path}"]
    words += ["--device=cpu", "--log_interval=1"]
    status, shown, error = bash(ROOT / "train_dbae.sh", *words, "--total_steps=2", cwd=tmp_path)
    assert status == 0, error
    (run,) = tmp_path.iterdir()
    assert run.name == "toyfaces32_32_8d_false_vp"
    names = {path.name for path in run.iterdir() if not path.name.startswith("events")}
    files = {"model_000002.pt", "ema_0.9999_000002.pt", "opt_000002.pt", "config.json", "progress.csv", "samples"}
    assert names == files and [path.name for path in (run / "samples").iterdir()] == ["000002.png"]
    status, shown, error = bash("train_dbae.sh", *words, "--total_steps=3")
    assert status == 0 and "steps 2 to 3, resumed from" in shown, error
    assert [row["step"] for row in csv.DictReader((run / "progress.csv").open())] == ["1", "2", "3"]
    wrong = bash("train_dbae.sh", *words, "--total_steps=3", "--dropout=0.2")
    assert_one_line_error(wrong, "dropout", "has 0.0, got 0.2", "another --workdir")


def test_several_processes_check_their_input_once(tmp_path, checkpoint):
    words = ["toyfaces", "vp", "false", "--batch_size=32", "--device=cpu", f"--workdir={tmp_path / 'run'}"]
    assert_one_line_error(bash("train_dbae.sh", *words, NPROC="3"), "batch_size", "multiple of the 3 processes", "32")
    assert_one_line_error(recon(checkpoint, "--data_dir=absent", NPROC="2"), "no LMDB of toyfaces at absent")
    (tmp_path / "file").touch()
    assert_one_line_error(bash("train_dbae.sh", *words[:-1], f"--workdir={tmp_path / 'file' / 'x'}"), "Not a directory")


def test_checkpoint_of_another_kind(tmp_path, checkpoint):
    foreign = tmp_path / "ema_0.9999_000001.pt"
    torch.save({"conv.weight": torch.zeros(3)}, foreign)
    words = ["toyfaces", "vp", foreign, "0.0", "1", "test", "7", "euler", "3", "true"]
    assert_one_line_error(bash("recon_dbae.sh", *words), "not a DBAE checkpoint")
    assert_one_line_error(recon(checkpoint, "--image_size=64"), "image_size", "is for 32 px, got 64")


@pytest.mark.parametrize(
    ("damage", "message"), [("missing", "no image 256-00003"), ("truncated", "bad image 256-00003")]
)
def test_damaged_data_ends_training_with_the_image_named(tmp_path, damage, message):
    images = {f"256-{i:05d}": encoded(picture(i)) for i in range(6)}
    if damage == "missing":
        del images["256-00003"]
    else:
        images["256-00003"] = images["256-00003"][:100]
    write_lmdb(tmp_path / "ffhq", {**images, "length": b"6"})
    words = ["ffhq", "vp", "false", *tiny.FLAGS, "--batch_size=6", "--num_workers=1", f"--workdir={tmp_path / 'run'}"]
    status, _, error = bash("train_dbae.sh", *words, f"--data_root={tmp_path}", "--total_steps=2", "--device=cpu")
    assert status == 2 and message in error.splitlines()[-1] and "Traceback" not in error
