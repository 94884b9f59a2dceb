"""The command contract: launchers, their errors, and the main job end to end on a small model."""

import csv
import dataclasses
import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from lmdb_fixtures import encoded, picture, write_lmdb

import eval_reconstruction
from dbae.config import TrainConfig, UserError
from dbae.methods import DBAE, DiffAE, preset
from dbae.methods.diffae import DiffAEConfig
from eval import samples
from scripts import reconstruct, train

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


RECON = ("dataset", "schedule", "model_path", "churn_step_ratio", "guidance", "split", "rho", "sampler", "steps", "sto")


def recon_words(checkpoint, **changes):
    """What recon_dbae.sh hands on."""
    values = ("toyfaces", "vp", checkpoint, "0.33", "1", "test", "7", "euler", "3", "true")
    given = dict(zip(RECON, values, strict=True)) | changes
    return [f"--{name}={value}" for name, value in given.items()] + ["--device=cpu"]


# Launchers


@pytest.mark.parametrize("dataset", ["ffhq", "folder:tests"])
def test_train_dry_run_is_the_preset(dataset):
    status, shown, error = bash(
        "train_dbae.sh", dataset, "ve", "true", "--batch-size", "64", "--device=cpu", "--dry_run"
    )
    assert status == 0, error
    shown = json.loads(shown)
    size = shown["run"]["preset"]
    assert size == (None if dataset == "ffhq" else "tiny")
    model = preset(DBAE, DBAE.Config, dataset, {"schedule": "ve", "stochastic": True}, size)
    training = preset(DBAE, TrainConfig, dataset, {"batch_size": 64}, size).resolved()
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


def test_a_run_that_starts_from_another_has_its_networks(checkpoint):
    words = ["--dataset=celeba", f"--resume_checkpoint={checkpoint}"]
    _, model, training = train.parse([*words, "--stochastic=true"])
    assert model == tiny.config(stochastic=True) and training.batch_size == 256  # the rest is the data set's preset
    assert train.parse([*words, "--dropout=0.5"])[1].dropout == 0.5
    with pytest.raises(UserError, match=r"image_size: .*ema_0.9999_000020.pt has 32, got 64"):
        train.parse([*words, "--image_size=64"])
    with pytest.raises(UserError, match=r"resume_checkpoint: .* is of dbae, got diffae"):
        train.parse(["--method=diffae", *words])
    with pytest.raises(UserError, match=r"schedule: .*ema_0.9999_000020.pt has vp, got ve"):
        train.parse([*words, "--schedule=ve"])


def test_what_a_resumed_run_does_otherwise_is_said(tmp_path):
    config = TrainConfig(lr=1e-3)
    assert train.changes(str(tmp_path), config) == ""
    (tmp_path / "config.json").write_text(json.dumps({"model": {}, "train": {"lr": 1e-3, "batch_size": 16}}))
    assert train.changes(str(tmp_path), config) == "\nchanged since it was last started: batch_size 16 -> 256"
    assert train.changes(str(tmp_path), dataclasses.replace(config, batch_size=16)) == ""


def test_a_launcher_of_another_method_says_so(checkpoint, tmp_path):
    other = tiny.written(tmp_path, DiffAE(DiffAEConfig(**tiny.SMALL, latent_dim=8)))
    words = ["toyfaces", "vp", other, "0.0", "1", "test", "7", "euler", "3", "true"]
    assert_one_line_error(bash("recon_dbae.sh", *words), f"method: {other} is of diffae, got dbae")
    told = f"method: {checkpoint} is of dbae, got diffae"
    assert_one_line_error(bash("diffae/recon.sh", "toyfaces", checkpoint, "test", "10", "random"), told)


def test_launchers_refuse_and_explain(checkpoint):
    assert_one_line_error(bash("train_dbae.sh", "celeba", "vp"), "DATASET SCHEDULE STO [CKPT]")
    words = ["toyfaces", "vp", checkpoint, checkpoint, "0.0", "1", "test", "7", "euler", "3", "true"]
    assert_one_line_error(bash("recon_dbae.sh", *words), "MODEL_PATH is given twice")
    assert_one_line_error(bash("recon_dbae.sh", *words[:3]), "10 arguments", "got 3")
    assert_one_line_error(bash("recon_dbae.sh", "folder:", *words[1:3], *words[4:]), "got 'folder:'")
    status, text, _ = bash("recon_dbae.sh", "--help")
    assert status == 0 and "--dry_run" in text and "example" in text


