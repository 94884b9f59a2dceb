"""Preparing LMDBs from originals: each sub-command, bad images, interruption, and inspection."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile

import lmdb
import numpy as np
import pytest
from lmdb_fixtures import encoded, image_folder, image_lmdb, picture, write_lmdb
from PIL import Image

from datasets import build, images, originals, prepare, writer
from datasets.images import BadImage, cover
from datasets.listing import natural_order
from dbae.config import UserError

ROOT = os.path.dirname(os.path.dirname(__file__))
NUMBERED = [f"{i:06d}.jpg" for i in range(1, 11)]


def run(*words, workers=1):
    """Exit status of a prepare command in this process."""
    return prepare.main([*map(str, words), "--workers", str(workers)])


def entries(path):
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        return {key.decode(): bytes(value) for key, value in transaction.cursor()}


def keys(path):
    return [key for key in entries(path) if "-" in key and not key.startswith("dbae")]


def zipped(path, folder, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for base, _, names in os.walk(folder):
            for name in names:
                full = os.path.join(base, name)
                archive.write(full, prefix + os.path.relpath(full, folder))
    return path


@pytest.fixture
def celeba(tmp_path):
    """A folder like the publisher's, with its text files beside the images."""
    image_folder(tmp_path / "originals/img_align_celeba", NUMBERED, 178, 218)
    rows = "".join(f"{name} 1\n" for name in NUMBERED)
    (tmp_path / "originals/list_attr_celeba.txt").write_text(f"10\nMale\n{rows}")
    (tmp_path / "originals/list_eval_partition.txt").write_text("".join(f"{name} 2\n" for name in NUMBERED))
    return tmp_path / "originals"


# -- sub-commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "subfolder", "zip"])
def test_celeba_keeps_the_original_bytes(tmp_path, celeba, kind):
    source = {
        "folder": lambda: celeba,
        "subfolder": lambda: celeba / "img_align_celeba",
        "zip": lambda: zipped(tmp_path / "celeba.zip", celeba),
    }[kind]()
    out = tmp_path / "data" / "celeba"
    assert run("celeba", "--source", source, "--out", out) == 0
    stored = entries(out)
    assert stored["length"] == b"10"
    for index, name in enumerate(NUMBERED):
        assert stored[f"None-{index:07d}"] == (celeba / "img_align_celeba" / name).read_bytes()
    dataset = build("celeba", "test", 64, data_root=str(tmp_path / "data"))
    assert (len(dataset), dataset.targets().names) == (10, ("Male",))


def test_celebahq_takes_images_and_not_masks(tmp_path):
    folder = tmp_path / "CelebAMask-HQ"
    image_folder(folder / "CelebA-HQ-img", [f"{i}.jpg" for i in range(12)], 40, 40)
    image_folder(folder / "CelebAMask-HQ-mask-anno/0", ["00000_hair.png"], 40, 40)
    (folder / "CelebAMask-HQ-attribute-anno.txt").write_text(
        "12\nMale\n" + "".join(f"{i}.jpg {i}\n" for i in range(12))
    )
    archive = zipped(tmp_path / "CelebAMask-HQ.zip", folder, "CelebAMask-HQ/")
    out = tmp_path / "celebahq"
    assert run("celebahq", "--source", archive, "--size", 128, "--out", out, "--format", "png") == 0
    assert keys(out) == [f"128-{i:05d}" for i in range(12)]
    dataset = build("celebahq", "train", 128, data_root=str(tmp_path))
    assert dataset.targets().values[:, 0].tolist() == list(range(12))
    original = Image.open(folder / "CelebA-HQ-img/10.jpg")
    np.testing.assert_array_equal(dataset[10][0].permute(1, 2, 0), np.asarray(cover(original, 128)))


