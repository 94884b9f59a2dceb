"""DiffAE's official files, of the layout of Lightning 1.4.5: read, converted, and never executed."""

import os
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from parity import FOLDER, worst

from dbae.checkpoint import load_model, read_codes
from dbae.config import UserError
from dbae.methods import DDIM, DiffAE, LatentPrior
from dbae.methods.codes import attribute_step
from dbae.methods.diffae import DiffAEConfig
from dbae.methods.prior import PriorConfig
from dbae.tensors import read_tensors
from eval.classifier import read_classifier
from scripts import convert

CONFIG = DiffAEConfig(image_size=32, num_channels=32, emb_channels=16, latent_dim=8)
PRIOR = PriorConfig(latent_dim=8, layers=3, width=16)
MODELS = {"diffae": (DiffAE, CONFIG), "ddim": (DDIM, DDIM.Config(image_size=32, num_channels=32, emb_channels=16))}


class Hostile:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def lightning(tmp_path):
    """Write a checkpoint; the class that keys its callbacks exists only meanwhile."""
    full = "pytorch_lightning.callbacks.model_checkpoint"

    def write(state, **more):
        key = type("ModelCheckpoint", (), {"__module__": full})
        names = ["pytorch_lightning", "pytorch_lightning.callbacks", full]
        content = {"epoch": 0, "global_step": 3, "pytorch-lightning_version": "1.4.5", "state_dict": state}
        content |= {"callbacks": {key: {"monitor": None, "best_model_score": None, "dirpath": "checkpoints"}}}
        content |= {"optimizer_states": [{"state": {0: {"step": 3}}}], "lr_schedulers": [], "hparams_name": "kwargs"}
        content |= {"native_amp_scaling_state": {"scale": 65536.0}, "hyper_parameters": {"img_size": 32}, **more}
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setitem(sys.modules, name, ModuleType(name))
            sys.modules[full].ModelCheckpoint = key
            torch.save(content, tmp_path / "last.ckpt")
        return str(tmp_path / "last.ckpt")

    return write


def autoencoder(method):
    """A model, and the tensors of its official file, whose live weights differ."""
    cls, config = MODELS[method]
    model = cls(config)
    ema = model.to_official(model.state_dict())
    state = {f"model.{name}": value + 1 for name, value in ema.items()}
    return model, state | {f"ema_model.{name}": value for name, value in ema.items()} | {
        "x_T": torch.zeros(2, 3, 32, 32)
    }


def latent():
    """An autoencoder, a prior, and the tensors of their official file."""
    model, state = autoencoder("diffae")
    prior = LatentPrior(PRIOR)
    prior.fit_statistics(torch.randn(20, 8))
    for name, value in prior.state_dict().items():
        if name.startswith("latent_net."):
            second = name.replace(".linear_emb.", ".cond_layers.1.")
            for each in {name, second}:
                state |= {f"ema_model.{each}": value, f"model.{each}": value + 1}
    return model, prior, state | {"conds_mean": prior.mean[None], "conds_std": prior.std[None]}


def assert_same(found, expected):
    assert type(found) is type(expected) and found.config == expected.config
    own, other = found.state_dict(), expected.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize("method", MODELS)
