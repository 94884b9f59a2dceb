"""Configurations, presets and command lines."""

import dataclasses
import json

import pytest

from dbae.config import PRESETS, ModelConfig, SampleConfig, TrainConfig, from_json, preset
from dbae.errors import UserError
from scripts import dbae_reconstruction, dbae_train
from scripts.cli import Parser


@pytest.mark.parametrize(
    ("dataset", "size", "channels", "mult", "encoder_mult"),
    [
        ("ffhq", 128, 128, (1, 1, 2, 3, 4), (1, 1, 2, 3, 4, 4)),
        ("celebahq", 128, 128, (1, 1, 2, 3, 4), (1, 1, 2, 3, 4, 4)),
        ("bedroom", 128, 128, (1, 1, 2, 3, 4), (1, 1, 2, 3, 4, 4)),
        ("horse", 128, 128, (1, 1, 2, 3, 4), (1, 1, 2, 3, 4, 4)),
        ("celeba", 64, 64, (1, 2, 4, 8), (1, 2, 4, 8, 8)),
        ("ffhq256", 256, 128, (1, 1, 2, 2, 4, 4), (1, 1, 2, 2, 4, 4, 4)),
    ],
)
def test_published_presets(dataset, size, channels, mult, encoder_mult):
    model, training = preset(ModelConfig, dataset, {}), preset(TrainConfig, dataset, {})
    assert (model.image_size, model.num_channels, model.latent_dim) == (size, channels, 512)
    assert (model.channel_mult, model.encoder_mult) == (mult, encoder_mult)
    assert (model.dropout, model.end_data, model.decoder_channels) == (0.1, 0.5, 64)
    assert (training.lr, training.ema_rate, training.weight_decay) == (1e-4, 0.9999, 0.0)
    assert (training.batch_size, training.microbatch, training.total_steps) == (256, 32, 1_020_000)


@pytest.mark.parametrize("dataset", [*(set(PRESETS) - {"folder"}), "folder:some/where"])
def test_every_preset_is_valid_and_survives_json(dataset):
    for cls in (ModelConfig, TrainConfig):
        config = preset(cls, dataset, {})
        assert from_json(cls, json.loads(json.dumps(dataclasses.asdict(config))), "here") == config


def test_rows_name_only_fields():
    fields = {f.name for cls in (ModelConfig, TrainConfig) for f in dataclasses.fields(cls)}
    assert all(row.keys() <= fields for row in PRESETS.values())


def test_another_size_gets_that_size_multipliers():
    assert preset(ModelConfig, "toyfaces", {"image_size": 64}).channel_mult == (1, 2, 4, 8)
    assert preset(ModelConfig, "toyfaces", {"image_size": 64, "channel_mult": (1, 1)}).channel_mult == (1, 1)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (ModelConfig, {"image_size": 48}),
        (ModelConfig, {"num_channels": 48}),
        (ModelConfig, {"schedule": "vpx"}),
        (ModelConfig, {"latent_dim": 0}),
        (ModelConfig, {"dropout": 1.0}),
        (ModelConfig, {"image_size": 32, "channel_mult": (1,) * 6}),
        (ModelConfig, {"decoder_channels": 3}),
        (TrainConfig, {"batch_size": 0}),
        (TrainConfig, {"microbatch": 0}),
        (TrainConfig, {"lr": float("nan")}),
        (TrainConfig, {"ema_rate": 1.0}),
        (TrainConfig, {"seed": -1}),
        (SampleConfig, {"churn_step_ratio": 1.0}),
        (SampleConfig, {"steps": 0}),
        (SampleConfig, {"rho": 0.0}),
        (SampleConfig, {"guidance": float("nan")}),
    ],
)
def test_values_that_cannot_be(cls, values):
    with pytest.raises(UserError, match=f"{list(values)[-1]}: expected .*, got"):
        cls(**values)


TRAIN = ["--dataset=celeba", "--schedule=vp", "--stochastic=true"]


def test_spellings_of_options():
    for words in (["--batch_size", "32"], ["--batch-size=32"], ["--batch_size=32"], ["--batch-size", "32"]):
        assert dbae_train.parse([*TRAIN, *words])[2].batch_size == 32
    assert dbae_train.parse(["--dataset=celeba", "--pred_mode=ve", "--sto=True"])[1].schedule == "ve"
    for words, value in ((["--flip=false"], False), (["--flip"], True), (["--flip", "true"], True)):
        assert dbae_train.parse([*TRAIN, *words])[2].flip is value
    assert dbae_train.parse([*TRAIN, "--channel_mult=1,2"])[1].channel_mult == (1, 2)
    assert dbae_train.parse([*TRAIN, "--data_dir=--x-y"])[0].data_dir == "--x-y"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr=fast"], "--lr: expected a number, got 'fast'"),
        (["--batch_size=1.5"], "--batch_size: expected a whole number, got '1.5'"),
        (["--flip=maybe"], "--flip: expected true or false, got 'maybe'"),
        (["--channel_mult=a"], "--channel_mult: expected whole numbers like 1,2,4, got 'a'"),
        (["--precision=int8"], "--precision: invalid choice: 'int8'"),
        (["--no_such_option=1"], "unrecognized arguments: --no_such_option=1"),
        (["--batch_s=4"], "unrecognized arguments"),
    ],
)
def test_wrong_options_end_with_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        dbae_train.parse([*TRAIN, *words])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("module", [dbae_train, dbae_reconstruction])
def test_every_option_is_described(module, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(Parser, "parse_args", lambda self, args=None: seen.append(self) or (_ for _ in ()).throw(Done))
    with pytest.raises(Done):
        module.main()
    actions = [action for action in seen[0]._actions if action.dest != "help"]
    assert len(actions) > 15 and all(action.help for action in actions)


class Done(Exception):
    pass
