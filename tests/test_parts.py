"""Train, valid and test of own images."""

import json

import pytest
import tiny
import torch
from lmdb_fixtures import image_folder, image_lmdb, write_lmdb

from datasets import build, labelled_splits, prepare
from datasets.parts import shuffled_parts
from dbae.checkpoint import config_content, write_config
from dbae.config import UserError
from scripts import train
from scripts.common import load
from scripts.options import DataOptions
from scripts.train import data_entry
from scripts.train_options import RunOptions

SPLITS = ("train", "valid", "test")


def names(data):
    return [data.name_of(i) for i in range(len(data))]


def parts(name, **options):
    return {split: names(build(name, split, 8, **options)) for split in SPLITS}


def assert_disjoint(found, whole):
    assert sorted(name for part in found.values() for name in part) == sorted(whole)


def test_parts_are_those_that_probes_always_had():
    """Of 200 images the first five of valid are the numbers of the old split of folders, on every machine."""
    found = shuffled_parts(200)
    assert found["valid"][:5] == [16, 24, 41, 43, 46] and {s: len(found[s]) for s in SPLITS} == {
        "train": 160, "valid": 20, "test": 20,
    }  # fmt: skip
    by_class = shuffled_parts(200, [i // 100 for i in range(200)])
    assert [sum(i < 100 for i in by_class[split]) for split in SPLITS] == [80, 10, 10]


def test_a_folder_has_held_out_images(tmp_path, caplog):
    folder = image_folder(tmp_path / "own", [f"{i}.png" for i in range(40)], 8, 8)
    found, whole = parts(f"folder:{folder}"), names(build(f"folder:{folder}", "all", 8))
    assert [len(found[split]) for split in SPLITS] == [32, 4, 4] and len(whole) == 40
    assert_disjoint(found, whole)
    assert found["test"] == [whole[i] for i in shuffled_parts(40)["test"]]
    assert "40 images: 32 train, 4 valid, 4 test, shuffled with seed 2" in caplog.text
    assert names(build(f"folder:{folder}", "test", 8, split_range="1:3")) == found["test"][1:3]
    with pytest.raises(UserError, match=r"split of .*own: expected train or valid or test or all, got 'dev'"):
        build(f"folder:{folder}", "dev", 8)


def test_few_images_are_all_of_them_everywhere(tmp_path, caplog):
    folder = image_folder(tmp_path / "own", [f"{i}.png" for i in range(29)], 8, 8)
    assert all(len(part) == 29 for part in parts(f"folder:{folder}").values())
    said = [record.message for record in caplog.records]
    assert said == [f"{folder}: 29 images, fewer than 30: train, valid and test are all of them"]


def test_sub_folders_are_split_class_by_class(tmp_path):
    """But those with a few images together, so that not all of them are test."""
    files = [f"{kind}/{i}.png" for kind, n in (("a", 50), ("b", 20), ("c", 10)) for i in range(n)]
    files += [f"single{i}/0.png" for i in range(20)]
    folder = image_folder(tmp_path / "own", files, 8, 8)
    found = parts(f"folder:{folder}")
    assert_disjoint(found, files)
    counts = {
        s: [sum(name.startswith(kind) for name in found[s]) for kind in ("a/", "b/", "c/", "single")] for s in SPLITS
    }
    assert counts == {"train": [40, 16, 8, 16], "valid": [5, 2, 1, 2], "test": [5, 2, 1, 2]}


def test_probes_use_the_parts_that_models_are_trained_on(tmp_path):
    folder = image_folder(tmp_path / "own", [f"{kind}/{i}.png" for kind in "ab" for i in range(30)], 8, 8)
    rows = "".join(f"{kind}/{i}.png,{i % 2}\n" for kind in "ab" for i in range(30))
    (tmp_path / "own" / "labels.csv").write_text(f"file,odd\n{rows}")
    found = parts(f"folder:{folder}")
    for kind in ("binary", "class"):
        labelled = labelled_splits(f"folder:{folder}", kind, 8)
        assert {split: names(part.dataset) for split, part in labelled.items()} == found
    real = labelled_splits(f"folder:{folder}", "real", 8)
    assert names(real["train"].dataset) == found["train"]
    assert sorted(names(real["test"].dataset)) == sorted(found["valid"] + found["test"])
    odd = [int(name[2:-4]) % 2 for name in names(real["test"].dataset)]
    assert real["test"].targets.values[:, 0].tolist() == odd


def people_folder(tmp_path, people, column="person", blank=0):
    """A folder with an image for every entry of ``people``, the last ``blank`` of them without a row."""
    folder = image_folder(tmp_path / "own", [f"{i}.png" for i in range(len(people))], 8, 8)
    rows = [f"{i}.png,{i % 2},{person}" for i, person in enumerate(people)][: len(people) - blank]
    (tmp_path / "own" / "labels.csv").write_text("\n".join([f"file,odd,{column}", *rows]) + "\n")
    return f"folder:{folder}"


@pytest.mark.parametrize("column", ["person", "group"])
def test_no_person_is_in_two_parts(tmp_path, column, caplog):
    people = [f"p{i * i % 23 if i % 3 else i}" for i in range(200)]
    name = people_folder(tmp_path, people, column)
    found = parts(name)
    assert_disjoint(found, [f"{i}.png" for i in range(200)])
    who = {split: {people[int(each[:-4])] for each in found[split]} for split in SPLITS}
    assert not who["train"] & who["valid"] and not (who["train"] | who["valid"]) & who["test"]
    assert all(abs(len(found[s]) / 200 - share) < 0.05 for s, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True))
    assert f"shuffled with seed 2, by {column}" in caplog.text
    labelled = labelled_splits(name, "binary", 8)
    assert {split: names(part.dataset) for split, part in labelled.items()} == found
    assert labelled["train"].targets.names == ("odd",)  # people are no labels
    assert build(name, "all", 8).targets().names == ("odd",)


def test_few_people_and_large_ones(tmp_path, caplog):
    name = people_folder(tmp_path, ["big"] * 90 + ["x"] * 5 + ["y"] * 5)
    found = parts(name)
    assert [len(found[split]) for split in SPLITS] == [90, 5, 5] and "0.png" in found["train"]
    people_folder(tmp_path, ["big"] * 90 + ["x"] * 10)
    assert [len(part) for part in parts(name).values()] == [100] * 3
    assert "100 images of 2 in column person, fewer than 3: train, valid and test are all of them" in caplog.text
    people_folder(tmp_path, ["a"] * 10 + [""] * 90, blank=50)  # who nobody knows is somebody else each time
    assert [len(part) for part in parts(name).values()] == [80, 10, 10]


def test_labels_that_cannot_be_read_do_not_count(tmp_path):
    folder = image_folder(tmp_path / "own", [f"{i}.png" for i in range(40)], 8, 8)
    before = parts(f"folder:{folder}")
    for text in (b"\xff\xfe\xff", b"file,person,person\n0.png,1,2\n", b"file,person\n0.png,1,2,3\n", b""):
        (tmp_path / "own" / "labels.csv").write_bytes(text)
        assert parts(f"folder:{folder}") == before


def test_a_prepared_folder_has_the_same_parts(tmp_path):
    classes = "".join(f"8-{i:05d},{'ab'[i // 25]}\n" for i in range(50))
    folder = image_folder(tmp_path / "own", [f"{kind}/{i}.png" for kind in "ab" for i in range(25)], 8, 8)
    path = image_lmdb(tmp_path / "lmdb", "8-%05d", 50, 8, 8)
    (tmp_path / "lmdb" / "labels.csv").write_text(f"key,class\n{classes}")
    indices = {split: list(build(f"folder:{folder}", split, 8).indices) for split in SPLITS}
    assert {split: list(build(f"folder:{path}", split, 8).indices) for split in SPLITS} == indices


def test_labels_are_those_of_the_folder_itself(tmp_path):
    """A file of the same name in its parent is of something else; so it is beside an LMDB of one file."""
    folder = image_folder(tmp_path / "own", [f"{i}.png" for i in range(3)], 8, 8)
    path = image_lmdb(tmp_path / "one.lmdb", "8-%05d", 3, 8, 8, subdir=False)
    (tmp_path / "labels.csv").write_text("file,x\n" + "".join(f"own/{i}.png,1\n8-{i:05d},1\n" for i in range(3)))
    for name in (folder, path):
        data = build(f"folder:{name}", "train", 8)
        assert not data.has_labels
        with pytest.raises(UserError, match="has no labels"):
            data.targets()


def test_all_of_every_set(tmp_path):
    path = write_lmdb(tmp_path / "celeba", {f"None-{i:07d}": b"x" for i in range(20)})
    assert [len(build("celeba", split, 8, data_dir=path)) for split in (*SPLITS, "all")] == [16, 2, 2, 20]
    assert len(build("toyfaces", "all", 8)) == 12_000 and len(build("sprites", "all", 8)) == 737_280


def words(folder, tmp_path, *more):
    return [f"--dataset=folder:{folder}", f"--workdir={tmp_path / 'run'}", "--device=cpu", *more]


def test_a_run_keeps_what_it_was_trained_on(tmp_path):
    def split(*more):
        return train.parse(words("photos", tmp_path, *more))[0].split

    assert (split(), split("--split=all")) == ("train", "all")
    options, model, _ = train.parse(words("photos", tmp_path))
    for content, expected in (({}, "all"), ({"data": {"images": 5}}, "all"), ({"data": {"split": "train"}}, "train")):
        config = tmp_path / "run" / f"folder-photos-{model.name}" / "config.json"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps({"model": {}, "preset": options.preset, **content}))
        assert split() == expected and split("--split=train") == "train"