def test_the_average_of_an_autoencoder_or_baseline(lightning, tmp_path, method):
    model, state = autoencoder(method)
    path = lightning(state)
    assert_same(load_model(path, method=method), model)
    out = str(tmp_path / "own.safetensors")
    convert.main([f"--model_path={path}", f"--method={method}", f"--out={out}", "--dataset=toyfaces"])
    assert_same(load_model(out), model)
    for settings, message in (
        ({"dataset": "ffhq"}, "made for 32x32 images, but ffhq is 128x128"),
        ({"image_size": 64}, "image_size: .* was trained with 32, got 64"),
        ({"method": "prior"}, "not an official file with a latent prior"),
        ({"method": "ddim" if method == "diffae" else "diffae"}, "not a (ddim|diffae) checkpoint"),
        ({"method": "dbae"}, "not a DBAE checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(path, **{"method": method, **settings})
    del state["x_T"]
    path = lightning(state)
    with pytest.raises(UserError, match="image_size: needed for"):
        load_model(path, method=method)
    assert_same(load_model(path, method=method, image_size=32), model)


def test_one_file_of_an_autoencoder_and_its_prior(lightning, tmp_path):
    model, prior, state = latent()
    path = lightning(state)
    for method, expected in (("diffae", model), ("prior", prior)):
        for out in (tmp_path / f"{method}.safetensors", tmp_path / method / "ema_0.9999_000003.pt"):
            source = path if out.suffix == ".safetensors" else tmp_path / f"{method}.safetensors"
            convert.main([f"--model_path={source}", f"--method={method}", f"--out={out}"])
            assert_same(load_model(str(out)), expected)
    assert {"mean", "std"} < read_tensors(str(out)).keys()
    with pytest.raises(UserError, match="a prior 8d_3x16, but that of horse is 512d_20x2048"):
        load_model(path, method="prior", dataset="horse")
    second = "ema_model.latent_net.layers.1.cond_layers.1.bias"
    state[second] = state[second] + 1
    with pytest.raises(UserError, match=r"expected equal tensors under 'latent_net.layers.1.\w+"):
        load_model(lightning(state), method="prior")


@pytest.mark.parametrize("where", ["callbacks", "hyper_parameters"])
def test_nothing_else_in_it_is_unpickled(lightning, tmp_path, where):
    state, marker = autoencoder("ddim")[1], tmp_path / "executed"
    allowed = torch.serialization.get_safe_globals()
    for content in (Hostile(marker), {"a": torch.nn.Linear(1, 1)}, {PriorConfig: 1}):
        path = lightning(state, **{where: content})
        with pytest.raises(
            UserError, match=r"refused: .*more than tensors, and nothing in a file is executed"
        ) as caught:
            load_model(path, method="ddim")
        assert "\n" not in str(caught.value)
    load_model(lightning(state), method="ddim")
    assert not marker.exists() and torch.serialization.get_safe_globals() == allowed


def test_codes_of_a_training_set(tmp_path):
    z, path = torch.randn(5, 8), str(tmp_path / "latent.pkl")
    torch.save({"conds": z, "conds_mean": z.mean(0), "conds_std": z.std(0)}, path)
    assert all(map(torch.equal, read_codes(path), (z, z.mean(0), z.std(0))))
    for wrong in ({"conds": z}, {"conds": z, "conds_mean": z[0, :3], "conds_std": z.std(0)}):
        torch.save(wrong, tmp_path / "wrong.pkl")
        with pytest.raises(UserError, match=r"wrong.pkl: expected codes, their mean and std"):
            read_codes(str(tmp_path / "wrong.pkl"))


def test_a_classifier_of_normalised_codes(lightning):
    vectors = np.load(FOLDER / "diffae.npz")
    z, mean, std = (torch.from_numpy(vectors[name]) for name in ("net/64/z", "zstats/mean", "zstats/std"))
    w = torch.from_numpy(np.random.Generator(np.random.PCG64(320)).standard_normal(512, dtype=np.float32))
    weight, bias = torch.stack([w, -2 * w]), torch.tensor([0.5, -1.0])
    state = {"classifier.weight": weight, "classifier.bias": bias, "conds_mean": mean[None], "conds_std": std[None]}
    state |= {"ema_classifier.weight": 0 * weight, "ema_classifier.bias": 0 * bias}
    found = read_classifier(lightning(state), 512)
    assert worst(z @ found.weight.T + found.bias, (z - mean) / std @ weight.T + bias) < 1e-5
    step = attribute_step(found.weight[0], found.known("std"))
    assert worst(z + 0.3 * step, torch.from_numpy(vectors["manipulate/z"])) < 1e-5
    for change, message in (
        ({"conds_std": 0 * std[None]}, "expected finite numbers"),
        ({"conds_mean": mean[None, :9]}, "expected classifier.weight, .* that fit together"),
        ({"classifier.bias": bias[:1]}, "expected classifier.weight, .* that fit together"),
        ({"classifier.weight": 3}, "expected classifier.weight"),
    ):
        with pytest.raises(UserError, match=message):
            read_classifier(lightning(state | change), 512)
    with pytest.raises(UserError, match="reads codes of 512 numbers, the model's have 64"):
        read_classifier(lightning(state), 64)
