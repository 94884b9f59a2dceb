"""Configurations, presets and command lines."""

import dataclasses
import json

import pytest

from dbae.config import SampleConfig, TrainConfig, UserError, from_json
from dbae.methods import DBAE, METHODS, preset
from dbae.methods.dbae import DBAEConfig
from scripts import reconstruct, train
from scripts.cli import Parser, peek

ROWS = [(method, row) for method in METHODS.values() for row in method.PRESETS]


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
    model, training = preset(DBAE, DBAEConfig, dataset, {}), preset(DBAE, TrainConfig, dataset, {})
    assert (model.image_size, model.num_channels, model.latent_dim) == (size, channels, 512)
    assert (model.channel_mult, model.encoder_mult) == (mult, encoder_mult)
    assert (model.dropout, model.end_data, model.decoder_channels) == (0.1, 0.5, 64)
    assert (training.optimizer, training.lr, training.weight_decay, training.clip) == ("radam", 1e-4, 0.0, 0.0)
    assert (training.ema_rate, training.resolved().ema_rule, training.lr_warmup) == (0.9999, "constant", 0)
    assert (training.batch_size, training.total_steps) == (256, 1_020_000)
    assert training.microbatch == (16 if size == 256 else 32)


@pytest.mark.parametrize(("method", "row"), ROWS, ids=lambda each: getattr(each, "method", each))
def test_every_preset_is_valid_and_survives_json(method, row):
    fields = {f.name for cls in (method.Config, TrainConfig) for f in dataclasses.fields(cls)}
    assert method.PRESETS[row].keys() <= fields | {"dataset"}
    for cls in (method.Config, TrainConfig):
        config = preset(method, cls, "folder:some/where" if row == "folder" else row, {})
        assert from_json(cls, json.loads(json.dumps(dataclasses.asdict(config))), "here") == config


def test_another_size_gets_that_size_multipliers():
    assert preset(DBAE, DBAEConfig, "toyfaces", {"image_size": 64}).channel_mult == (1, 2, 4, 8)
    assert preset(DBAE, DBAEConfig, "toyfaces", {"image_size": 64, "channel_mult": (1, 1)}).channel_mult == (1, 1)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (DBAEConfig, {"image_size": 48}),
        (DBAEConfig, {"num_channels": 48}),
        (DBAEConfig, {"schedule": "vpx"}),
        (DBAEConfig, {"latent_dim": 0}),
        (DBAEConfig, {"dropout": 1.0}),
        (DBAEConfig, {"image_size": 32, "channel_mult": (1,) * 6}),
        (DBAEConfig, {"decoder_channels": 3}),
        (DBAEConfig, {"end_data": float("nan")}),
        (DBAEConfig, {"end_data": 1e200}),  # whose square is no number
        (DBAEConfig, {"sigma_data": 1e-200}),
        (TrainConfig, {"batch_size": 0}),
        (TrainConfig, {"microbatch": 0}),
        (TrainConfig, {"lr": float("nan")}),
        (TrainConfig, {"ema_rate": 1.0}),
        (TrainConfig, {"ema_rule": "linear"}),
        (TrainConfig, {"optimizer": "sgd"}),
        (TrainConfig, {"clip": -1.0}),
        (TrainConfig, {"seed": -1}),
        (TrainConfig, {"compile": "yes"}),
        (SampleConfig, {"churn": 1.0}),
        (SampleConfig, {"steps": 0}),
        (SampleConfig, {"rho": 0.0}),
        (SampleConfig, {"guidance": float("nan")}),
        (SampleConfig, {"sampler": "rk4"}),
        (SampleConfig, {"grid": "cosine"}),
        (SampleConfig, {"sampler": "dbim", "eta": 1.5}),
        (SampleConfig, {"sampler": "dbim", "eta": float("nan")}),
        (SampleConfig, {"sampler": "dbim", "churn": 0.33}),
        (SampleConfig, {"sampler": "dbim3", "guidance": 2.0}),
        (SampleConfig, {"sampler": "dbim2", "eta": 0.3}),
        (SampleConfig, {"sampler": "euler", "eta": 0.3}),
        (SampleConfig, {"sampler": "heun", "boot": True}),
        (SampleConfig, {"sampler": "one-step", "boot": True}),
        (SampleConfig, {"sampler": "ddim", "S_churn": 1.0}),
    ],
)
def test_values_that_cannot_be(cls, values):
    with pytest.raises(UserError, match=f"{list(values)[-1]}: expected .*, got"):
        cls(**values)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "euler_7.0_100_w=1.0_churn=0.0"),
        ({"sampler": "heun", "steps": 167, "churn": 0.33}, "heun_7.0_167_w=1.0_churn=0.33"),
        ({"grid": "uniform"}, "euler_7.0_100_w=1.0_churn=0.0_grid=uniform"),
        ({"sampler": "dbim", "steps": 5}, "dbim_7.0_5_w=1.0_churn=0.0"),
        ({"sampler": "dbim", "eta": 0.3, "boot": True}, "dbim_7.0_100_w=1.0_churn=0.0_eta=0.3_boot=true"),
    ],
)
def test_folder_names_of_sampling_settings(values, name):
    assert DBAE.result_name(SampleConfig(**values)) == name


