"""Cached features: formats, resuming, processes, and codes that are drawn per epoch."""

import json

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file

from datasets.tolerant import Tolerant
from dbae.config import UserError
from dbae.io import with_command
from eval.arrays import read_arrays, write_arrays
from eval.features import CachedFeatures, FeatureCache, encode_batches, encode_dataset
from eval.probe import Part, fit
from scripts.encoding import array_encoder, encode_to_file
from scripts.trained import TrainedModel

DATA = [(((image + 1) * 127.5).to(torch.uint8), i) for i, image in enumerate(tiny.images(10, seed=3))]


def trained(model, latent="sample", seed=5):
    return TrainedModel(model, model.SAMPLING, latent, seed)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_arrays_round_trip(tmp_path, ending):
    z = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32).T  # not contiguous
    index = np.arange(7)
    path = str(tmp_path / f"codes.{ending}")
    write_arrays(path, {"z": z, "index": index}, {"settings": json.dumps({"a": 1}), "names": "ä"})
    arrays, about = read_arrays(path)
    assert np.array_equal(arrays["z"], z) and np.array_equal(arrays["index"], index)
    assert about == {"settings": '{"a": 1}', "names": "ä"}
    theirs = load_file(path) if ending == "safetensors" else np.load(path, allow_pickle=False)
    assert np.array_equal(theirs["z"], z)


def test_files_that_are_no_arrays(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_arrays(str(tmp_path / "absent.npz"))
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    for name, content in (("text.npz", b"text"), ("text.safetensors", b"text"), ("long.safetensors", b"\xff" * 64)):
        (tmp_path / name).write_bytes(content)
    for name in ("objects.npz", "text.npz", "text.safetensors", "long.safetensors"):
        with pytest.raises(UserError, match=f"{name}: damaged, or not a file of arrays"):
            read_arrays(str(tmp_path / name))


def test_encode_dataset_is_the_models_code():
    model = tiny.model()
    arrays = encode_dataset(array_encoder(trained(model)), DATA, batch_size=4)
    mirrored = encode_dataset(array_encoder(trained(model)), DATA, batch_size=4, flip=True)
    x = torch.stack([image for image, _ in DATA]).float() / 127.5 - 1
    with torch.no_grad():
        assert np.allclose(arrays["z"], model.encode(x), atol=1e-5)
        assert np.allclose(mirrored["z"], model.encode(x.flip(3)), atol=1e-5)
    assert arrays["index"].tolist() == list(range(10))


def test_sampled_codes_do_not_depend_on_batches():
    model = tiny.model(stochastic=True)
    small, large = (encode_dataset(trained(model).encode_arrays, DATA, size) for size in (3, 10))
    assert np.allclose(small["z"], large["z"], atol=1e-4) and not np.allclose(small["z"], small["mu"], atol=0.01)
    assert np.allclose(small["mu"], encode_dataset(trained(model, "mean").encode_arrays, DATA)["z"], atol=1e-4)


def shares(rank, world, batch_size, skip=0):
    mine = range(rank, len(DATA), world)
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    return [(torch.stack([DATA[i][0] for i in batch]), torch.tensor(batch)) for batch in batches[skip:]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_cache_resumes_and_collects_in_order(tmp_path, world):
    model = tiny.model()
    cache = FeatureCache(str(tmp_path / "codes.npz"), {"images": 10}, world)
    assert cache.collect()["index"].tolist() == []
    encode = array_encoder(trained(model))
    for rank in range(world):
        cache.add(rank, 0, next(encode_batches(encode, shares(rank, world, 2))))
        assert cache.done(rank) == 1 and not cache.finished
    for rank in range(world):
        for i, arrays in enumerate(encode_batches(encode, shares(rank, world, 2, skip=1)), start=1):
            cache.add(rank, i, arrays)
    cache.write(cache.collect() | {"labels": np.ones((10, 2), np.float32)}, {"names": "[]"})
    arrays, about = read_arrays(cache.path)
    assert cache.finished and arrays["index"].tolist() == list(range(10)) and arrays["labels"].shape == (10, 2)
    assert json.loads(about["settings"]) == with_command({"images": 10}) and about["names"] == "[]"
    assert np.allclose(arrays["z"], encode_dataset(encode, DATA)["z"], atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npz"]
    with pytest.raises(
        UserError, match=r"holds codes with another weights \(none, now other\), made by: python3 .* another --out"
    ):
        _ = FeatureCache(cache.path, {"images": 10, "weights": "other"}, world).finished
    write_arrays(cache.path, arrays)
    with pytest.raises(UserError, match="holds codes with another origin"):  # a file of somebody else
        _ = cache.finished


def test_the_same_command_twice_at_once(tmp_path, capsys):
    """The second to finish finds the file, keeps it and removes its own batches."""
    encode, images = array_encoder(trained(tiny.model())), Tolerant(DATA)
    path, settings = str(tmp_path / "codes.npz"), {"flip": False}

    def slower(*batch):
        if not (tmp_path / "codes.npz").exists():
            assert encode_to_file(path, encode, images, settings)
        return encode(*batch)

    assert encode_to_file(path, slower, images, settings, batch_size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npz"]
    assert not encode_to_file(path, slower, images, settings)
    assert f"{path} is complete already: nothing computed" in capsys.readouterr().out


@pytest.mark.parametrize("stochastic", [False, True])
def test_cached_probe_equals_the_protocol_that_encodes_every_epoch(stochastic):
    """Same flips, same noise, same batches: encoding once must give the same weights."""
    model = tiny.model(stochastic=stochastic)
    encode = array_encoder(trained(model))

    def code(arrays, generator):
        return model.code(arrays, torch.randn(10, 8, generator=generator))

    def encoded():
        return CachedFeatures(encode_dataset(encode, DATA), encode_dataset(encode, DATA, flip=True), code, seed=4)

    targets, cached = (torch.arange(30).reshape(10, 3) % 4 == 0).float(), encoded()
    results = [
        fit("binary", dict.fromkeys(("train", "valid", "test"), Part(draw, targets)), "abc", epochs=3, batch_size=4)
        for draw in (cached.draw, lambda epoch: encoded().draw(epoch))
    ]
    assert torch.equal(results[0].layer.weight, results[1].layer.weight)
    assert results[0].report["test"] == results[1].report["test"]
    assert torch.equal(cached.draw(0), cached.draw(0)) and not torch.equal(cached.draw(0), cached.draw(1))


def test_codes_differ_by_epoch_only_where_they_should():
    plain, flipped = ({"z": np.full((200, 2), value, np.float32)} for value in (0.0, 1.0))
    draws = CachedFeatures(plain, flipped, seed=1).draw(0)
    assert 0.3 < draws.mean() < 0.7 and torch.equal(draws[:, 0], draws[:, 1])
    assert not torch.equal(draws, CachedFeatures(plain, flipped, seed=1).draw(1))
    assert torch.equal(CachedFeatures(plain).draw(0), CachedFeatures(plain).draw(7))
    mu = {"mu": np.zeros((5000, 2), np.float32)}
    drawn = CachedFeatures(mu, code=lambda arrays, g: arrays["mu"] + torch.randn(5000, 2, generator=g) / 2)
    assert drawn.draw(0).std().item() == pytest.approx(0.5, rel=0.05)
