"""Checkpoints: names, round trips, bare released files, and files that must be refused."""

import argparse
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from parity import released_state

from dbae.checkpoint import complete_sets, config_content, load_model, load_weights, save_weights, step_of, write_config
from dbae.config import TrainConfig, UserError
from dbae.io import atomic_write
from dbae.methods.dbae import DBAE, DBAEConfig
from dbae.state import TrainState
from dbae.tensors import read_tensors
from dbae.tensors import write_tensors as write


@pytest.mark.parametrize(
    ("name", "step"),
    [("ema_0.9999_1020000.pt", 1020000), ("model_000010.pt", 10), ("freq_ema_0.9999_000007.pt", 7), ("opt_12.pt", 12)],
)
def test_step_is_an_integer_of_any_length(name, step):
    assert step_of(f"some/where/{name}") == step


@pytest.mark.parametrize("name", ["best.pt", "ema_0.9999.pt", "ema_0.9999_12.pth", "model12.pt"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="model_path: expected a name like"):
        step_of(name)


def run_folder(tmp_path, **changes):
    """A folder as training leaves it, with one weight file."""
    model = tiny.model(**changes)
    write_config(str(tmp_path), config_content(model, "toyfaces", train=TrainConfig()))
    path = str(tmp_path / "ema_0.9999_000010.pt")
    save_weights(path, model)
    return model, path


@pytest.mark.parametrize("stochastic", [False, True])
def test_round_trip_of_an_own_run(tmp_path, stochastic):
    model, path = run_folder(tmp_path, stochastic=stochastic, schedule="ve")
    loaded = load_model(path)
    assert loaded.config == model.config and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    names = torch.load(path, weights_only=True).keys()
    assert not any(name.startswith("unet.") for name in names)
    assert {name.split(".")[0] for name in names} >= {"encoder", "decoder", "time_embed", "input_blocks", "out"}


@pytest.mark.parametrize("kind", ["det", "sto"])
def test_bare_released_file(tmp_path, kind):
    path = tmp_path / "ema_0.9999_1020000.pt"
    torch.save(released_state(64, kind), path)
    model = load_model(str(path), dataset="celeba", schedule="vp", stochastic=kind == "sto")
    assert model.config == DBAEConfig(image_size=64, num_channels=64, stochastic=kind == "sto")
    assert load_model(str(path), schedule="ve", end_data=0).config.end_data == 0
    for wrong, message in (
        ({"schedule": "vp", "dataset": "ffhq"}, "made for 64x64 images, but ffhq is 128x128"),
        ({"schedule": "vp", "stochastic": kind != "sto"}, "stochastic: .* was trained with"),
        ({}, "schedule: needed for"),
        ({"schedule": "vp", "depth": 3}, "depth: dbae has no such setting"),
        ({"method": "gan"}, "method: expected one of dbae"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(str(path), **wrong)


def test_contradictions_with_config_json(tmp_path):
    _, path = run_folder(tmp_path)
    with pytest.raises(UserError, match=r"schedule: .* was trained with vp, got ve"):
        load_model(path, schedule="ve")
    with pytest.raises(UserError, match=r"stochastic: .* was trained with False, got True"):
        load_model(path, stochastic=True)
    with pytest.raises(UserError, match=r"method: expected one of .*, got 'gan'"):
        load_model(path, method="gan")
    assert load_model(path, dataset="ffhq", schedule="vp").config.image_size == 32
    assert load_model(path, method="dbae", end_data=0.0).config.end_data == 0.0


def test_a_configuration_of_before_there_were_methods(tmp_path):
    model, path = run_folder(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content.pop("method") == "dbae"
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_model(path).config == model.config
    (tmp_path / "config.json").write_text(json.dumps({"method": "gan", **content}))
    with pytest.raises(UserError, match=r"method: expected one of dbae, .*got 'gan'"):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object with"),
        ('{"model": 3}', "expected an object of settings"),
        ('{"model": {"depth": 3}}', "unknown setting 'depth'; is it of a newer version"),
        ('{"model": {}, "dataset": 3}', "expected an object with"),
        ('{"model": {"latent_dim": "many"}}', "latent_dim: expected int, got 'many'"),
        ('{"model": {"channel_mult": [1, "x"]}}', "channel_mult: expected"),
        ('{"model": {"image_size": 48}}', "image_size: expected 32, 64, 128 or 256, got 48"),
    ],
)
def test_damaged_config_json(tmp_path, content, message):
    _, path = run_folder(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_model(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_config_json_from_an_editor_that_marks_its_encoding(tmp_path, encoding):
    model, path = run_folder(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text(), encoding=encoding)
    assert load_model(path).config == model.config


def test_weights_that_do_not_fit(tmp_path):
    model, path = run_folder(tmp_path)
    state = DBAE.to_official(model.state_dict())
    for change, message in (
        ({"out.2.bias": None}, "lacks 1 tensors, e.g. 'out.2.bias'"),
        ({"extra": torch.zeros(1)}, "has unknown 1 tensors, e.g. 'extra'"),
        ({"out.2.bias": torch.zeros(5)}, "has another shape for 1 tensors, e.g. 'out.2.bias'"),
        ({"optimizer": {"lr": 1.0}}, "expected tensors by name; 'optimizer' holds none"),
    ):
        write(path, {k: v for k, v in {**state, **change}.items() if v is not None})
        with pytest.raises(UserError, match=message):
            load_model(path)


class Hostile:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_nothing_in_a_file_is_executed(tmp_path):
    path, marker = tmp_path / "ema_0.9999_1.pt", tmp_path / "executed"
    torch.save({"weights": Hostile(marker)}, path)
    with pytest.raises(UserError, match="refused: it holds more than tensors"):
        read_tensors(str(path))
    assert not marker.exists()


@pytest.mark.parametrize("content", [{"args": argparse.Namespace(a=1)}, {"net": torch.nn.Linear(2, 2)}])
def test_objects_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "ema_0.9999_1.pt")
    with pytest.raises(UserError, match="refused: it holds more than tensors"):
        read_tensors(str(tmp_path / "ema_0.9999_1.pt"))


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / "ema_0.9999_1.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for content in (b"plain text", whole[:1500]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"ema_0.9999_1.pt: refused: damaged or no torch file"):
            read_tensors(str(path))
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UserError, match="expected a dictionary of tensors, got list"):
        read_tensors(str(path))
    with pytest.raises(UserError, match="no such file"):
        read_tensors(str(tmp_path / "absent.pt"))


@pytest.mark.parametrize("name", ["model.pt", "a.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer .* `git lfs pull`"),
        (b"\n<!DOCTYPE html><html></html>", "a web page in place of the file"),
        (b'{"model": {}}', "text, such as JSON"),
        (b"\x1f\x8b\x08\x00rest", "an archive, to be unpacked first"),
        (b"\x89HDF\r\n", "an HDF5 file"),
    ],
)
def test_files_that_are_no_weights_are_called_by_their_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: refused: {message}") as caught:
        load_model(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_archives_programs_and_folders_are_no_weights(tmp_path):
    np.savez(tmp_path / "codes.npz", z=np.zeros(3))
    with tarfile.open(tmp_path / "all.pt", "w") as archive:
        archive.add(tmp_path / "codes.npz", "codes.npz")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "program.pt")
    for name, message in (
        ("codes.npz", "refused: an archive, to be unpacked first"),
        ("all.pt", "refused: an archive, to be unpacked first"),
        ("program.pt", "refused: a TorchScript program"),
        (".", "is a folder; expected a weight file"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(str(tmp_path / name))


def named(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("beside", [True, False], ids=["config.json", "bare"])
@pytest.mark.parametrize(
    "wrap",
    [
        *map(named, ("module.", "_orig_mod.", "module._orig_mod.", "ema_model.", "model.")),
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 1.0}},
        lambda state: {"ema": named("module.")(state)},
        lambda state: {"model": state, "statistics": {"mean": torch.zeros(3)}},
        lambda state: {"pytorch-lightning_version": "2", "state_dict": {"w": torch.zeros(1)} | named("model.")(state)},
        lambda state: {name: tensor.double() for name, tensor in state.items()},
    ],
)
def test_weights_within_what_others_write_around_them(tmp_path, wrap, beside):
    if beside:
        model, _ = run_folder(tmp_path)
        state, fields = model.to_official(model.state_dict()), {}
    else:
        state, fields = released_state(64, "det"), {"schedule": "vp"}
    torch.save(wrap(state), tmp_path / "any name.bin")
    loaded = load_model(str(tmp_path / "any name.bin"), **fields)
    found = loaded.to_official(loaded.state_dict())
    assert found.keys() == state.keys() and all(torch.equal(found[n], state[n]) for n in state)


def test_several_sets_of_weights_are_refused_by_name(tmp_path):
    model, _ = run_folder(tmp_path)
    state, path = model.to_official(model.state_dict()), str(tmp_path / "both.pt")
    for other in ("ema", "average"):
        torch.save({"model": state, other: state}, path)
        with pytest.raises(
            UserError, match=rf"several sets of weights that fit \(model, {other}\); save the right one"
        ):
            load_model(path)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save(named("model.")(zeros) | named("ema_model.")(state), path)  # the average, as in DiffAE's official files
    assert torch.equal(load_model(path).state_dict()["unet.out.2.bias"], state["out.2.bias"])


def test_files_whose_names_mislead(tmp_path):
    model, path = run_folder(tmp_path)
    save_weights(str(tmp_path / "a.safetensors"), model, config_content(model, "toyfaces"))
    os.rename(path, tmp_path / "torch.safetensors")
    os.rename(tmp_path / "a.safetensors", tmp_path / "safe.pt")
    for name in ("torch.safetensors", "safe.pt"):
        assert load_model(str(tmp_path / name)).config == model.config


def test_half_precision_becomes_float32_and_other_numbers_are_refused(tmp_path):
    model, path = run_folder(tmp_path)
    state = model.to_official(model.state_dict())
    floats = {n: v.bfloat16() if v.is_floating_point() else v for n, v in state.items()}
    torch.save(floats, path)
    assert {p.dtype for p in load_model(path).parameters()} == {torch.float32}
    bias = state["out.2.bias"]
    for wrong, message in (
        (bias.int(), "another kind of number for 1 tensors, e.g. 'out.2.bias'"),
        (bias.to_sparse(), "another kind of number"),
        (bias + 1j, "another kind of number"),
        (bias.double() * 0 + 1e300, "expected finite weights, 'out.2.bias' holds NaN or infinity"),
        (bias * torch.nan, "expected finite weights, 'out.2.bias' holds NaN or infinity"),
    ):
        torch.save({**state, "out.2.bias": wrong}, path)
        for load in (load_model, lambda path: load_weights(model, path)):
            with pytest.raises(UserError, match=message):
                load(path)
    assert torch.equal(model.state_dict()["unet.out.2.bias"], bias)  # as it was


@pytest.mark.parametrize("name", ["opt_000010.pt", "config.json", "."])
def test_other_files_of_a_run_are_refused_in_a_line(tmp_path, name):
    model, _ = run_folder(tmp_path)
    config = TrainConfig(total_steps=1, batch_size=1)
    state = TrainState.create(model, config, torch.device("cpu"), False)
    write(str(tmp_path / "opt_000010.pt"), {"optimizer": state.optimizer.state_dict(), "step": 10, "scaler": {}})
    for load in (load_model, state.restore_from):
        with pytest.raises(UserError, match=r"give the ema_ or model_ file|JSON|is a folder") as caught:
            load(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_only_complete_sets_count_and_steps_compare_as_numbers(tmp_path):
    def touch(step, prefix="", kinds=("model", "ema_0.9999", "opt")):
        for kind in kinds:
            (tmp_path / f"{prefix}{kind}_{step:06d}.pt").touch()

    touch(999_999)
    touch(1_000_000, "freq_")
    touch(1_200_000, kinds=("model", "ema_0.9999"))
    (tmp_path / "opt_1200000.pt.1234.tmp").touch()
    assert complete_sets(str(tmp_path), 0.9999) == [(999_999, ""), (1_000_000, "freq_")]
    assert complete_sets(str(tmp_path), 0.999) == []
    assert complete_sets(str(tmp_path / "absent"), 0.9999) == []


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"earlier")
    with pytest.raises(RuntimeError), atomic_write(str(path)) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"earlier" and os.listdir(tmp_path) == ["file"]


def test_a_failed_write_names_its_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left.*weights\.pt"), atomic_write(str(tmp_path / "weights.pt")):
        raise OSError(28, "No space left on device")


def test_load_model_takes_a_path_object(tmp_path):
    _, path = run_folder(tmp_path)
    assert load_model(Path(path)).config == load_model(path).config


def test_config_json_holds_everything(tmp_path):
    model, _ = run_folder(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["dataset"] == "toyfaces" and content["model"]["latent_dim"] == model.config.latent_dim
    assert content["train"]["ema_rate"] == 0.9999
    assert isinstance(load_model(str(tmp_path / "ema_0.9999_000010.pt")), DBAE)