def test_help_of_a_launcher_is_its_methods():
    status, text, _ = bash("ddae/sample.sh", "--help")
    assert status == 0 and "[--mode DDIM|DDPM|EDM]" in text and "--ddim_schedule" in text and "--stochastic" not in text
    status, text, _ = bash("diffae/interpol.sh", "--help")
    assert status == 0 and "bash diffae/interpol.sh DATASET MODEL_PATH T" in text and "(default: ddim)" in text


def test_official_reconstruction_command():
    official = "celebahq vp ckpt/ffhq/det/ema_0.9999_1020000.pt 0.0 1 train 7 euler 100 false --dry_run"
    status, shown, note = bash("recon_dbae.sh", *official.split())
    assert status == 0 and "no such file yet" in note
    assert json.loads(shown)["output"] == "ckpt/ffhq/det/sample_1020000/euler_7.0_100_w=1.0_churn=0.0"


def test_a_launcher_says_what_was_typed():
    line = 'source args.sh; exec "$PYTHON" -c "from dbae.io import command_line; print(command_line())"'
    status, shown, error = bash("-c", line, "recon_dbae.sh", "folder:my photos", "--out", "a")
    assert status == 0, error
    assert shlex.split(shown) == ["bash", "recon_dbae.sh", "folder:my photos", "--out", "a"]


@pytest.mark.parametrize(
    ("typed", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "")]
)
def test_waiting_threads_sleep_soon_unless_told_otherwise(typed, expected):
    given = {"GOMP_SPINCOUNT": "", "OMP_WAIT_POLICY": "", **typed}
    status, shown, error = bash("-c", 'source args.sh; echo "$GOMP_SPINCOUNT"', **given)
    assert status == 0 and shown.strip() == expected, error


def test_training_from_the_launcher_resumes_by_itself(tmp_path, program):
    words = ["toyfaces", "vp", "false", *tiny.FLAGS, "--batch_size=4", "--num_workers=1", f"--workdir={tmp_path}"]
    words += ["--device=cpu", "--log_interval=1"]
    status, shown, error = bash(ROOT / "train_dbae.sh", *words, "--total_steps=2", cwd=tmp_path)
    assert status == 0, error
    (folder,) = tmp_path.iterdir()
    assert folder.name == "toyfaces32_32_8d_false_vp"
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
    files = {"model_000002.pt", "ema_0.9999_000002.pt", "opt_000002.pt", "config.json", "progress.csv", "samples"}
    assert names == files | {".lock"} and [path.name for path in (folder / "samples").iterdir()] == ["000002.png"]
    words = ["--dataset=toyfaces", "--schedule=vp", "--stochastic=false", *words[3:]]
    status, shown, error = program(train, *words, "--total_steps=3")
    assert status == 0 and "steps 2 to 3, resumed from" in shown, error
    assert [row["step"] for row in csv.DictReader((folder / "progress.csv").open())] == ["1", "2", "3"]
    wrong = program(train, *words, "--total_steps=3", "--dropout=0.2")
    assert_one_line_error(
        wrong, "dropout", "has 0.0, got 0.2, made by: python3 ", "give the same to go on", "--workdir"
    )


def test_several_processes_check_their_input_once(tmp_path):
    words = ["toyfaces", "vp", "false", "--batch_size=32", "--device=cpu", f"--workdir={tmp_path / 'run'}"]
    assert_one_line_error(bash("train_dbae.sh", *words, NPROC="3"), "batch_size", "multiple of the 3 processes", "32")
    for wrong in ("0", "two", "-1"):
        assert_one_line_error(bash("train_dbae.sh", *words, NPROC=wrong), "NPROC: expected a number", wrong)
    dry = bash("train_dbae.sh", *words, "--dry_run", "false", NPROC="3")  # which is none
    assert_one_line_error(dry, "multiple of the 3 processes")


def photos(folder, n=6, first=0):
    """``folder:PATH`` of n images."""
    folder.mkdir(parents=True)
    for i in range(n):
        (folder / f"{i}.png").write_bytes(encoded(picture(first + i)))
    return f"folder:{folder}"