def test_training_images_that_are_in_other_parts_now_are_told(tmp_path, capsys):
    """A folder with one image less is split anew."""
    folder = image_folder(tmp_path / "own", [f"{i}.png" for i in range(40)], 8, 8)
    path, name = tiny.written(tmp_path, tiny.model()), f"folder:{folder}"
    options = DataOptions(dataset=name, model_path=str(path), split="test")

    def told(trained_on="train"):
        run = RunOptions(dataset=name, split=trained_on)
        content = config_content(tiny.model(), name) | {
            "data": entry or data_entry(run, build(name, trained_on, 8), None)
        }
        write_config(str(tmp_path), content)
        load(options, {"image_size": 32})
        return content["data"], capsys.readouterr().err

    entry = None
    trained, said = told()
    assert said == ""
    assert "the model was trained on all of its images" in told("all")[1]
    (tmp_path / "own" / "7.png").unlink()
    entry = trained
    assert "its training images are others now than when the model was trained" in told()[1]


def test_labels_of_all_images_and_of_parts(tmp_path):
    name = people_folder(tmp_path, [f"p{i}" for i in range(40)])
    whole, test = build(name, "all", 8), build(name, "test", 8)
    numbers = [int(each[:-4]) for each in names(test)]
    assert torch.equal(test.targets("binary").values, whole.targets("binary").values[numbers])


