"""DDAE's configurations, official files and commands."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import tiny
import torch
from conftest import ROOT

from dbae import DDAE, TrainConfig, load_model
from dbae.config import UserError
from dbae.methods import METHODS, preset
from dbae.methods.ddae import EDMDDAE
from dbae.methods.ddae_config import PRESETS, DDPMConfig, EDMConfig, sigma_of_step
from scripts import convert, sample, train
from scripts.encoding import noise_settings
from scripts.trained import TrainedModel

NETWORKS = {
    "ddpm": {
        "ch_mults": [1, 2, 2, 2],
        "is_attn": [False, True, False, False],
        "n_blocks": 2,
        "use_res_for_updown": False,
    },
    "ddpmpp": {"ch_mults": [2, 2, 2], "is_attn": [False, True, False], "n_blocks": 4, "use_res_for_updown": True},
}
SMALL = {"image_size": 8, "num_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "attention_sizes": (4,)}
SMALL |= {"dropout": 0.0, "feature_block": "out_2"}
FLAGS = [f"--{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in SMALL.items()]


def yaml_text(row, **changes):
    """An official configuration as text, which as JSON is yaml, too."""
    kind, net, *aug = row.split("_")
    edm, big = kind == "EDM", net == "ddpmpp"
    content = {
        "save_dir": f"output_{row}",
        "model_type": kind,
        "network": {
            "image_shape": [3, 32, 32], "n_channels": 128, "dropout": 0.13 if edm else 0.1, **NETWORKS[net],
            **({"augment_dim": 9} if aug else {}),
        },
        "dataset": "cifar", "n_epoch": 4000 if aug else 2000, "warm_epoch": 200 if edm else 13,
        "batch_size": 64 if big else 128, "lrate": 1e-4,
        "ema": 0.9993 if edm else 0.9999, "flip": True, "load_epoch": -1,
        "linear": {"timestep": 4 if edm else 11, "blockname": "out_7" if edm else "out_6", "n_epoch": 15},
    }  # fmt: skip
    return json.dumps({**content, **changes})


@pytest.mark.parametrize("row", [name for rows in PRESETS.values() for name in rows if "ddpm" in name])
def test_official_yaml_files_are_the_presets(tmp_path, row):
    path = tmp_path / f"{row}.yaml"
    path.write_text(yaml_text(row))
    cls = DDAE.variant(row)
    assert cls is DDAE.variant(str(path)) is (EDMDDAE if row.startswith("EDM") else DDAE)
    for config in (cls.Config, TrainConfig):
        assert preset(cls, config, str(path), {}) == preset(cls, config, row, {})
    assert cls.preset_row(str(path))["dataset"] == "cifar10"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {"image_shape": [1, 32, 32]}}, "image_shape"),
        ({"network": {**json.loads(yaml_text("DDPM_ddpm"))["network"], "is_attn": [True]}}, "is_attn"),
        ({"network": 3}, "network"),
        ({"dataset": "mnist"}, "dataset"),
        ({"model_type": "VDM"}, "DDPM"),
        ({"n_T": 500}, "n_T"),
        ({"n_epoch": "many"}, "many"),
        ({"network": {**json.loads(yaml_text("DDPM_ddpm"))["network"], "surprise": 1}}, "surprise"),
    ],
)
def test_other_yaml_files_are_refused(tmp_path, changes, said):
    path = tmp_path / "my.yaml"
    path.write_text(yaml_text("DDPM_ddpm", **changes))
    with pytest.raises(UserError, match=said):
        DDAE.variant(str(path)).preset_row(str(path))


def test_settings_that_are_not_used_are_named(tmp_path, caplog):
    path = tmp_path / "DDPM.yaml"
    path.write_text(yaml_text("DDPM_ddpm", num_workers=4, betas=[1e-4, 0.02]))
    assert DDAE.preset_row(str(path)) and DDAE.preset_row(str(path))
    assert len(caplog.messages) == 1 and "num_workers" in caplog.text and "betas" not in caplog.text


def test_a_yaml_file_makes_no_objects(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text(f"network: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(UserError):
        DDAE.preset_row(str(path))
    assert not (tmp_path / "made").exists()


def official_file(path, model):
    """What the official code saves: the weights three times, and Adam's state."""
    state = model.to_official(model.state_dict())
    live = {name: value + 1 for name, value in state.items()}
    average = {"initted": torch.tensor(True), "step": torch.tensor([7])}
    average |= {f"online_model.{name}": value for name, value in live.items()}
    average |= {f"ema_model.{name}": value for name, value in state.items()}
    adam = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"MODEL": {f"module.{name}": value for name, value in live.items()}, "EMA": average, "opt": adam}, path)