def test_a_run_knows_its_data(tmp_path, program):
    data, run_dir = tmp_path / "a" / "images", tmp_path / "run"
    photos(data), photos(tmp_path / "b" / "images", first=10)
    shutil.copytree(data, tmp_path / "c" / "images")
    flags = [*tiny.FLAGS, "--stochastic=false", "--batch_size=2", "--num_workers=0", "--device=cpu", "--split_range=:5"]

    def attempt(folder, steps, *more):
        words = [f"--dataset=folder:{folder}", f"--workdir={run_dir}", f"--total_steps={steps}", *flags, *more]
        return program(train, *words)

    assert attempt(data, 1)[0] == 0
    (config,) = run_dir.glob("*/config.json")
    entry = json.loads(config.read_text())["data"]
    assert (
        json.loads(config.read_text())["preset"] == "tiny" and config.parent.name == "folder-images-32_32_8d_false_vp"
    )
    assert entry["name"] == "folder" and entry["path"] == str(data) and entry["images"] == 5
    for folder, words, parts in (
        (tmp_path / "b" / "images", [], ["path: the run", "--data_moved true"]),
        (tmp_path / "b" / "images", ["--data_moved"], ["images_digest: the run"]),
        (tmp_path / "c" / "images", [], ["path: the run"]),
        (data, ["--split_range=1:6"], ["split_range: the run", "has :5, got 1:6"]),
        (data, ["--seed=1"], ["seed: the run", "has 0, got 1"]),
    ):
        before = config.read_text()
        assert_one_line_error(attempt(folder, 2, *words), *parts)
        assert config.read_text() == before

    # The same images elsewhere; a run of an earlier version; another image under an old name
    status, shown, error = attempt(tmp_path / "c" / "images", 2, "--data_moved")
    assert status == 0 and "steps 1 to 2" in shown, error
    content = json.loads(config.read_text())
    times = content["data"]["times_digest"]
    assert content["data"] == entry | {"path": str(tmp_path / "c" / "images"), "times_digest": times}
    config.write_text(json.dumps({name: value for name, value in content.items() if name != "data"}))
    status, shown, error = attempt(data, 3)
    assert status == 0 and "steps 2 to 3" in shown, error
    assert json.loads(config.read_text())["data"] == entry | {"split": "all"}  # as it was then
    assert_one_line_error(attempt(data, 4, "--split=train"), "split: the run", "has all, got train")
    os.utime(data / "3.png", (0, 0))  # as where another of the same size was put in its place
    assert_one_line_error(attempt(data, 4), "times_digest: the run", "--data_moved true")
    assert attempt(data, 4, "--data_moved")[0] == 0
    (data / "3.png").write_bytes(encoded(picture(30)))
    assert_one_line_error(attempt(data, 5), "images_digest: the run")
    config.unlink()
    assert_one_line_error(attempt(data, 5), "config.json is missing beside its checkpoints")
    assert_one_line_error(attempt(data, 5, f"--workdir={data / 'run'}"), "workdir: ", "lies among the images")


def test_a_run_folder_is_of_one_process(tmp_path, program):
    words = [
        f"--dataset={photos(tmp_path / 'images')}",
        f"--workdir={tmp_path / 'run'}",
        "--total_steps=1",
        *tiny.FLAGS,
    ]
    words += ["--stochastic=false", "--batch_size=2", "--num_workers=0", "--device=cpu"]
    assert program(train, *words)[0] == 0
    (lock,) = (tmp_path / "run").glob("*/.lock")
    hold = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert_one_line_error(program(train, *words), "another process is writing to it")
        other.communicate(b"\n")
    assert program(train, *words)[0] == 0


# What is refused


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("celebb vp true", ["dataset", "ffhq", "sprites, cifar10", "or folder:PATH", "'celebb'"]),
        ("celeba vq true", ["--schedule", "'vp'", "'vq'"]),
        ("celeba vp ja", ["--stochastic", "true or false", "'ja'"]),
        ("celeba vp true --batch_size many", ["--batch_size", "a whole number", "'many'"]),
        ("celeba vp true --image_size 50", ["image_size", "32, 64, 128 or 256", "50"]),
        ("celeba vp true --data_root absent", ["no LMDB of celeba", "absent/celeba", "datasets.prepare celeba"]),
        ("celeba vp true --resume_checkpoint absent.pt", ["resume_checkpoint: no such file: absent.pt"]),
        ("folder:absent vp true", ["absent"]),
        ("toyfaces vp true --precision fp16 --device cpu", ["precision", "fp16 needs a GPU"]),
        ("toyfaces vp true --device tpu", ["device: 'tpu'"]),
    ],
)
def test_wrong_training_arguments(program, words, parts):
    dataset, schedule, sto, *rest = words.split()
    given = f"--dataset={dataset}", f"--schedule={schedule}", f"--stochastic={sto}"
    assert_one_line_error(program(train, *given, *rest), *parts)