def contents(name):
    """Pixels of the images of every part."""
    data = (build(name, split, 8) for split in SPLITS)
    return [sorted(each[i][0].numpy().tobytes() for i in range(len(each))) for each in data]


@pytest.mark.parametrize("labels", ["", "file,odd\n"])
def test_an_lmdb_of_numbered_class_folders_has_the_parts_of_the_folder(tmp_path, labels):
    files = [f"{kind}/{i}.png" for kind in (1, 2, 3) for i in range(20)]
    source = image_folder(tmp_path / "own", files, 8, 8)
    if labels:
        rows = "".join(f"{name},{i % 2}\n" for i, name in enumerate(files))
        (tmp_path / "own" / "labels.csv").write_text(labels + rows)
    out = tmp_path / "lmdb"
    assert prepare.main(["folder", "--source", source, "--size", "8", "--format", "png", "--out", str(out)]) == 0
    assert contents(f"folder:{out}") == contents(f"folder:{source}")
    (out / "parts.csv").write_text("key,part\n8-00000,train\n")
    with pytest.raises(UserError, match=r"parts.csv: expected train, valid, test for every image, 8-00001 has nothing"):
        build(f"folder:{out}", "test", 8)


def test_classes_of_five_images_are_split_together(tmp_path):
    folder = image_folder(tmp_path / "own", [f"{kind}/{i}.png" for kind in "abcdefgh" for i in range(5)], 8, 8)
    assert [len(part) for part in parts(f"folder:{folder}").values()] == [32, 4, 4]
    assert shuffled_parts(40, [i // 5 for i in range(40)]) == shuffled_parts(40)
