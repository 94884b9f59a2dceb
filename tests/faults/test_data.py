"""Images that cannot be read, data sets that are cut or gone, and workers that die: in training and in evaluation."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from itertools import chain, islice

import numpy as np
import pytest
import tiny
import torch
from lmdb_fixtures import encoded, image_folder, image_lmdb, picture, write_lmdb

from datasets import build, labelled_splits
from datasets.loader import ordered_batches, training_batches
from datasets.prepare import main as prepare
from datasets.tolerant import Tolerant
from dbae.config import UserError
from eval.arrays import read_arrays
from eval.samples import read_numbered
from scripts import cli
from scripts import encode as dbae_encode
from scripts import reconstruct as dbae_reconstruction
from scripts import train as dbae_train

BAD = (2, 5, 6)  # positions of the bad ones among ten images


def broken_lmdb(path):
    """Ten images, of which 2 is missing, 5 is cut and 6 is no image."""
    images = {f"256-{i:05d}": encoded(picture(i), "JPEG") for i in range(10)}
    del images["256-00002"]
    images["256-00005"] = images["256-00005"][:-80]
    return write_lmdb(path, {**images, "256-00006": b"text", "length": b"10"})


def broken_folder(path):
    """The same as files."""
    image_folder(path, [f"{i}.jpg" for i in range(10)], 32, 32)
    (path / "2.jpg").write_bytes(b"")
    (path / "5.jpg").write_bytes((path / "5.jpg").read_bytes()[:-80])
    (path / "6.jpg").write_bytes(b"text")
    return str(path)


@pytest.fixture
def broken(tmp_path):
    return build("ffhq", "train", 8, data_dir=broken_lmdb(tmp_path / "ffhq"))


@pytest.fixture
def start_method():
    """Sets how worker processes are started, for the length of a test."""
    before = multiprocessing.get_start_method()
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_start_method(before, force=True)


def omitting(dataset):
    return Tolerant(dataset, "skip")


def replacing(dataset):
    return Tolerant(dataset, "skip", replace=True)


def one_line(caught):
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    return str(caught.value)


# -- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("position", "message"), [(2, "no image 256-00002"), (5, "bad image 256-00005: .*truncated")])
def test_a_bad_image_is_named(tmp_path, broken, position, message, workers):
    with pytest.raises(UserError, match=f"{tmp_path}/ffhq has a? ?{message}") as caught:
        list(ordered_batches(broken, 1, limit=position + 1, skip=position, num_workers=workers))
    one_line(caught)
    with pytest.raises(UserError, match=r"256-0000[256]"):
        list(islice(training_batches(broken, 10, 0, seed=0, num_workers=workers), 1))


def test_bad_files_and_stored_faces_are_named(tmp_path):
    with pytest.raises(UserError, match=r"images has a bad image 2.jpg: no image format"):
        build(f"folder:{broken_folder(tmp_path / 'images')}", "train", 8)[2]
    (tmp_path / "images/3.jpg").unlink()
    (tmp_path / "images/3.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(UserError, match=r"images has a bad image 3.jpg: No such file"):
        build(f"folder:{tmp_path / 'images'}", "train", 8)[3]
    faces = {"toy-000000": encoded(picture(0, 8, 8)), "toy-000001": b"text", "toy-000002": encoded(picture(2, 9, 9))}
    faces = build("toyfaces", "train", 8, data_dir=write_lmdb(tmp_path / "toyfaces", faces))
    with pytest.raises(UserError, match="toyfaces has a bad image toy-000001: no image format"):
        faces[1]
    drawn = build("toyfaces", "train", 8, data_root=str(tmp_path / "none"))
    assert torch.equal(faces[2][0], drawn[2][0])  # not resized from 9 pixels


def test_an_lmdb_shorter_than_it_says_is_noticed_before_any_work(tmp_path):
    path = write_lmdb(tmp_path / "ffhq", {"256-00000": encoded(picture(0)), "length": b"3"})
    with pytest.raises(UserError, match="ffhq has no image 256-00001: expected 256-00000 to 256-00002"):
        build("ffhq", "train", 8, data_dir=path, whole=True)
    assert build("ffhq", "train", 8, data_dir=path, whole=True, split_range="0:1")[0][0].shape == (3, 8, 8)


@pytest.mark.parametrize("length", [b"", b"-1", b"9" * 5000])
def test_an_lmdb_whose_length_is_no_number(tmp_path, length):
    path = write_lmdb(tmp_path / "ffhq", {"256-00000": encoded(picture(0)), "length": length})
    with pytest.raises(UserError, match=r"ffhq: expected a number under the key length"):
        build("ffhq", "train", 8, data_dir=path)


def test_a_folder_that_cannot_be_read_is_no_empty_folder(tmp_path, monkeypatch):
    root, scan = image_folder(tmp_path, ["a.png", "locked/b.png"]), os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, os.strerror(13), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="locked: expected a readable folder: Permission denied"):
        build(f"folder:{root}", "train", 8)


def test_an_lmdb_that_is_removed(tmp_path):
    """What a process has opened it keeps; a worker that comes too late says what is gone."""
    dataset = build("ffhq", "train", 8, data_dir=image_lmdb(tmp_path / "ffhq", "256-%05d", 4))
    batches = ordered_batches(dataset, 1)
    first = next(batches)
    shutil.rmtree(tmp_path / "ffhq")
    assert len([first, *batches]) == 4
    for policy in ("fail", "skip"):
        with pytest.raises(UserError, match=f"{tmp_path}/ffhq: expected an LMDB .*No such file") as caught:
            list(ordered_batches(Tolerant(dataset, policy), 1, num_workers=1))
        one_line(caught)


def test_a_damaged_lmdb_is_not_the_fault_of_an_image(tmp_path, monkeypatch):
    import lmdb

    dataset = build("ffhq", "train", 8, data_dir=image_lmdb(tmp_path / "ffhq", "256-%05d", 4))

    class Corrupt:
        def begin(self):
            raise lmdb.CorruptedError("located page was wrong type")

    monkeypatch.setattr(dataset.store, "_environment", Corrupt())
    with pytest.raises(UserError, match=r"ffhq is damaged: .*wrong type.*: copy or prepare it again"):
        list(ordered_batches(omitting(dataset), 1))


# -- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_by_fork_and_spawn(broken, start_method, method, capsys):
    """The same batches, the same list and the same line, however workers are started."""
    broken[0]  # opens the LMDB here, before the workers start
    start_method(method)
    images, expected = omitting(broken), list(ordered_batches(omitting(broken), 4))
    found = list(ordered_batches(images, 4, num_workers=1))
    assert all(
        torch.equal(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert list(images.faults) == [f"256-{i:05d}" for i in BAD]
    with pytest.raises(UserError, match="no image 256-00002") as caught:
        list(ordered_batches(broken, 4, num_workers=1))
    one_line(caught)


class Deadly(torch.utils.data.Dataset):
    """Whoever reads its second image is killed, or meets a mistake of ours."""

    def __init__(self, death):
        self.death = death

    def __len__(self):
        return 4

    def __getitem__(self, i):
        if i == 1 and isinstance(self.death, Exception):
            raise self.death
        if i == 1:
            time.sleep(0.5)  # until the first image is through
            os.kill(os.getpid(), self.death)
        return torch.zeros(3, 1, 1, dtype=torch.uint8), i


def test_a_killed_worker_is_one_line_where_images_are_awaited():
    before = signal.getsignal(signal.SIGCHLD)
    batches = ordered_batches(Deadly(signal.SIGKILL), 1, num_workers=1)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before  # torch's handler raises in the midst of anything
    with pytest.raises(UserError, match=r"reads images ended with SIGKILL: out of memory.*num_workers") as caught:
        list(batches)
    one_line(caught)


def test_mistakes_in_the_code_keep_their_traceback():
    with pytest.raises(IndexError, match="Traceback"):
        list(ordered_batches(omitting(Deadly(IndexError("ours"))), 1, num_workers=1))


# -- training --------------------------------------------------------------------------------------------------------


def stream(dataset, count, **options):
    batches = training_batches(replacing(dataset), seed=1, microbatch=3, **options)
    return torch.cat([images for images, _ in islice(batches, count)])


def test_another_image_stands_in_for_a_bad_one(broken, capsys):
    """Batches are full and a function of (seed, position): from any start, with workers, on several processes."""
    images = replacing(broken)
    batches = training_batches(images, 6, 3, seed=1, targets=torch.arange(10))
    pairs = list(islice(batches, 10))
    whole, shown = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert all(torch.equal(image, broken[i][0]) for image, i in zip(whole, shown.tolist(), strict=True))
    assert whole.shape == (30, 3, 8, 8) and sorted(images.faults) == [f"256-{i:05d}" for i in BAD]
    assert capsys.readouterr().err.count("warning: ") == len(BAD)  # once each, in three epochs
    good = {i: broken[i][0] for i in range(10) if i not in BAD}
    order = list(chain.from_iterable(np.random.default_rng([1, epoch]).permutation(10).tolist() for epoch in range(3)))
    taken = {}
    for image, i in zip(whole, order, strict=True):
        if i in good:
            assert torch.equal(image, good[i])
        else:
            assert any(torch.equal(image, other) for other in good.values())
            assert torch.equal(image, taken.setdefault(i, image))
    assert torch.equal(stream(broken, 6, batch_size=6, start=12), whole[12:])
    assert torch.equal(stream(broken, 4, batch_size=6, num_workers=1), whole[:12])
    halves = [stream(broken, 2, batch_size=6, rank=rank, world=2) for rank in (0, 1)]
    assert torch.equal(torch.cat([halves[0][:3], halves[1][:3], halves[0][3:], halves[1][3:]]), whole[:12])


def test_replacements_are_spread(tmp_path):
    """Not one image, that after a gap, stands in for all that are missing."""
    images = {f"256-{i:05d}": encoded(picture(i)) for i in (*range(20), 99)}
    dataset = build("ffhq", "train", 8, data_dir=write_lmdb(tmp_path / "ffhq", images))
    shown = stream(dataset, 34, batch_size=3)[:100]
    counts = shown.flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(counts) == 21 and counts.max() < 16


def test_nothing_but_bad_images_ends_training(tmp_path):
    entries = {f"256-{i:05d}": b"text" for i in range(3)}
    dataset = build("ffhq", "train", 8, data_dir=write_lmdb(tmp_path / "ffhq", entries))
    with pytest.raises(UserError, match=r"ffhq has a bad image .*; nor is any of 1000 others good"):
        stream(dataset, 1, batch_size=3)


def program(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    module.main()


def listed(path):
    return [(row["position"], row["name"]) for row in json.loads(path.read_text())]


def test_training_goes_on_and_lists_them(tmp_path, monkeypatch, capsys):
    broken_lmdb(tmp_path / "ffhq")
    words = ["--dataset=ffhq", f"--data_root={tmp_path}", f"--workdir={tmp_path / 'run'}", *tiny.FLAGS, "--quiet"]
    words += ["--batch_size=10", "--num_workers=0", "--device=cpu"]
    with pytest.raises(UserError, match="no image 256-00002"):
        program(monkeypatch, dbae_train, *words, "--total_steps=1")
    program(monkeypatch, dbae_train, *words, "--total_steps=1", "--on_bad_image=skip")
    (run,) = (tmp_path / "run").iterdir()
    assert listed(run / "bad_images.json") == [(i, f"256-{i:05d}") for i in BAD]
    assert f"3 of 10 images are bad and were replaced: {run}/bad_images.json lists them" in capsys.readouterr().out
    program(monkeypatch, dbae_train, *words, "--total_steps=2", "--on_bad_image=skip")
    assert len(listed(run / "bad_images.json")) == 3 and "warning" not in capsys.readouterr().err
    (run / "bad_images.json").write_text('["x"]')
    with pytest.raises(UserError, match=r"bad_images.json: expected the list of bad images"):
        program(monkeypatch, dbae_train, *words, "--total_steps=3", "--on_bad_image=skip")


# -- reconstruction and encoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 3])
def test_bad_images_are_left_out_and_the_others_keep_their_numbers(broken, world):
    for batch_size in (1, 2, 4):
        ranks = [list(ordered_batches(omitting(broken), batch_size, r, world)) for r in range(world)]
        whole = [list(ordered_batches(range_of_images(10), batch_size, r, world)) for r in range(world)]
        assert list(map(len, ranks)) == list(map(len, whole))  # a batch may be empty, but it is there
        pairs = [
            (i, image)
            for batches in ranks
            for images, index in batches
            for i, image in zip(index.tolist(), images, strict=True)
        ]
        assert sorted(i for i, _ in pairs) == [i for i in range(10) if i not in BAD]
        assert all(torch.equal(image, broken[i][0]) for i, image in pairs)


def range_of_images(n):
    return [(torch.zeros(3, 8, 8, dtype=torch.uint8), i) for i in range(n)]


def sampling_words(checkpoint, folder, *more):
    words = [f"--dataset=folder:{folder}", f"--model_path={checkpoint}", "--device=cpu", *more]
    return [*words, "--batch_size=2"]


def test_a_reconstruction_goes_on_without_the_bad_ones(tmp_path, checkpoint, monkeypatch, capsys):
    folder = broken_folder(tmp_path / "images")
    (tmp_path / "images/4.jpg").write_bytes(b"text")  # now a whole batch, 4 and 5, is bad
    words = sampling_words(checkpoint, folder, "--steps=2", "--evaluate", "--metrics=MSE")
    with pytest.raises(UserError, match=r"has a bad image 2.jpg"):
        program(monkeypatch, dbae_reconstruction, *words, "--overwrite")
    (results,) = (checkpoint.parent / "sample_20").glob("euler_7.0_2_*")
    before = (results / "0_fake_sample_0.npz").stat().st_mtime_ns
    for _ in range(2):  # goes on, then is complete
        program(monkeypatch, dbae_reconstruction, *words, "--on_bad_image=skip")
        kept = [0, 1, 3, 7, 8, 9]
        parts = [np.load(path) for path in sorted(results.glob("0_fake_sample_*.npz"))]
        assert np.concatenate([part["index"] for part in parts]).tolist() == kept
        assert (results / "0_fake_sample_0.npz").stat().st_mtime_ns == before
        combined = np.load(results / "samples_6x32x32x3_nfe2.npz")["arr_0"]
        assert np.array_equal(combined, np.concatenate([part["samples"] for part in parts]))
        report = json.loads((results / "metrics.json").read_text())
        assert (report["bad_images"], report["images_evaluated"], report["complete"]) == (4, 6, True)
        assert [i for i, _ in listed(results / "bad_images.json")] == [2, 4, 5, 6]
        assert f"4 of 10 images are bad and were left out: {results}/bad_images.json" in capsys.readouterr().out
    (tmp_path / "whole").mkdir()
    for i in kept:
        shutil.copy(tmp_path / f"images/{i}.jpg", tmp_path / f"whole/{i}.jpg")
    one = [f"--dataset=folder:{tmp_path / 'whole'}", "--split_range=0:2", "--steps=2", "--overwrite"]
    program(monkeypatch, dbae_reconstruction, *sampling_words(checkpoint, folder), *one)
    assert not (results / "bad_images.json").exists()
    assert np.abs(np.load(results / "0_fake_sample_0.npz")["samples"].astype(int) - combined[:2]).max() <= 1


def test_parts_without_numbers_are_refused(tmp_path):
    path = str(tmp_path / "0_fake_sample_0.npz")
    for index in ({}, {"index": np.arange(3)}, {"index": np.zeros(2)}):
        np.savez(path, samples=np.zeros((2, 8, 8, 3), np.uint8), **index)
        with pytest.raises(UserError, match="expected an array 'index' with the number of each of the 2 samples"):
            read_numbered(path)


def test_codes_go_on_without_the_bad_ones(tmp_path, checkpoint, monkeypatch, capsys):
    folder, out = broken_folder(tmp_path / "images"), tmp_path / "codes.npz"
    (tmp_path / "images/labels.csv").write_text("file,x\n" + "".join(f"{i}.jpg,{i}\n" for i in range(10)))
    words = sampling_words(checkpoint, folder, f"--out={out}")
    (tmp_path / "images/4.jpg").write_bytes(b"text")
    rows = (tmp_path / "images/labels.csv").read_text()
    (tmp_path / "images/labels.csv").write_text(rows.replace("9.jpg,9", "9.jpg,x"))
    with pytest.raises(UserError, match=r"expected a number on line 11, column 'x', got 'x'"):  # before the images
        program(monkeypatch, dbae_encode, *words, "--check=1")
    (tmp_path / "images/labels.csv").write_text(rows)
    with pytest.raises(UserError, match=r"has a bad image 2.jpg"):
        program(monkeypatch, dbae_encode, *words)
    program(monkeypatch, dbae_encode, *words, "--on_bad_image=skip")
    arrays, about = read_arrays(str(out))
    kept = [0, 1, 3, 7, 8, 9]
    assert arrays["index"].tolist() == arrays["labels"][:, 0].tolist() == kept and len(arrays["z"]) == 6
    assert json.loads(about["names"]) == [f"{i}.jpg" for i in kept]
    assert listed(tmp_path / "codes_bad_images.json") == [(i, f"{i}.jpg") for i in (2, 4, 5, 6)]
    assert "wrote the codes of 6 images" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npz", "codes_bad_images.json", "images"]
    for i in (2, 4, 5, 6):  # the codes of the others are those of a whole folder
        picture(i, 32, 32).save(tmp_path / f"images/{i}.jpg")
    program(monkeypatch, dbae_encode, *words[:-1], "--batch_size=5", f"--out={tmp_path / 'whole.npz'}")
    whole, _ = read_arrays(str(tmp_path / "whole.npz"))
    assert np.allclose(whole["z"][kept], arrays["z"], atol=1e-4)
    for i in range(10):
        (tmp_path / f"images/{i}.jpg").write_bytes(b"text")
    with pytest.raises(UserError, match=r"expected a good image, all 10 are bad; the first: .*has a bad image 0.jpg"):
        program(monkeypatch, dbae_encode, *words[:-1], f"--out={tmp_path / 'none.npz'}", "--on_bad_image=skip")
    assert not list(tmp_path.glob("none*"))


ODD = [
    "$x^$.png",
    "a\nb.png",
    "caf\udce9/1.png",
    "-x.png",
    "~.png",
    "~root/[a] #_'\".png",
    "e\u0301.png",
    "\x1b[1m.png",
]


def test_names_are_text(tmp_path, checkpoint, capsys):
    """Whatever is in them: in lists, messages and files."""
    folder, out = image_folder(tmp_path / "im\udce9", ODD, 32, 32), tmp_path / "codes.npz"
    for name in ("a\nb.png", "caf\udce9/1.png"):
        (tmp_path / "im\udce9" / name).write_bytes(b"text")
    words = sampling_words(checkpoint, folder, f"--out={out}")
    with pytest.raises(SystemExit):
        cli.run(lambda: dbae_encode.main(words))
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ") and not out.exists()
    cli.run(lambda: dbae_encode.main([*words, "--on_bad_image=skip"]))
    shown = capsys.readouterr()
    assert r"a\nb.png: no image format" in shown.out and r"caf\udce9/1.png: no image format" in shown.out
    assert set(json.loads(read_arrays(str(out))[1]["names"])) == {*ODD} - {"a\nb.png", "caf\udce9/1.png"}
    assert {name for _, name in listed(tmp_path / "codes_bad_images.json")} == {"a\nb.png", "caf\udce9/1.png"}


def test_folders_with_names_that_are_no_text_become_classes(tmp_path):
    folder = image_folder(tmp_path / "own", [f"{kind}/{i}.png" for kind in ("caf\udce9", "tea") for i in range(10)])
    assert prepare(["folder", "--source", folder, "--out", f"{tmp_path}/lmdb", "--size", "8", "--workers", "1"]) == 0
    for name in (folder, f"{tmp_path}/lmdb"):
        parts = labelled_splits(f"folder:{name}", "class", 8)
        assert [len(part.targets) for part in parts.values()] == [16, 2, 2]


def test_codes_go_on_with_another_batch_size(tmp_path, checkpoint, monkeypatch):
    """Batches of another size are not counted as if they were of this one."""
    folder, out = image_folder(tmp_path / "images", [f"{i}.png" for i in range(7)], 32, 32), tmp_path / "codes.npz"
    (tmp_path / "images/5.png").write_bytes(b"text")
    words = sampling_words(checkpoint, folder, f"--out={out}")
    with pytest.raises(UserError, match=r"5.png"):
        program(monkeypatch, dbae_encode, *words)
    picture(5, 32, 32).save(tmp_path / "images/5.png")
    program(monkeypatch, dbae_encode, *words[:-1], "--batch_size=3")
    assert read_arrays(str(out))[0]["index"].tolist() == list(range(7))