@pytest.mark.parametrize(
    ("position", "value", "parts"),
    [
        ("dataset", "celebb", ["dataset", "'celebb'"]),
        ("schedule", "ve", ["schedule", "trained with vp", "got ve"]),
        ("model_path", "absent/ema_0.9999_1.pt", ["no such file", "absent/ema_0.9999_1.pt"]),
        ("churn_step_ratio", "1.5", ["churn", "[0, 1)", "1.5"]),
        ("guidance", "w", ["--guidance", "a number", "'w'"]),
        ("split", "most", ["--split", "'most'"]),
        ("rho", "0", ["rho", "above 0"]),
        ("sampler", "rk4", ["--sampler", "'rk4'"]),
        ("sampler", "dbim", ["churn: expected 0", "for dbim, got 0.33"]),
        ("steps", "hundred", ["--steps", "a whole number", "'hundred'"]),
        ("sto", "false", ["stochastic", "trained with True", "got False"]),
        ("image_size", "64", ["image_size", "trained with 32, got 64"]),
        ("method", "gan", ["method: expected one of dbae"]),
    ],
)
def test_wrong_reconstruction_arguments(program, checkpoint, position, value, parts):
    assert_one_line_error(program(reconstruct, *recon_words(checkpoint, **{position: value})), *parts)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rho": "0.1", "steps": "5", "churn_step_ratio": "0"}, "rho, steps: expected finite times"),
        ({"rho": "1e300"}, "rho, steps: expected finite times"),
        ({"guidance": "1e308"}, "euler: expected settings that give finite factors, got churn 0.33, guidance 1e+308"),
        ({"steps": "100001"}, "steps: expected 1 to 100000, got 100001"),
    ],
)
def test_settings_without_finite_factors_end_before_any_work(program, checkpoint, changes, told):
    before = sorted(checkpoint.parent.rglob("*"))
    assert_one_line_error(program(reconstruct, *recon_words(checkpoint, **changes)), told)
    assert sorted(checkpoint.parent.rglob("*")) == before


def test_weights_that_are_not_finite_end_every_start(tmp_path, checkpoint, program):
    folder = tmp_path / "run"
    shutil.copytree(checkpoint.parent, folder, ignore=shutil.ignore_patterns("sample_*"))
    path = folder / checkpoint.name
    state = torch.load(path, weights_only=True)
    torch.save({**state, "out.2.bias": state["out.2.bias"] * torch.inf}, path)
    told = "expected finite weights, 'out.2.bias' holds NaN or infinity"
    assert_one_line_error(program(reconstruct, *recon_words(path)), told)
    words = ["--dataset=toyfaces", "--stochastic=true", *tiny.FLAGS, f"--workdir={tmp_path}", "--device=cpu"]
    assert_one_line_error(program(train, *words, f"--resume_checkpoint={path}"), told)
    assert_one_line_error(program(train, *words, f"--resume_checkpoint={folder}"), "is a folder")


def test_checkpoint_of_another_kind(tmp_path, program):
    foreign = tmp_path / "ema_0.9999_000001.pt"
    torch.save({"conv.weight": torch.zeros(3)}, foreign)
    assert_one_line_error(program(reconstruct, *recon_words(foreign)), "not a DBAE checkpoint")


@pytest.mark.parametrize(
    ("damage", "message"), [("missing", "no image 256-00003"), ("truncated", "bad image 256-00003")]
)
def test_damaged_data_ends_training_with_the_image_named(tmp_path, program, damage, message):
    images = {f"256-{i:05d}": encoded(picture(i)) for i in range(6)}
    if damage == "missing":
        del images["256-00003"]
    else:
        images["256-00003"] = images["256-00003"][:100]
    write_lmdb(tmp_path / "ffhq", {**images, "length": b"6"})
    words = [*tiny.FLAGS, "--batch_size=6", "--num_workers=1", f"--workdir={tmp_path / 'run'}", "--total_steps=2"]
    status, _, error = program(train, "--dataset=ffhq", *words, f"--data_root={tmp_path}", "--device=cpu", "--quiet")
    assert status == 2 and message in error.splitlines()[-1]


