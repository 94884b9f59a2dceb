"""A method of one's own: the class below is all that it takes; every program knows it as METHODS["toy"]."""

import json
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dbae import METHODS, load_model
from dbae.config import SampleConfig, option
from dbae.diffusion import Diffusion, Epsilon, LinearBeta
from dbae.methods import DiffusionModel
from scripts import encode, infer_class, train


@dataclass(frozen=True)
class ToyConfig:
    image_size: int = option(32, "height and width in pixels")
    width: int = option(8, "channels")
    name = property(lambda self: f"{self.image_size}_{self.width}")


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.label, self.time = nn.Linear(2, width), nn.Linear(1, width)
        self.one, self.two = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def named_blocks(self):
        return [("one", self.one), ("two", self.two)]

    def forward(self, x, t, y, blocks=None):
        emb, found = self.time(t[:, None] / 1000) + self.label(y), {}
        for name, block in self.named_blocks():
            x = found[name] = torch.tanh(block(x) + emb[:, :, None, None])
        return {name: found[name] for name in blocks} if blocks else self.last(x)


class Toy(DiffusionModel):
    method, Config, TARGETS, FEATURES = "toy", ToyConfig, "binary", ("two", 100)
    PRESETS = MappingProxyType({"folder": {"total_steps": 4, "batch_size": 8, "microbatch": 4, "optimizer": "adam"}})
    SAMPLING = SampleConfig("ddim", 10, grid="uniform")

    def __init__(self, config):
        super().__init__(config)
        self.process, self.precond, self.unet = Diffusion(LinearBeta()), Epsilon(), Net(config.width)

    def condition(self, x0=None, y=None):
        return {"y": torch.zeros(1, 2) if y is None else y}

    def network(self, x, c_noise, y, blocks=None):
        return self.compute("unet", x, c_noise, y.expand(len(x), -1), blocks=blocks)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Options for a small folder of labelled images."""
    folder, chance = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    rows = [f"{i}.png,{i % 2},{i // 2 % 2}" for i in range(60)]
    (folder / "labels.csv").write_text("\n".join(["file,odd,second", *rows]))
    for i in range(60):
        Image.fromarray(chance.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return [f"--dataset=folder:{folder}", "--method=toy", "--device=cpu", "--num_workers=0"]


@pytest.fixture(scope="module")
def run_dir(words, tmp_path_factory):
    """A run of the method, stopped half-way and resumed."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "toy", Toy)
        training = [*words, f"--workdir={folder}", "--log_interval=2", "--save_interval_for_preemption=2"]
        train.main([*training, "--total_steps=2"])
        train.main(training)
        (path,) = folder.iterdir()
        yield path


def test_it_trains_resumes_and_shows_samples(run_dir):
    assert json.loads((run_dir / "config.json").read_text())["method"] == "toy"
    assert len((run_dir / "progress.csv").read_text().splitlines()) == 3
    assert sorted(path.name for path in (run_dir / "samples").iterdir()) == ["000002.png", "000004.png"]


def test_it_loads_samples_and_yields_features(run_dir):
    model = load_model(str(run_dir / "ema_0.9999_000004.pt"))
    assert type(model) is Toy and not model.training
    made = [model.generate(3, torch.Generator().manual_seed(1), sampler=s, steps=5) for s in ("ddim", "dbim3", "ddpm")]
    assert all(images.shape == (3, 3, 32, 32) and images.abs().max() <= 1 for images in made)
    x, eps = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 3, 32, 32)
    t = torch.tensor([5, 900])
    x_t = model.process.marginal(x, t, eps)
    predicted = model.predict_noise(x_t, t, **model.condition())
    assert torch.allclose(model.unet(x_t, t.float(), torch.zeros(2, 2)), predicted, atol=1e-4)
    assert torch.allclose(
        model.loss(x, t=t, noise=eps), (predicted - eps).square().mean(dim=(1, 2, 3)), rtol=1e-3, atol=1e-5
    )
    features = model.features(x, 100, ["one", "two"])
    assert {name: value.shape for name, value in features.items()} == {"one": (2, 8), "two": (2, 8)}


def test_it_is_encoded_and_probed(run_dir, words, tmp_path):
    words = [*words, f"--model_path={run_dir / 'ema_0.9999_000004.pt'}"]
    encode.main([*words, "--split=all", f"--out={tmp_path / 'codes.npz'}"])
    assert np.load(tmp_path / "codes.npz")["z"].shape == (60, 8)
    infer_class.main([*words, "--solver=exact"])
    (path,) = (run_dir / "sample_4/downstream_inference").glob("*/results_model_exact.json")
    report = json.loads(path.read_text())
    assert report["images"] == {"train": 48, "valid": 6, "test": 6} and 0 < report["test"]["ap"] <= 1
