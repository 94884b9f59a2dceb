"""Checkpoints: names, round trips, bare released files, and files that must be refused."""

import argparse
import json
import os

import pytest
import tiny
import torch
from parity import released_state

from dbae.checkpoint import complete_sets, config_content, load_model, save_weights, step_of, write_config
from dbae.config import TrainConfig, UserError
from dbae.io import atomic_write, read_tensors
from dbae.io import write_tensors as write
from dbae.methods.dbae import DBAE, DBAEConfig


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
    with pytest.raises(UserError, match=r"method: .* is of dbae, got gan"):
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
    with pytest.raises(UserError, match="method: expected one of dbae, got 'gan'"):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object with"),
        ('{"model": 3}', "expected an object of settings"),
        ('{"model": {"depth": 3}}', "unknown setting 'depth'"),
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
    for content in (b"", b"plain text", whole[:1500]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"ema_0.9999_1.pt: refused: damaged or no torch file"):
            read_tensors(str(path))
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UserError, match="expected a dictionary of tensors, got list"):
        read_tensors(str(path))
    with pytest.raises(UserError, match="no such file"):
        read_tensors(str(tmp_path / "absent.pt"))


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


def test_config_json_holds_everything(tmp_path):
    model, _ = run_folder(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["dataset"] == "toyfaces" and content["model"]["latent_dim"] == model.config.latent_dim
    assert content["train"]["ema_rate"] == 0.9999
    assert isinstance(load_model(str(tmp_path / "ema_0.9999_000010.pt")), DBAE)