def test_evaluation_errors(tmp_path, program):
    def evaluate(*words):
        return program(eval_reconstruction, *words)

    assert_one_line_error(
        evaluate(f"--sample_path={tmp_path / 'absent'}"),
        "sample_path: expected a folder with files like 0_real_sample_0.npz",
    )
    assert_one_line_error(
        evaluate(f"--sample_path={tmp_path}"), "sample_path: expected a folder with files like 0_real_sample_0.npz"
    )
    np.savez(tmp_path / "0_real_sample_0.npz", samples=np.zeros((1, 8, 8, 3), np.uint8))
    assert_one_line_error(evaluate(f"--sample_path={tmp_path}"), "0_fake_sample_0.npz is missing")
    np.savez(tmp_path / "0_fake_sample_0.npz", samples=np.array([{}], dtype=object))
    status, _, error = evaluate(f"--sample_path={tmp_path}", "--metrics=MSE")
    assert status == 2 and "damaged, or not a file of arrays" in error.splitlines()[-1]
    assert_one_line_error(evaluate(f"--sample_path={tmp_path}", "--metrics=FID"), "metrics: expected some of MSE")


# Reconstruction


def read(folder, kind, rank=0, i=0):
    with np.load(folder / f"{rank}_{kind}_sample_{i}.npz", allow_pickle=False) as content:
        return content["samples"]


def in_order(folder):
    """All reconstructions by the images' numbers, and those numbers."""
    parts = [np.load(path) for path in sorted(folder.glob("*_fake_sample_*.npz"))]
    index = np.concatenate([part["index"] for part in parts])
    return np.concatenate([part["samples"] for part in parts])[index.argsort()], sorted(index.tolist())


def test_in_few_steps(checkpoint, program):
    words = recon_words(checkpoint, churn_step_ratio="0.0", sampler="dbim")
    status, _, error = program(reconstruct, *words, "--limit=2", "--grid=uniform", "--eta=0.5", "--boot")
    assert status == 0, error
    folder = checkpoint.parent / "sample_20" / "dbim_7.0_3_w=1.0_churn=0.0_grid=uniform_eta=0.5_boot=true"
    settings = json.loads((folder / "metrics.json").read_text())["settings"]
    assert (settings["grid"], settings["eta"], settings["boot"]) == ("uniform", 0.5, True)
    assert (folder / "samples_2x32x32x3_nfe3.npz").exists()


def test_reconstruction_files_and_evaluation(checkpoint, program):
    flags = ["--limit=5", "--batch_size=2", "--evaluate", "--metrics=MSE,SSIM,SSIM_official", "--overwrite"]
    status, _, error = program(reconstruct, *recon_words(checkpoint), *flags)
    assert status == 0, error
    folder = checkpoint.parent / "sample_20" / SETTINGS
    names = {path.name for path in folder.iterdir()}
    parts = {f"0_{kind}_sample_{i}.npz" for kind in ("real", "fake") for i in range(3)}
    assert names == parts | {"0_sample_0.png", "samples_5x32x32x3_nfe6.npz", "metrics.json"}
    real, fake = read(folder, "real"), read(folder, "fake")
    assert real.dtype == fake.dtype == np.uint8 and real.shape == fake.shape == (2, 32, 32, 3)
    with zipfile.ZipFile(folder / "samples_5x32x32x3_nfe6.npz") as archive:
        assert archive.namelist() == ["arr_0.npy"]
    assert np.array_equal(np.load(folder / "samples_5x32x32x3_nfe6.npz")["arr_0"], in_order(folder)[0])

    report = json.loads((folder / "metrics.json").read_text())
    assert report["complete"] and report["settings"]["limit"] == 5 and report["images_evaluated"] == 5
    assert set(report["metrics"]) == set(report["standard_errors"]) == {"MSE", "SSIM", "SSIM_official"}
    status, shown, _ = program(eval_reconstruction, f"--sample_path={folder}", "--metrics=mse,ssim,ssim_official")
    assert status == 0 and "(5 images)" in shown
    again = json.loads((folder / "metrics.json").read_text())
    assert again["metrics"] == pytest.approx(report["metrics"], rel=1e-6) and again["settings"] == report["settings"]
    assert again["standard_errors"] == pytest.approx(report["standard_errors"], rel=1e-3)


