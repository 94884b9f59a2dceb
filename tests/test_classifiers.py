"""Training of classifiers on images that are drawn anew every epoch."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lmdb_fixtures import image_folder
from torch import nn

from datasets import labelled_splits
from datasets.loader import CachedImages
from dbae import runtime
from dbae.config import UserError
from dbae.io import write_json
from scripts.classifiers import Recipe, Training, accuracies, cosine, logits
from scripts.labelled import batch_of, crop_and_flip, drawn, read, spread
from scripts.results import begin

CPU = torch.device("cpu")


@pytest.fixture
def data():
    """Bright and dark images, two classes of a line."""
    rng = np.random.default_rng(0)
    classes = torch.from_numpy(rng.integers(2, size=70))
    images = torch.from_numpy(rng.integers(0, 100, size=(70, 3, 8, 8))) + 150 * classes[:, None, None, None]
    return CachedImages(images.byte(), torch.arange(70)), classes


def noisy(x, generator):
    """The mean of a noisy image, under both names."""
    from dbae.io import randn_like

    mean = (x + 0.1 * randn_like(x, generator)).mean(dim=(2, 3))
    return {"a": (mean,), "b.1": (-mean,)}


def made(path, **changes):
    torch.manual_seed(3)
    settings = {"epochs": 4, "batch_size": 16, "optimizer": partial(torch.optim.Adam, lr=0.1), "factor": cosine(4)}
    recipe = Recipe(**{**settings, "crop": 2, **changes})
    return Training({"a": nn.Linear(3, 2), "b.1": nn.Linear(3, 2)}, recipe, CPU, str(path), {"lr": 0.1})


def weights(training):
    return [p.detach().clone() for network in training.classifiers.values() for p in network.parameters()]


def test_all_classifiers_learn(tmp_path, data):
    training = made(tmp_path / "state.pt")
    training.run(*data, noisy, lambda c: accuracies(logits(c, data[0], noisy, CPU, desc=""), data[1]), True)
    assert [entry["epoch"] for entry in training.history] == [1, 2, 3, 4]
    assert training.history[-1]["a"] == training.history[-1]["b.1"] == 1.0


@pytest.mark.parametrize("ema_rate", [0.0, 0.9])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, data, ema_rate, monkeypatch):
    whole = made(tmp_path / "whole.pt", ema_rate=ema_rate)
    whole.run(*data, noisy, quiet=True)

    calls = []

    def interrupting(x, generator):
        calls.append(len(x))
        if len(calls) == 7:
            stop.signum = 15
        return noisy(x, generator)

    stop = runtime.Stop()
    monkeypatch.setattr(runtime, "Stop", lambda: stop)
    first = made(tmp_path / "part.pt", ema_rate=ema_rate)
    assert not first.restore()  # there is no file yet
    with pytest.raises(SystemExit, match="143"):
        first.run(*data, interrupting, quiet=True)
    assert first.step == 7
    monkeypatch.undo()
    second = made(tmp_path / "part.pt", ema_rate=ema_rate)
    assert second.restore() and second.step == 7
    second.run(*data, noisy, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))
    average = weights(whole)
    assert (ema_rate == 0) == all(torch.equal(a, b) for a, b in zip(average, whole.networks.parameters(), strict=True))


def test_another_training_is_refused(tmp_path, data):
    made(tmp_path / "state.pt").save()
    other = made(tmp_path / "state.pt")
    other.settings["lr"] = 0.2
    with pytest.raises(UserError, match="another lr"):
        other.restore()


def test_a_finished_or_damaged_report(tmp_path):
    """It ends a program; of other settings or damaged it is refused, and replaced only if that is asked for."""
    report, state = tmp_path / "report.json", tmp_path / "state.pt"

    def started(overwrite=False, **settings):
        options = SimpleNamespace(check=1, overwrite=overwrite)
        return begin(made(state), str(report), [], [], options, {"lr": 0.1, **settings})

    assert started() == {}
    write_json(str(report), {"made_from": {"lr": 0.1}, "accuracy": 1})
    assert started()["accuracy"] == started(overwrite=True)["accuracy"] == 1
    with pytest.raises(UserError, match=r"report.json holds a classifier with another seed \(none, now 1\)"):
        started(seed=1)
    assert started(overwrite=True, seed=1) == {}
    for path, said in ((report, "not valid JSON"), (state, "refused")):
        path.write_text("no")
        with pytest.raises(UserError, match=said):
            started()
        assert started(overwrite=True) == {}
        path.unlink()
    with pytest.raises(UserError, match=r"report.json is an input"):
        report.touch()
        begin(made(state), str(report), [], [str(report)], SimpleNamespace(check=1, overwrite=True))
    with pytest.raises(UserError, match="batch_size: expected a multiple of the 3 processes, got 16"):
        begin(made(state), str(report), [], [], SimpleNamespace(check=3, overwrite=True))


def test_limits(tmp_path):
    name = f"folder:{image_folder(tmp_path, [f'{kind}/{i}.png' for kind in 'ab' for i in range(20)], 8, 8)}"
    parts = labelled_splits(name, "class", 8)
    whole = [i for split in ("train", "valid") for i in parts[split].dataset.indices]
    for limit, expected in ((1, whole[:1]), (4, whole[::9]), (99, whole), (None, whole)):
        found = spread([parts["train"], parts["valid"]], limit)
        assert [i for part in found for i in part.dataset.indices] == expected
        images, classes = read(found, CPU, quiet=True)
        assert len(images) == len(classes) == len(expected) and classes.tolist() == [i // 20 for i in expected]
    assert spread([parts["train"]], 4)[0].targets.values.tolist() == [0, 0, 1, 1]
    few = drawn(parts["train"], 7, seed=1)
    assert few.dataset.indices == sorted(few.dataset.indices) != parts["train"].dataset.indices[:7]
    assert few.dataset.indices != drawn(parts["train"], 7, seed=2).dataset.indices and len(few.targets) == 7


def test_outputs_that_are_not_finite_have_no_accuracy(tmp_path, data):
    training = made(tmp_path / "state.pt")
    with torch.no_grad():
        next(training.networks.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="outputs of the a"):
        logits(training.classifiers, data[0], noisy, CPU, desc="")


def test_a_process_without_images_has_no_outputs(tmp_path, data, monkeypatch):
    training, one = made(tmp_path / "state.pt"), CachedImages(data[0].images[:1], torch.arange(1))
    alone = logits(training.classifiers, one, noisy, CPU, desc="")
    monkeypatch.setattr(runtime, "world", lambda: 2)
    monkeypatch.setattr(runtime, "rank", lambda: 1)
    monkeypatch.setattr(runtime, "all_gather", lambda share: [alone, share])
    found = logits(training.classifiers, one, noisy, CPU, desc="")
    assert all(torch.equal(found[name], alone[name]) for name in alone)


def test_outputs_do_not_depend_on_the_batch(tmp_path, data):
    training = made(tmp_path / "state.pt")
    one, many = (logits(training.classifiers, data[0], noisy, CPU, size, desc="") for size in (7, 64))
    assert all(torch.allclose(one[name], many[name], atol=1e-6) for name in one)


def test_crops_are_windows_of_the_padded_image_and_half_are_mirrored():
    image = torch.arange(1, 1 + 3 * 36).reshape(1, 3, 6, 6).byte()
    padded = torch.nn.functional.pad(image, (2,) * 4)[0]
    windows = {
        (mirrored, top, left): (padded.flip(2) if mirrored else padded)[:, top : top + 6, left : left + 6]
        for mirrored in (0, 1)
        for top in range(5)
        for left in range(5)
    }
    torch.manual_seed(0)
    found = []
    for seen in crop_and_flip(image.expand(2000, -1, -1, -1), 2, True):
        found.append(next(key for key, window in windows.items() if torch.equal(window, seen)))
    assert len(set(found)) == len(windows)
    assert abs(np.mean([mirrored for mirrored, _, _ in found]) - 0.5) < 0.05
    assert torch.equal(crop_and_flip(image, 0, False), image)


def test_a_share_of_a_batch_may_be_empty(tmp_path, data):
    assert batch_of(data[0], [], CPU, (2, True)).shape == batch_of(data[0], [], CPU).shape == (0, 3, 8, 8)


def test_cosine():
    by_epoch = cosine(15)
    assert by_epoch(0.9) == 1 and by_epoch(14.5) == pytest.approx(0.010926, rel=1e-4)
    warm = cosine(100, warmup=5, by_step=True)
    assert [warm(0), warm(2.5), warm(5), warm(52.5), warm(100)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [cosine(10, warmup=5)(e) for e in (0, 4, 5)] == pytest.approx([0.2, 1, 1])