def test_recorded_settings_are_those_that_count():
    assert SampleConfig("dbim", 3, eta=0.5).as_dict() == {
        "sampler": "dbim", "steps": 3, "grid": "karras", "rho": 7.0, "xT": "inferred", "inversion_steps": 0, "eta": 0.5,
        "boot": False,
    }  # fmt: skip
    json.loads(json.dumps(SampleConfig("edm").as_dict()), parse_constant=pytest.fail)


TRAIN = ["--dataset=celeba", "--schedule=vp", "--stochastic=true"]


def test_spellings_of_options():
    for words in (["--batch_size", "32"], ["--batch-size=32"], ["--batch_size=32"], ["--batch-size", "32"]):
        assert train.parse([*TRAIN, *words])[2].batch_size == 32
    assert train.parse(["--dataset=celeba", "--pred_mode=ve", "--sto=True"])[1].schedule == "ve"
    for words, value in ((["--flip=false"], False), (["--flip"], True), (["--flip", "true"], True)):
        assert train.parse([*TRAIN, *words])[2].flip is value
    for text, value in (("yes", True), ("no", False), ("1", True), ("0", False), ("TRUE", True)):
        assert train.parse([*TRAIN, "--flip", text])[2].flip is value
    for words, value in ((["--compile"], "true"), (["--compile=graphs"], "graphs"), (["--compile", "false"], "false")):
        assert train.parse([*TRAIN, *words])[2].compile == value
    assert train.parse([*TRAIN, "--channel_mult=1,2"])[1].channel_mult == (1, 2)
    assert train.parse([*TRAIN, "--data_dir=--x-y"])[0].data_dir == "--x-y"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr=fast"], "--lr: expected a number, got 'fast'"),
        (["--batch_size=1.5"], "--batch_size: expected a whole number, got '1.5'"),
        (["--flip=maybe"], "--flip: expected true or false (or yes, no, 1, 0), got 'maybe'"),
        (["--channel_mult=a"], "--channel_mult: expected whole numbers like 1,2,4, got 'a'"),
        (["--precision=int8"], "--precision: invalid choice: 'int8'"),
        (["--no_such_option=1"], "unrecognized arguments: --no_such_option=1"),
        (["--batch_s=4"], "unrecognized arguments"),
    ],
)
def test_wrong_options_end_with_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        train.parse([*TRAIN, *words])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1
    with pytest.raises(UserError, match="method: expected one of dbae"):
        train.parse([*TRAIN, "--method=gan"])


@pytest.mark.parametrize("module", [train, reconstruct])
def test_every_option_is_described(module, monkeypatch):
    seen = []
    monkeypatch.setattr(Parser, "parse_args", lambda self, args=None: seen.append(self) or (_ for _ in ()).throw(Done))
    with pytest.raises(Done):
        module.main([])
    actions = [action for action in seen[0]._actions if action.dest != "help"]
    assert len(actions) > 15 and all(action.help for action in actions)


class Done(Exception):
    pass


def test_home_folder_in_values(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser("")
    for name in ("--a", "--b", "c"):
        parser.add_argument(name)
    found = parser.parse_args(["--a=~/x", "--b", "folder:~/x", "~/x"])
    assert (found.a, found.b, found.c) == ("/home/me/x", "folder:/home/me/x", "/home/me/x")
    assert peek(["--model-path=~/x"], "model_path") == "/home/me/x"


def test_errors_are_one_line():
    assert str(UserError("a\nb\x1b[1m\u00e9\\n")) == r"a\nb\x1b[1mé\n"