def test_reconstruction_continues_and_does_not_mix(checkpoint, program, monkeypatch):
    words = [*recon_words(checkpoint), "--limit=4", "--batch_size=2", "--split_range=0:4"]
    folder = checkpoint.parent / "sample_20" / SETTINGS

    def write_part(path, *arrays):
        if path.endswith("0_fake_sample_1.npz"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        writes(path, *arrays)

    writes = samples.write_part
    with monkeypatch.context() as patch:  # the disk is full; parts are written in the background
        patch.setattr(samples, "write_part", write_part)
        status, _, error = program(reconstruct, *words, "--overwrite")
    assert status == 2 and "0_fake_sample_1.npz" in error.splitlines()[-1]
    assert not json.loads((folder / "metrics.json").read_text())["complete"] and not list(folder.glob("samples_*"))
    assert program(reconstruct, *words)[0] == 0
    kept, lost = folder / "0_fake_sample_0.npz", folder / "0_fake_sample_1.npz"
    before, made = kept.stat().st_mtime_ns, read(folder, "fake", i=1)
    lost.unlink()
    assert program(reconstruct, *words)[0] == 0
    assert kept.stat().st_mtime_ns == before and np.array_equal(read(folder, "fake", i=1), made)
    assert "seconds" not in json.loads((folder / "metrics.json").read_text())  # of a part would be no cost of the whole
    refused = program(reconstruct, *words, "--seed=1")
    assert_one_line_error(refused, "another seed (0, now 1), made by: python3 ", "--overwrite true", "another --out")


def folder_words(checkpoint, data, *more):
    words = recon_words(checkpoint, dataset=data, sampler="one-step", churn_step_ratio="0", steps="1")
    return [*words, "--evaluate", "--metrics=MSE", *map(str, more)]


def test_reconstructions_are_identified_by_content(checkpoint, program, tmp_path):
    """Of other images, weights or settings they are refused by name; of the same ones nothing is computed."""
    data, weights = photos(tmp_path / "images"), tmp_path / "run" / checkpoint.name
    shutil.copytree(checkpoint.parent, weights.parent)
    words = folder_words(weights, data, "--out", tmp_path / "out")
    status, shown, error = program(reconstruct, *words)
    assert status == 0 and "wrote 6" in shown, error
    (folder,) = (tmp_path / "out" / "sample_20").iterdir()
    assert json.loads((folder / "metrics.json").read_text())["seconds"] >= 0
    assert not (weights.parent / "sample_20" / folder.name).exists()
    again = program(reconstruct, *words)
    assert again[0] == 0 and again[1].splitlines()[0] == shown.splitlines()[0]
    assert f"{folder} is complete already: nothing computed" in again[1] and "wrote" not in again[1]

    photos(tmp_path / "other" / "images", first=6)
    other = folder_words(weights, f"folder:{tmp_path / 'other' / 'images'}", "--out", tmp_path / "out")
    assert_one_line_error(program(reconstruct, *other), str(folder), "another dataset", "--overwrite true")
    os.utime(tmp_path / "images" / "2.png", ns=(1, 1))
    assert_one_line_error(program(reconstruct, *words), "another digest", "--overwrite true")
    assert_one_line_error(program(reconstruct, *words, "--check=1"), "another digest")
    assert program(reconstruct, *words, "--overwrite")[0] == 0
    state = torch.load(weights, weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in state.items()}, weights)
    assert_one_line_error(program(reconstruct, *words), "another weights")

    # A folder of an earlier version, and one that is unfinished
    report = json.loads((folder / "metrics.json").read_text())
    del report["settings"]["weights"], report["settings"]["digest of images"]
    (folder / "metrics.json").write_text(json.dumps(report))
    assert_one_line_error(program(reconstruct, *words), "another weights (none, now ", "digest of images (none, now ")
    for part in folder.glob("*_sample_0.npz"):
        part.unlink()
    np.savez(folder / "0_real_sample_0.npz", samples=np.zeros((1, 8, 8, 3), np.uint8))
    np.savez(folder / "0_fake_sample_0.npz", samples=np.zeros((1, 8, 8, 3), np.uint8))
    status, _, error = program(eval_reconstruction, f"--sample_path={folder}", "--metrics=MSE")
    assert status == 2 and "expected 6 reconstructions, as metrics.json says, there are 1" in error
    (folder / "metrics.json").write_text(json.dumps(report | {"complete": False}))
    unfinished = program(eval_reconstruction, f"--sample_path={folder}", "--metrics=MSE")
    assert_one_line_error(unfinished, "it is unfinished; run the reconstruction again")