@pytest.mark.parametrize("workers", [1, 2])
def test_ffhq_is_resized(tmp_path, workers):
    source = image_folder(tmp_path / "images1024x1024", [f"00000/{i:05d}.png" for i in range(5)], 300, 300)
    assert run("ffhq", "--source", source, "--out", tmp_path / "ffhq", workers=workers) == 0
    assert keys(tmp_path / "ffhq") == [f"256-{i:05d}" for i in range(5)]
    image, _ = build("ffhq", "train", 256, data_root=str(tmp_path))[3]
    expected = np.asarray(cover(picture(3, 300, 300), 256)).astype(int)
    assert abs(image.permute(1, 2, 0).numpy() - expected).mean() < 2  # webp, quality 100


def test_cover_keeps_the_middle():
    image = cover(Image.fromarray(np.tile(np.arange(90, dtype=np.uint8)[:, None, None], (1, 60, 3))), 30)
    assert image.size == (30, 30)
    assert abs(image.getpixel((0, 0))[0] - 15) <= 2 and abs(image.getpixel((0, 29))[0] - 74) <= 2


@pytest.mark.parametrize("kind", ["lmdb", "folder"])
def test_lsun_from_its_lmdb_or_folder(tmp_path, kind):
    source = tmp_path / "bedroom_train_lmdb"
    if kind == "lmdb":
        write_lmdb(source, {f"{i * 7919:040x}": encoded(picture(i, 80, 60), "WEBP") for i in range(4)})
    else:
        image_folder(source, [f"a/b/{i:x}.webp" for i in range(4)], 80, 60)
    arguments = ("--category", "bedroom", "--size", 64, "--out", tmp_path / "bedroom")
    assert run("lsun", "--source", source, *arguments) == 0
    assert keys(tmp_path / "bedroom") == [f"64-{i:07d}" for i in range(4)]
    assert build("bedroom", "train", 64, data_root=str(tmp_path))[3][0].shape == (3, 64, 64)


def test_folder_with_labels_is_read_as_a_folder(tmp_path):
    source = image_folder(tmp_path / "mine", ["2.jpg", "10.jpg", "x/1.png"], 50, 40)
    table = tmp_path / "mine/labels.csv"
    table.write_text("file,age\nx/1.png,3\n10.jpg,2\n")
    arguments = ("folder", "--source", source, "--size", 32, "--out", tmp_path / "out")
    assert run(*arguments) == 2  # 2.jpg has no row
    table.write_text("file,age\nx/1.png,3\n10.jpg,2\n2.jpg,1.5\n")
    (tmp_path / "mine/10.jpg").write_bytes(b"bad")
    assert run(*arguments) == 0
    dataset = build(f"folder:{tmp_path / 'out'}", "train", 32)
    assert [dataset.name_of(i) for i in range(2)] == ["32-00000", "32-00001"]
    assert dataset.targets().values.tolist() == [[1.5], [3]]


def test_toyfaces_are_stored_as_drawn(tmp_path):
    drawn = build("toyfaces", "train", 32, data_root=str(tmp_path), split_range="0:3")
    assert run("toyfaces", "--count", 3, "--size", 32, "--out", tmp_path / "toyfaces") == 0
    stored = build("toyfaces", "train", 32, data_root=str(tmp_path), split_range="0:3")
    assert stored.store is not None
    assert all((stored[i][0] == drawn[i][0]).all() for i in range(3))


def test_natural_order_puts_2_before_10():
    assert sorted(["10.jpg", "a2", "2.jpg", "a10", "02.jpg"], key=natural_order) == [
        *("02.jpg", "2.jpg", "10.jpg", "a2", "a10")
    ]
    long = "9" * 5000  # a name in a zip, too long for `int`
    assert sorted([long + "0.jpg", long + ".jpg", "7.jpg"], key=natural_order)[0] == "7.jpg"


# -- bad images ------------------------------------------------------------------------------------------------------


