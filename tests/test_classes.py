"""CIFAR and Tiny-ImageNet in the forms in which they are released."""

import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build, labelled_splits
from datasets.classes import CIFAR10, open_classes, unpickle
from datasets.prepare import main
from dbae.config import UserError

N = 20  # images of each file
CHANCE = np.random.default_rng(0)
PIXELS = CHANCE.integers(0, 256, (6 * N, 3072), np.uint8)
LABELS = np.arange(6 * N) % 10
FILES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


def rows(k):
    return slice(k * N, (k + 1) * N)


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bin") / "cifar-10-batches-bin"
    folder.mkdir()
    for k, name in enumerate(FILES):
        records = np.concatenate([LABELS[rows(k), None].astype(np.uint8), PIXELS[rows(k)]], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10) + "\n\n")
    return folder


@pytest.fixture(scope="module")
def pickles(tmp_path_factory):
    """As Python 2 wrote them, but for text in place of bytes."""
    folder = tmp_path_factory.mktemp("py") / "cifar-10-batches-py"
    folder.mkdir()
    for k, name in enumerate(FILES):
        content = {b"data": PIXELS[rows(k)], b"labels": LABELS[rows(k)].tolist(), b"batch_label": b"one"}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10)}, protocol=2))
    return folder


@pytest.fixture(params=["binary", "pickles", "binary archive", "pickles archive"])
def release(request, tmp_path):
    kind, _, archive = request.param.partition(" ")
    folder = request.getfixturevalue(kind)
    if not archive:
        return str(folder.parent)
    with tarfile.open(tmp_path / "release.tar.gz", "w:gz") as file:
        file.add(folder, folder.name)
    return str(tmp_path / "release.tar.gz")


def test_cifar10(release, tmp_path):
    assert main(["cifar10", "--source", release, "--out", str(tmp_path / "cifar10"), "--workers", "1"]) == 0
    splits = {s: build("cifar10", s, 32, str(tmp_path)) for s in ("train", "valid", "test")}
    assert [len(each) for each in splits.values()] == [5 * N, N // 2, N]
    for i in (0, 37, 5 * N - 1):
        assert torch.equal(splits["train"][i][0].flatten(), torch.from_numpy(PIXELS[i]))
    assert torch.equal(splits["test"][3][0].flatten(), torch.from_numpy(PIXELS[5 * N + 3]))
    assert torch.equal(splits["valid"][0][0], splits["train"][5 * N - N // 2][0])
    targets = splits["train"].targets("class")
    assert targets.names == CIFAR10 and targets.values.tolist() == LABELS[: 5 * N].tolist()

    parts = labelled_splits("cifar10", "class", 32, str(tmp_path))
    assert [len(parts[s].dataset) for s in ("train", "valid", "test")] == [5 * N - N // 2, N // 2, N]
    assert not set(parts["train"].dataset.indices) & set(parts["valid"].dataset.indices)
    assert len(parts["train"].targets) == 5 * N - N // 2


def test_cifar100_has_the_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    fine = np.arange(40)[:, None] % 4
    for name, first in (("train", 0), ("test", 20)):
        labels = np.concatenate([fine[first : first + 20] // 2 + 50, fine[first : first + 20]], axis=1).astype(np.uint8)
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels, PIXELS[first : first + 20]], axis=1).tobytes())
    (folder / "fine_label_names.txt").write_text("apple\nbear\ncan\ndog\n")
    originals, names, tables = open_classes("cifar100", str(folder))
    assert names[0] == "train/00000" and names[-1] == "test/00019" and originals.image(names[21]).size == (32, 32)
    assert tables["labels.csv"].targets(names, "class").values.tolist() == fine.flatten().tolist()


def test_images_in_folders_by_class(tmp_path):
    """Ordered by their number within their class, so that valid has every class."""
    for side, count in (("train", 20), ("test", 3)):
        for k, label in enumerate(("cat", "dog")):
            (tmp_path / "cifar" / side / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (k, i, 0)).save(tmp_path / "cifar" / side / label / f"{i:04d}.png")
    out = str(tmp_path / "cifar10")
    assert main(["cifar10", "--source", str(tmp_path / "cifar"), "--out", out, "--workers", "1"]) == 0
    valid, test = (build("cifar10", s, 32, str(tmp_path)) for s in ("valid", "test"))
    assert valid.targets("class").values.tolist() == [0, 1, 0, 1] and len(test) == 6
    assert valid[1][0][:, 0, 0].tolist() == [1, 18, 0]


def test_tiny_imagenet(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for label in ("n01", "n02"):
        (root / "train" / label / "images").mkdir(parents=True)
        for i in range(10):
            Image.new("L", (64, 64), 10 * i).save(root / "train" / label / "images" / f"{label}_{i}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(root / "test" / "images" / "test_0.JPEG")  # without a label
    for i in range(2):
        Image.new("RGB", (64, 64), (255 * i,) * 3).save(root / "val" / "images" / f"val_{i}.JPEG")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t57\nval_1.JPEG\tn01\t4\t0\t9\t9\n")
    assert main(["tiny", "--source", str(root), "--out", str(tmp_path / "tiny"), "--workers", "1"]) == 0
    train, test = (build("tiny", s, 64, str(tmp_path)) for s in ("train", "test"))
    assert len(train) == 20 and train[5][0].shape == (3, 64, 64)
    assert test.targets("class").values.tolist() == [0, 1] and test.targets("class").names == ("n01", "n02")
    assert test[0][0].min() > 200 and test[1][0].max() < 50  # val_1 is of the first class


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made",)


@pytest.mark.parametrize("content", [pickle.dumps(Evil()), pickle.dumps({"data": print}), b"\x80\x02}q\x00(", b""])
def test_pickles_execute_nothing(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="somewhere"):
        unpickle(content, "somewhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "data_batch_2.bin").unlink(),
        lambda folder: (folder / "data_batch_2.bin").write_bytes(b"0" * 100),
        lambda folder: (folder / "data_batch_2.bin").write_bytes(b"\xff" * 3073),
        lambda folder: [path.unlink() for path in folder.iterdir()],
    ],
)
def test_damaged_releases(binary, tmp_path, capsys, spoil):
    folder = tmp_path / "cifar"
    folder.mkdir()
    for path in binary.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    spoil(folder)
    assert main(["cifar10", "--source", str(folder), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error:") and said.count("\n") == 1 and not (tmp_path / "out").exists()