@pytest.mark.parametrize("cls", [DDAE, EDMDDAE])
def test_official_checkpoints(tmp_path, cls):
    """The average is read; the framework comes from the configuration alone."""
    torch.manual_seed(0)
    model, path, row = cls(cls.Config(**SMALL)), str(tmp_path / "model_1999.pth"), "DDPM_ddpm"
    row = "EDM_ddpm" if cls is EDMDDAE else "DDPM_ddpm"
    official_file(path, model)
    loaded = load_model(path, "ddae", row, **SMALL)
    assert type(loaded) is cls and loaded.config == model.config
    # Results of such a file name its configuration, which it does not state itself
    typed = TrainedModel(loaded, loaded.SAMPLING)
    about = {"method": loaded.method, "model": json.loads(json.dumps(asdict(loaded.config)))}
    assert typed.identity().items() >= about.items() <= noise_settings(typed, 1.0).items()
    assert typed.untrained(0).model.unstated == about
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )

    flat = str(tmp_path / "flat.pt")
    torch.save(model.to_official(model.state_dict()), flat)
    assert type(load_model(flat, "ddae", row, **SMALL)) is cls
    with pytest.raises(UserError, match="configuration"):
        load_model(flat, "ddae", **SMALL)
    with pytest.raises(UserError, match="does not fit"):
        load_model(flat, "ddae", row, **{**SMALL, "residual_resampling": True})
    with pytest.raises(UserError, match="DDPM_ddpm"):
        load_model(flat, "ddae", "celeba")