def test_a_bad_celeba_image_leaves_a_gap(tmp_path, celeba, capsys):
    (celeba / "img_align_celeba/000003.jpg").write_bytes(b"not an image")
    assert run("celeba", "--source", celeba, "--out", tmp_path / "celeba") == 0
    printed = capsys.readouterr()
    assert "skipped img_align_celeba/000003.jpg: no image format" in printed.err
    assert "9 images, 1 bad ones skipped" in printed.out
    assert "None-0000002" not in keys(tmp_path / "celeba") and "None-0000009" in keys(tmp_path / "celeba")
    assert prepare.main(["inspect", str(tmp_path / "celeba")]) == 1
    assert "1 of 10 images are missing: None-0000002" in capsys.readouterr().out


def test_a_bad_image_elsewhere_leaves_none(tmp_path, capsys, monkeypatch):
    source = image_folder(tmp_path / "mine", [f"{i}.png" for i in range(4)])
    (tmp_path / "mine/1.png").write_bytes(encoded(picture(1))[:-30])
    picture(2, 400, 400).save(tmp_path / "mine/2.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    archive = zipped(tmp_path / "mine.zip", source)
    assert run("folder", "--source", archive, "--size", 24, "--format", "png", "--out", tmp_path / "out") == 0
    error = capsys.readouterr().err
    assert "skipped 1.png" in error and "skipped 2.png: Image size (160000 pixels) exceeds" in error
    assert keys(tmp_path / "out") == ["24-00000", "24-00001"]
    image, _ = build(f"folder:{tmp_path / 'out'}", "train", 24)[1]
    np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(picture(3)))
    assert prepare.main(["inspect", str(tmp_path / "out")]) == 0
    assert "skipped  2 bad originals when it was prepared: 1.png, 2.png" in capsys.readouterr().out


# -- untrusted originals ---------------------------------------------------------------------------------------------


def test_members_of_a_zip_are_not_looked_for_on_the_disk(tmp_path, capsys):
    """No root and no link leads out of the zip, of which nothing is unpacked anyway; names with ../ are left out."""
    names = ["../outside.png", str(tmp_path / "absolute.png"), "c/../../up.png"]
    for name in ("outside.png", "absolute.png", "up.png"):
        picture(9, 30, 30).save(tmp_path / name)
    source = tmp_path / "mine" / "evil.zip"
    source.parent.mkdir()
    with zipfile.ZipFile(source, "w") as archive:
        for seed, name in enumerate(names):
            archive.writestr(name, encoded(picture(seed, 24, 24)))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../outside.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "mine" / "out"
    assert run("folder", "--source", source, "--size", 24, "--format", "png", "--out", out) == 0
    assert "skipped link.png: no image format" in capsys.readouterr().err
    stored = {Image.open(io.BytesIO(entries(out)[key])).tobytes() for key in keys(out)}
    assert stored == {picture(names.index(str(tmp_path / "absolute.png")), 24, 24).tobytes()}
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and out not in path.parents}
    assert after == before


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_originals_are_bounded(tmp_path, capsys, monkeypatch, kind):
    source = image_folder(tmp_path / "mine", ["a.png", "b.png"])
    picture(2, 400, 400).save(tmp_path / "mine/b.png")
    source = zipped(tmp_path / "mine.zip", source) if kind == "zip" else source
    for module in (images, originals):
        monkeypatch.setattr(module, "MAX_BYTES", (tmp_path / "mine/b.png").stat().st_size - 1)
    assert run("folder", "--source", source, "--size", 24, "--out", tmp_path / "out") == 0
    assert "skipped b.png: it " in capsys.readouterr().err and len(keys(tmp_path / "out")) == 1
    monkeypatch.undo()
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    assert run("folder", "--source", source, "--size", 24, "--out", tmp_path / "again") == 0
    assert "skipped b.png: 400x400 are more than 10000 pixels" in capsys.readouterr().err


