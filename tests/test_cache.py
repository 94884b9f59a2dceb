"""Images held in memory: the same batches as without, one reading, one line where they do not fit."""

import io
from itertools import islice
from pathlib import Path

import pytest
import tiny
import torch
from lmdb_fixtures import image_folder, image_lmdb

from datasets import build, cache
from datasets.base import ImageDataset
from datasets.cache import cached, check_room, free_memory
from datasets.loader import training_batches
from datasets.tolerant import Tolerant
from dbae.config import UserError
from scripts import train as dbae_train

CPU = torch.device("cpu")
HELD = ("host", "device")
N = 11


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return image_lmdb(tmp_path_factory.mktemp("data") / "faces", "256-%05d", N)


def lmdb(path):
    return build("ffhq", "train", 24, data_dir=path)


def folder(path, good, bad=()):
    """``good`` images, of which those at the positions ``bad`` are broken."""
    image_folder(path, [f"{i:02d}.png" for i in range(good)])
    for i in bad:
        Path(path, f"{i:02d}.png").write_bytes(b"broken")
    return build(f"folder:{path}", "train", 24)


def tolerant(dataset):
    return Tolerant(dataset, "skip", replace=True)


def batches(dataset, count, device="cpu", **options):
    """The first ``count`` micro-batches, each one tensor: every target is the position."""
    options = {"batch_size": 8, "microbatch": 3, "seed": 5, "device": device} | options
    targets = torch.arange(len(dataset), dtype=torch.uint8)
    found = []
    for images, y in islice(training_batches(dataset, **options, targets=targets), count):
        assert images.device == y.device and len(images) == len(y)
        found.append(torch.cat([images, y[:, None, None, None].expand(-1, 1, *images.shape[2:])], 1))
    return found


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.dtype == other.dtype == torch.uint8 and one.device == other.device and torch.equal(one, other)


def message(call):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"microbatch": -1, "seed": 6},
        {"start": 21, "microbatch": 4},
        {"batch_size": 12, "rank": 0, "world": 3},
        {"batch_size": 12, "rank": 2, "world": 3, "start": 36},
    ],
)
@pytest.mark.parametrize("where", HELD)
def test_batches_are_those_of_the_data_set(faces, where, options):
    """Over several epochs of 11 images, in micro-batches, for every rank and from the middle."""
    dataset = lmdb(faces)
    assert_equal(batches(cached(dataset, where, CPU), 16, **options), batches(dataset, 16, **options))


def test_worker_processes_read_the_same(faces, monkeypatch):
    monkeypatch.setattr(cache, "BATCH", 2)
    dataset = lmdb(faces)
    assert_equal(batches(cached(dataset, "host", CPU, num_workers=2), 8), batches(dataset, 8))


def test_each_image_is_read_once(faces, monkeypatch):
    dataset, reads = lmdb(faces), []
    image = dataset.image
    monkeypatch.setattr(dataset, "image", lambda i: reads.append(i) or image(i))
    held = cached(dataset, "host", CPU)
    assert len(held) == N and reads == list(range(N))
    batches(held, 20)
    assert len(reads) == N


def test_a_batch_is_a_copy(faces):
    """What is done to a batch must not come back in the next epoch."""
    held = cached(lmdb(faces), "device", CPU)
    before = batches(held, 4)
    for batch in batches(held, 4):
        batch.zero_()
    assert_equal(batches(held, 4), before)


# -- bad images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", HELD)
def test_bad_images_have_the_same_substitutes_and_notes(tmp_path, where, capsys):
    dataset = folder(tmp_path, N, bad=(0, 3, 4, 10))
    without, held = tolerant(dataset), tolerant(dataset)
    expected = batches(without, 8)
    warnings = capsys.readouterr().err
    images = cached(held, where, CPU, quiet=True)
    assert sorted(capsys.readouterr().err.splitlines()) == sorted(warnings.splitlines())
    assert held.faults == without.faults and set(held.faults) == {"00.png", "03.png", "04.png", "10.png"}
    assert_equal(batches(images, 8), expected)
    for batch in expected:  # the target is the one of the image that stands in
        for image in batch:
            assert torch.equal(image[:3], dataset[int(image[3, 0, 0])][0])


def test_nothing_but_bad_images(tmp_path):
    dataset = folder(tmp_path, 2, bad=(0, 1))
    said = message(lambda: cached(tolerant(dataset), "host", CPU))
    assert "nor is any of 1000 others good" in said


# -- room ------------------------------------------------------------------------------------------------------------


class Unread(ImageDataset):
    """``n`` images that must not be read."""

    def __init__(self, n, size):
        super().__init__("unread", size, range(n))

    def image(self, index):
        raise AssertionError("read")


def test_too_many_images_for_the_host(monkeypatch):
    monkeypatch.setattr(cache, "free_memory", lambda device: 3 * 64**2 * 999)
    said = message(lambda: cached(Unread(1000, 64), "host", CPU))
    assert said == "cache: 1000 images of 64 px need 1 x 0.0123 GB, and 0.0123 GB are free (cpu); give --cache none"
    check_room(Unread(999, 64), "host", CPU)
    check_room(Unread(1000, 64), "none", CPU)


def test_the_processes_of_a_node_share_the_host(monkeypatch):
    monkeypatch.setattr(cache, "free_memory", lambda device: 10**8)
    dataset = Unread(30_000, 32)  # 92 MB
    check_room(dataset, "host", CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert "need 8 x 0.0922 GB, and 0.1 GB are free (cpu)" in message(lambda: check_room(dataset, "device", CPU))
    check_room(dataset, "device", "cuda")  # one GPU each


@pytest.mark.parametrize(
    "text, expected",
    [("MemTotal:  9 kB\nMemAvailable:  4 kB\nHugePages_Total:  0\n", 4096), ("MemTotal:  9 kB\n", None)],
)
def test_free_memory_is_what_linux_says(monkeypatch, text, expected):
    monkeypatch.setattr(cache, "open", lambda path: io.StringIO(text), raising=False)
    assert free_memory(CPU) == expected


# -- GPU -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("where", HELD)
def test_gpu_batches_come_without_waiting(faces, where):
    dataset = lmdb(faces)
    expected = batches(dataset, 12, "cuda")
    held = cached(dataset, where, "cuda")
    assert held.images.device.type == ("cuda" if where == "device" else "cpu")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = batches(held, 12, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_equal(found, expected)


# -- training --------------------------------------------------------------------------------------------------------


def trained(monkeypatch, workdir, *flags):
    """Tensors of the model that the training command leaves after three steps of toy faces."""
    command = [
        "--dataset=toyfaces", f"--data_root={workdir}", f"--workdir={workdir}", *tiny.FLAGS, "--split_range=:10",
        "--batch_size=4", "--microbatch=2", "--num_workers=0", "--ema_rate=0.9", "--device=cpu", "--quiet", *flags,
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["train", *command])
    dbae_train.main()
    newest = max(workdir.glob("*/model_*.pt"))
    return torch.load(newest, weights_only=True)


def test_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    """Also resumed in the second epoch."""
    expected = trained(monkeypatch, tmp_path / "none", "--total_steps=3")
    held = trained(monkeypatch, tmp_path / "device", "--total_steps=3", "--cache=device")
    trained(monkeypatch, tmp_path / "host", "--total_steps=2", "--cache=host")
    resumed = trained(monkeypatch, tmp_path / "host", "--total_steps=3", "--cache=host")
    for name, tensor in expected.items():
        assert torch.equal(held[name], tensor) and torch.equal(resumed[name], tensor), name