def test_conversion(tmp_path):
    """There and back; the configuration travels with the file."""
    torch.manual_seed(0)
    model = EDMDDAE(preset(EDMDDAE, EDMConfig, "EDM_small", {}))
    official_file(tmp_path / "model_1.pth", model)
    safe, back = tmp_path / "model.safetensors", tmp_path / "back" / "ema_0.9993_000001.pt"
    common = ["--method=ddae", "--dataset=EDM_small"]
    convert.main([*common, f"--model_path={tmp_path}/model_1.pth", f"--out={safe}"])
    (tmp_path / "back").mkdir()
    convert.main([f"--model_path={safe}", f"--out={back}"])
    for path in (safe, back):
        loaded = load_model(path)
        assert type(loaded) is EDMDDAE and loaded.config == model.config
        assert torch.equal(loaded.unet.final.weight, model.unet.final.weight)
    assert type(load_model(back, "ddae")) is EDMDDAE and not load_model(back, "ddae").unstated
    with pytest.raises(UserError, match="ddae_edm"):
        load_model(back, "ddae", "DDPM_small")


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_channels": 48},
        {"image_size": 30},
        {"channel_mult": ()},
        {"attention_sizes": (7,)},
        {"head_channels": 7},
        {"feature_block": "out_13"},
        {"feature_time": 0},
        {"dropout": 1.0},
        {"ddim_schedule": "other"},
    ],
)
def test_settings_that_do_not_fit(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        DDPMConfig(**wrong)


def test_steps_of_edm():
    assert [round(sigma_of_step(step), 5) for step in (0, 1, 4, 18)] == [0, 0.002, 0.05995, 80]
    with pytest.raises(UserError, match="step"):
        sigma_of_step(19)
    assert EDMConfig().feature_time == sigma_of_step(4)
    with pytest.raises(UserError, match="feature_time"):
        EDMConfig(feature_time=81)


@pytest.fixture(scope="module", params=["DDPM_toyfaces", "EDM_toyfaces"])
def run(request, tmp_path_factory):
    """A few steps of training, as the launcher calls it."""
    folder = tmp_path_factory.mktemp("runs")
    words = [
        "--method=ddae", f"--config={request.param}", f"--workdir={folder}", "--device=cpu", "--quiet", *FLAGS,
        "--total_steps=4", "--batch_size=4", "--num_workers=0", "--split_range=0:8", "--sample_interval=4",
        f"--augment={'true' if request.param == 'EDM_toyfaces' else 'false'}",
    ]  # fmt: skip
    train.main(words)
    (made,) = folder.iterdir()
    return request.param, made, words


def test_training(run, capsys):
    name, folder, words = run
    assert folder.name == f"{name}_toyfaces"
    config = json.loads((folder / "config.json").read_text())
    assert config["method"] == DDAE.variant(name).method and config["dataset"] == "toyfaces"
    assert config["train"]["ema_rule"] == "inverse-power" and config["train"]["optimizer"] == "adam"
    assert (folder / "samples" / "000004.png").stat().st_size
    model = load_model(folder / "ema_0.9999_000004.pt")
    x = tiny.images(2)[:, :, :8, :8]
    assert type(model) is DDAE.variant(name) and model.encode(x).shape == (2, 32)
    train.main([*words, "--epochs=3"])  # goes on, through 8 images three times
    assert (folder / "ema_0.9999_000006.pt").exists()


def test_sampling(run):
    name, folder, _ = run
    common = ["--method=ddae", f"--config={name}", f"--model_path={folder}/ema_0.9999_000004.pt", "--device=cpu"]
    sampler = ["--sampler=ddim", "--eta=0.5"] if name.startswith("DDPM") else ["--sampler=edm", "--eta=1"]
    sample.main([*common, *sampler, "--steps=5", "--num=3"])
    (made,) = [each for each in (folder / "sample_4").iterdir() if each.name.startswith("generated_noise")]
    first = {path.name: path.read_bytes() for path in made.glob("0*.png")}
    assert sorted(first) == ["000000.png", "000001.png", "000002.png"]
    (made / "000001.png").unlink()
    sample.main([*common, *sampler, "--steps=5", "--num=4", "--batch_size=2"])  # what is missing, as it was
    again = {path.name: path.read_bytes() for path in made.glob("0*.png")}
    assert len(again) == 4 and {name: again[name] for name in first} == first
    dbae = str(next((ROOT / "ckpt/toyfaces/det").glob("ema_*.pt")))
    with pytest.raises(UserError, match=r"config: expected with a model of DDAE, .* is of dbae"):
        sample.main([f"--config={name}", f"--model_path={dbae}", "--num=1"])
    other = "EDM_small" if name.startswith("DDPM") else "DDPM_small"
    with pytest.raises(UserError, match="method"):
        sample.main([*(word.replace(name, other) if "--config" in word else word for word in common), "--num=1"])


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("train.sh", ["DDPM_small", "--dry_run"], '"dataset": "cifar10"'),
        (
            "sample.sh",
            ["EDM_small", "none.pt", "--dry_run", "--mode", "EDM", "--eta=0.5"],
            "generated_noise_edm_18_eta=0.5",
        ),
        ("sample.sh", ["DDPM_small", "none.pt", "--dry_run", "--mode=DDPM"], "generated_noise_ddpm_1000"),
        ("linear.sh", ["EDM_small", "none.pt", "--grid", "--dry_run"], '"how": "exact"'),
    ],
)
def test_launchers(script, words, said):
    done = subprocess.run(
        ["bash", str(ROOT / "ddae" / script), *words], capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "NPROC": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and said in done.stdout, done.stderr


def test_every_row_is_of_its_variant():
    for rows in PRESETS.values():
        for name in rows:
            assert name in DDAE.variant(name).PRESETS and METHODS["ddae_edm"].variant(name) is DDAE.variant(name)