def test_a_damaged_zip_is_one_line_or_bad_images(tmp_path):
    source = image_folder(tmp_path / "mine", ["a.png", "b.png"])
    (tmp_path / "mine/labels.csv").write_text("file,x\na.png,1\nb.png,2\n")
    chance = np.random.default_rng(0)
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / "mine.zip", "w", compression) as archive:
            for name in ("a.png", "b.png", "labels.csv"):
                archive.write(tmp_path / "mine" / name, name)
        whole = (tmp_path / "mine.zip").read_bytes()
        for trial in range(30):
            data = bytearray(whole)
            for place in chance.integers(len(data), size=3):
                data[place] ^= 1 << chance.integers(8)
            source = tmp_path / f"{compression}_{trial}.zip"
            source.write_bytes(data)
            try:  # it is read as far as it can be
                found = originals.open_originals(str(source))
                for name in found.names():
                    with contextlib.suppress(BadImage, OSError):
                        found.image(name)
                found.companion(["labels.csv"], beside=False)
            except UserError as error:
                assert "\n" not in str(error)


def test_a_label_file_that_cannot_be_unpacked_is_one_line(tmp_path, capsys):
    image_folder(tmp_path / "mine", ["a.png"])
    (tmp_path / "mine/labels.csv").write_text("file,x\na.png,12345\n")
    source = zipped(tmp_path / "mine.zip", tmp_path / "mine")
    source.write_bytes(source.read_bytes().replace(b"12345", b"12346"))
    assert run("folder", "--source", source, "--size", 24, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "mine.zip: labels.csv cannot be unpacked: Bad CRC-32" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "record", [b"", b"[]", b"{}", b'{"settings": {}}', b'{"settings": {"images": 2}, "done": 1, "skipped": [["a"]]}']
)
def test_a_foreign_record_is_one_line(tmp_path, capsys, record):
    image = {"24-00000": encoded(picture(0))}
    path = write_lmdb(tmp_path / "lmdb", {**image, writer.RECORD_KEY: record})
    assert prepare.main(["inspect", path]) == 2
    assert "lmdb: expected a preparation's record under dbae-prepare" in capsys.readouterr().err


# -- interruption ----------------------------------------------------------------------------------------------------


def test_an_interrupted_command_continues(tmp_path, monkeypatch, capsys):
    source = image_folder(tmp_path / "mine", [f"{i}.png" for i in range(20)])
    (tmp_path / "mine/2.png").write_bytes(b"bad")
    arguments = ("folder", "--source", source, "--size", 24, "--out")
    assert run(*arguments, tmp_path / "whole") == 0
    monkeypatch.setattr(writer, "CHUNK", 4)
    convert, converted = writer.Job.convert, []

    def interrupted(job, name):
        if len(converted) == 10:
            raise KeyboardInterrupt
        converted.append(name)
        return convert(job, name)

    with monkeypatch.context() as patch:
        patch.setattr(writer.Job, "convert", interrupted)
        assert run(*arguments, tmp_path / "out") == 130
    assert "length" not in entries(tmp_path / "out") and len(keys(tmp_path / "out")) == 7
    with pytest.raises(UserError, match="out: its preparation is unfinished, run the same prepare command again"):
        build(f"folder:{tmp_path / 'out'}", "train", 24)
    capsys.readouterr()
    assert prepare.main(["inspect", str(tmp_path / "out")]) == 1
    assert "unfinished: 8 of 20 originals" in capsys.readouterr().out
    assert run(*arguments, tmp_path / "out") == 0
    assert entries(tmp_path / "out") == entries(tmp_path / "whole")
    before = os.path.getmtime(tmp_path / "out/data.mdb")
    assert run(*arguments, tmp_path / "out") == 0
    assert "was finished before, nothing to do: 19 images" in capsys.readouterr().out
    assert os.path.getmtime(tmp_path / "out/data.mdb") == before