def test_reconstruction_does_not_remove_its_own_images(checkpoint, program, tmp_path):
    data = tmp_path / "sample_20" / "one-step_7.0_1_w=1.0_churn=0.0"
    data.mkdir(parents=True)
    (data / "0_sample_0.png").write_bytes(encoded(picture(0)))
    words = folder_words(checkpoint, f"folder:{data}", "--out", tmp_path, "--overwrite")
    assert_one_line_error(program(reconstruct, *words), "0_sample_0.png is an input")
    assert [path.name for path in data.iterdir()] == ["0_sample_0.png"]


def test_an_image_does_not_depend_on_batches_or_processes(checkpoint, program):
    folder, words = checkpoint.parent / "sample_20" / SETTINGS, [*recon_words(checkpoint), "--limit=7", "--overwrite"]
    assert program(reconstruct, *words, "--batch_size=7")[0] == 0
    expected, index = in_order(folder)
    assert index == list(range(7))

    def assert_same_images():
        samples, index = in_order(folder)
        assert index == list(range(7)) and np.abs(samples.astype(int) - expected.astype(int)).max() <= 1
        assert np.array_equal(np.load(folder / "samples_7x32x32x3_nfe6.npz")["arr_0"], samples)

    assert program(reconstruct, *words, "--batch_size=3")[0] == 0
    assert_same_images()
    launcher = ["toyfaces", "vp", checkpoint, "0.33", "1", "test", "7", "euler", "3", "true", "--device=cpu"]
    flags = ["--limit=7", "--batch_size=2", "--overwrite"]
    status, _, error = bash("recon_dbae.sh", *launcher, *flags, NPROC="2")
    assert status == 0, error
    assert_same_images()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out=~/x", "--out", "~/x", "--out=new"], ["--out=~/x", "--out", "~/x", "--out=/here/new"]),
        (["--workdir", "./runs", "--workdir=gs://b/c"], ["--workdir", "/here/./runs", "--workdir=gs://b/c"]),
        (["--dataset=folder:photos", "--labels=a.csv"], ["--dataset=folder:/here/photos", "--labels=a.csv"]),
        (["--limit", "3", "--overwrite"], ["--limit", "3", "--overwrite"]),
        (
            ["--probe_data=folder:photos", "--images", "photos"],
            ["--probe_data=folder:/here/photos", "--images", "/here/photos"],
        ),
        (["--labels=photos:A", "--labels", "none:A"], ["--labels=/here/photos:A", "--labels", "none:A"]),
        (["--data-dir", "photos", "--split", "photos"], ["--data-dir", "/here/photos", "--split", "photos"]),
    ],
)
def test_paths_are_as_seen_by_who_typed_them(tmp_path, words, expected):
    (tmp_path / "photos").mkdir()
    command = 'source args.sh; HERE=$1; shift; options_from_here "$@"; printf "%s\\n" "${OPTIONS[@]}"'
    shown = bash("-c", command, "args", tmp_path, *words)
    assert shown[1].splitlines() == [each.replace("/here", str(tmp_path)) for each in expected], shown


@pytest.mark.slow
def test_two_processes_share_the_samples(tmp_path):
    path = tiny.written(tmp_path, DiffAE(DiffAEConfig(**tiny.SMALL, latent_dim=6)))
    words = ["--codes=gaussian", "--split_range=0:24", "--device=cpu", "--batch_size=2", "--method=diffae"]
    done = bash("sample_dbae.sh", "toyfaces", path, "5", "ddim", "2", *words, NPROC="2")
    assert done[0] == 0, done
    (folder,) = (tmp_path / "sample_20").glob("generated_gaussian_*")
    assert sorted(name.name for name in folder.glob("0*.png")) == [f"{i:06d}.png" for i in range(5)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method=prior"], "method: expected one of dbae"),
        (["--num_workers=-1"], "num_workers: expected a number from 0"),
    ],
)
def test_what_training_does_not_take(words, message):
    with pytest.raises(UserError, match=message):
        train.main(["--dataset=toyfaces", "--dry_run", *words])