@pytest.mark.parametrize("signals", [[signal.SIGKILL], [signal.SIGINT] * 2])
def test_a_stopped_command_continues_and_leaves_no_process(tmp_path, signals):
    source = image_folder(tmp_path / "mine", ["0.png"], 300, 300)
    for i in range(1, 800):
        os.link(tmp_path / "mine/0.png", tmp_path / f"mine/{i}.png")
    out = tmp_path / "out"
    arguments = ["folder", "--source", source, "--size", "64", "--out", str(out), "--workers", "2"]
    command = [sys.executable, "-m", "datasets.prepare", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    data = out / "data.mdb"
    _wait_until(lambda: process.poll() is not None or (data.exists() and data.stat().st_size > 50_000 and keys(out)))
    for number in signals:
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        time.sleep(0.01)
    assert process.wait(20) == (130 if signals[0] == signal.SIGINT else -signal.SIGKILL)
    assert 0 < len(keys(out)) < 800 and "length" not in entries(out)
    _wait_until(lambda: not _group_lives(process.pid))
    assert run(*arguments[:-2]) == 0
    assert len(keys(out)) == 800 and entries(out)["length"] == b"800"


def _wait_until(condition, seconds=30):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.02)


def _group_lives(group):
    """Whether a process of the group runs (an orphan waiting to be reaped does not)."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, found = file.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(found) == group and state != "Z":
            return True
    return False


def test_other_settings_or_other_files_are_refused(tmp_path, capsys):
    source = image_folder(tmp_path / "mine", ["a.png", "b.png"])
    assert run("folder", "--source", source, "--size", 24, "--out", tmp_path / "out") == 0
    assert run("folder", "--source", source, "--size", 32, "--out", tmp_path / "out") == 2
    assert "was begun with keys 24-%05d, now 32-%05d" in capsys.readouterr().err
    picture(3).save(tmp_path / "mine/c.png")
    assert run("folder", "--source", source, "--size", 24, "--out", tmp_path / "out") == 2
    assert "was begun with images 2, now 3" in capsys.readouterr().err
    assert run("folder", "--source", source, "--size", 24, "--limit", 2, "--out", tmp_path / "out") == 0
    foreign = image_lmdb(tmp_path / "foreign", "256-%05d", 2)
    assert run("folder", "--source", source, "--out", foreign) == 2
    assert "that this command did not make" in capsys.readouterr().err
    assert len(keys(foreign)) == 2


def test_changed_originals_are_refused(tmp_path, capsys):
    source = image_folder(tmp_path / "mine", ["a.png", "b.png"])
    archive = zipped(tmp_path / "mine.zip", source)
    commands = [("folder", "--source", path, "--size", 24, "--out", f"{path}.out") for path in (source, archive)]
    assert [run(*command) for command in commands * 2] == [0] * 4
    assert capsys.readouterr().out.count("nothing to do") == 2
    picture(7).save(tmp_path / "mine/b.png")
    zipped(archive, source)
    for command in commands:
        assert run(*command) == 2
        assert "with digest of the originals (names, sizes, times)" in capsys.readouterr().err


# -- label files -----------------------------------------------------------------------------------------------------


def kaggle(folder, cells=("-1", "1")):
    """The label files of ten images, under the names and in the form that Kaggle has."""
    rows = "".join(f"{name},{cells[i % 2]}\n" for i, name in enumerate(NUMBERED))
    (folder / "list_attr_celeba.csv").write_text(f"image_id,Male\n{rows}")
    rows = "".join(f"{name},{i // 4}\n" for i, name in enumerate(NUMBERED))
    (folder / "list_eval_partition.csv").write_text(f"image_id,partition\n{rows}")
    return folder / "list_attr_celeba.csv", folder / "list_eval_partition.csv"


@pytest.mark.parametrize("given", [True, False])
def test_kaggles_label_files_are_found_or_given(tmp_path, given):
    image_folder(tmp_path / "originals/img_align_celeba", NUMBERED, 178, 218)
    (tmp_path / "elsewhere").mkdir()
    attributes, partition = kaggle(tmp_path / ("elsewhere" if given else "originals"))
    words = ("--attributes", attributes, "--partition", partition) if given else ()
    assert run("celeba", "--source", tmp_path / "originals/img_align_celeba", "--out", tmp_path / "celeba", *words) == 0
    dataset = build("celeba", "valid", 8, data_root=str(tmp_path))
    assert (list(dataset.indices), dataset.targets("binary").values[:, 0].tolist()) == ([4, 5, 6, 7], [0, 1] * 2)


@pytest.mark.parametrize(
    ("attributes", "partition", "message"),
    [
        (
            "list_eval_partition.txt",
            "list_eval_partition.txt",
            "expected a header line and labels, this looks like a part",
        ),
        ("list_attr_celeba.txt", "list_attr_celeba.txt", "expected a partition, .*this is a list of labels"),
        ("short.txt", "list_eval_partition.txt", "short.txt: expected 10 rows, as it says on line 1, there are 9"),
        ("png.txt", "list_eval_partition.txt", "there is none for '000001.jpg' .its 10 rows begin with '000001.png'"),
        ("none.txt", "list_eval_partition.txt", "none.txt: expected a readable text file of labels: No such file"),
    ],
)
def test_wrong_label_files_are_refused_before_anything_is_written(
    tmp_path, celeba, capsys, attributes, partition, message
):
    official = (celeba / "list_attr_celeba.txt").read_text()
    (celeba / "short.txt").write_text(official[: official.index("000010")])
    (celeba / "png.txt").write_text(official.replace(".jpg", ".png"))
    words = ("--attributes", celeba / attributes, "--partition", celeba / partition)
    assert run("celeba", "--source", celeba, "--out", tmp_path / "celeba", *words) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1 and not (tmp_path / "celeba").exists()


def test_a_corrected_label_file_replaces_the_one_of_before(tmp_path, celeba, capsys):
    out, source = tmp_path / "celeba", celeba / "list_attr_celeba.txt"
    words = ("celeba", "--source", celeba, "--out", out)
    assert run(*words) == run(*words) == 0
    assert "nothing to do" in capsys.readouterr().out
    corrected = source.read_text().replace("000003.jpg 1", "000003.jpg -1")
    source.write_text(corrected)
    assert run(*words) == 0
    assert "finished before, wrote list_attr_celeba.txt anew" in capsys.readouterr().out
    assert (out / "list_attr_celeba.txt").read_text() == corrected
    (out / "list_attr_celeba.txt").write_text("10\nMine\n")
    assert run(*words) == 2
    assert "list_attr_celeba.txt: it is not from this command, and would be replaced" in capsys.readouterr().err
    assert (out / "list_attr_celeba.txt").read_text() == "10\nMine\n"


def test_the_labels_of_a_folder_lie_in_it(tmp_path, capsys):
    source = image_folder(tmp_path / "mine", ["a.png", "b.png"])
    (tmp_path / "labels.csv").write_text("file,x\na.png,1\nb.png,2\n")  # somebody else's
    words = ("folder", "--source", source, "--size", 24, "--out", tmp_path / "out")
    assert run(*words) == 0 and not (tmp_path / "out/labels.csv").exists()
    table = tmp_path / "mine/labels.csv"
    for row, value in (("b.png,2", 2), ("b.png,3", 3)):
        table.write_text(f"file,x\na.png,1\n{row}\nc.png,9\n")
        assert run(*words) == 0
        printed = capsys.readouterr()
        assert "wrote labels.csv anew" in printed.out and "note: 1 rows of" in printed.err
        assert build(f"folder:{tmp_path / 'out'}", "train", 8).targets().values.tolist() == [[1], [value]]
    before = table.read_bytes()
    assert run(*words[:-1], source) == 2  # into the folder of the originals
    assert "mine/labels.csv: it is not from this command" in capsys.readouterr().err
    assert table.read_bytes() == before


def test_a_folder_of_images_does_not_become_an_lmdb(tmp_path, capsys):
    source = image_folder(tmp_path / "mine", ["a.png", "sub/b.png"])
    others = image_folder(tmp_path / "others", ["c.png"])
    before = sorted(tmp_path.rglob("*"))
    for out in (source, tmp_path / "mine/sub", others):
        assert run("folder", "--source", source, "--size", 24, "--out", out) == 2
        assert "it has images, which an LMDB beside them would hide" in capsys.readouterr().err
    labels = tmp_path / "mine/labels.csv"
    labels.write_text("file,x\na.png,1\nsub/b.png,2\n")
    assert run("folder", "--source", source, "--size", 24, "--out", source) == 2
    assert sorted({*tmp_path.rglob("*")} - {labels}) == before


def test_inspect_parses_label_files(tmp_path, celeba, capsys):
    assert run("celeba", "--source", celeba, "--out", tmp_path / "celeba") == 0
    assert prepare.main(["inspect", str(tmp_path / "celeba")]) == 0
    printed = capsys.readouterr().out
    assert "list_attr_celeba.txt: 10 rows of 1 labels" in printed and "partition.txt: 10 rows of splits" in printed
    _, partition = kaggle(tmp_path)
    (tmp_path / "celeba/list_attr_celeba.txt").write_bytes(partition.read_bytes())
    (tmp_path / "celeba/list_eval_partition.txt").write_text("000001.jpg 0\n")
    (tmp_path / "celeba/labels.csv").write_text("key,x\nNone-0000000,1\n")
    assert prepare.main(["inspect", str(tmp_path / "celeba")]) == 1
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("PROBLEM")]
    for found, expected in zip(problems, ("looks like a partition", "for '000002.jpg'", "'None-0000001'"), strict=True):
        assert expected in found


def test_the_file_is_no_larger_than_needed_and_the_map_grows(tmp_path, monkeypatch):
    source = tmp_path / "mine"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    for i, image in enumerate(noise):
        Image.fromarray(image).save(source / f"{i}.png")
    monkeypatch.setattr(writer, "FIRST_MAP", 1 << 16)
    assert run("folder", "--source", source, "--size", 64, "--format", "png", "--out", tmp_path / "out") == 0
    payload = sum(map(len, entries(tmp_path / "out").values()))
    assert payload > 400_000
    assert os.path.getsize(tmp_path / "out/data.mdb") < 1.5 * payload + (1 << 16)


# -- command line ----------------------------------------------------------------------------------------------------


def test_inspect_reports_bad_records(tmp_path, capsys):
    images = {f"256-{i:05d}": encoded(picture(i)) for i in range(4)}
    path = write_lmdb(tmp_path / "lmdb", {**images, "256-00002": b"broken", "length": b"4", "128-00000": b""})
    (tmp_path / "lmdb/labels.csv").write_text("key,x\n" + "".join(f"256-{i:05d},1\n" for i in range(4)))
    assert prepare.main(["inspect", path, "--full"]) == 1
    printed = capsys.readouterr().out
    for expected in ("4 of format 256-%05d", "24x24, PNG", "1 bad images, the first is 256-00002", "labels.csv"):
        assert expected in printed
    assert prepare.main(["inspect", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["celeba", "--source", "none"], "source none: expected a folder of images, a zip or an LMDB"),
        (["lsun", "--source", "x", "--category", "cat"], "invalid choice: 'cat'"),
        (["folder", "--source", "x", "--size", "big"], "expected a positive whole number, got 'big'"),
    ],
)
def test_wrong_usage_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = prepare.main(words)
    except SystemExit as exit_:
        status = exit_.code
    error = capsys.readouterr().err
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize("named", [True, False])
def test_folders_with_names_become_classes(tmp_path, named):
    kinds = ("dog", "cat") if named else ("00000", "00001")
    source = image_folder(tmp_path / "mine", [f"{kind}/{i}.png" for kind in kinds for i in range(10)])
    assert run("folder", "--source", source, "--size", 24, "--out", tmp_path / "out") == 0
    dataset = build(f"folder:{tmp_path / 'out'}", "train", 24)
    assert dataset.has_labels == named
    if named:
        targets = dataset.targets()
        assert (targets.names, targets.values.tolist()) == (("cat", "dog"), [0] * 10 + [1] * 10)
