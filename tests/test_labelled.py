"""LFW, and the splits with checked targets that linear probes are fitted on."""

import logging
from collections import Counter

import numpy as np
import pytest
import torch
from lmdb_fixtures import encoded, image_folder, image_lmdb, picture
from PIL import Image

from datasets import Labelled, build, labelled_splits, toyfaces
from datasets.label_files import parse_labels, parse_partition, read_labels
from datasets.lfw import ORIGINS, centre
from dbae.config import UserError
from eval.reconstruction import import_torchvision
from scripts.labelled import spread

PEOPLE = {  # and the number of their images
    "train": {"Ann_Lee": 2, "Abdul_Rahman_al-Omari": 1, "George_W_Bush": 3},
    "test": {"Bo_Li": 2, "John_F_Kennedy_Jr": 2},
}
WITHOUT = {"Ann_Lee/Ann_Lee_0002.jpg", "George_W_Bush/George_W_Bush_0001.jpg", "Bo_Li/Bo_Li_0001.jpg"}
ATTRIBUTES = ("Male", "Black Hair", "No Eyewear", *(f"Trait {i}" for i in range(70)))
TRAIN = [
    "Ann_Lee/Ann_Lee_0001.jpg",
    "Abdul_Rahman_al-Omari/Abdul_Rahman_al-Omari_0001.jpg",
    "George_W_Bush/George_W_Bush_0002.jpg",
    "George_W_Bush/George_W_Bush_0003.jpg",
]
TEST = ["Bo_Li/Bo_Li_0002.jpg", "John_F_Kennedy_Jr/John_F_Kennedy_Jr_0001.jpg"]
TEST += ["John_F_Kennedy_Jr/John_F_Kennedy_Jr_0002.jpg"]


def raises(message):
    return pytest.raises(UserError, match=message)


def photo(name):
    """The picture that an image of LFW is made of."""
    return picture(sum(name.encode()), 250, 250)


def traits(name):
    """The attributes of an image of LFW, as they are written."""
    return [f"{x:.6f}" for x in np.random.default_rng(list(name.encode())).normal(size=73)]


@pytest.fixture
def lfw(tmp_path):
    """A small LFW under tmp_path/lfw; rows are in another order than the people."""
    root = tmp_path / "lfw"
    rows = []
    for split, people in PEOPLE.items():
        for person, count in people.items():
            (root / "lfw_funneled" / person).mkdir(parents=True)
            for number in range(1, count + 1):
                name = f"{person}/{person}_{number:04d}.jpg"
                (root / "lfw_funneled" / name).write_bytes(encoded(photo(name), "JPEG"))
                if name not in WITHOUT:
                    rows.append("\t".join([person.replace("_", " "), str(number), *traits(name)]))
        lines = [str(len(people)), *(f"{person}\t{count}" for person, count in people.items())]
        (root / f"peopleDev{split.title()}.txt").write_text("\n".join(lines) + "\n")
    header = "\t".join(["#", "person", "imagenum", *ATTRIBUTES])
    (root / "lfw_attributes.txt").write_text(
        "\n".join(["# LFW attributes", header, *sorted(rows, reverse=True)]) + "\n"
    )
    return root


def edit(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


# -- LFW -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "names"), [("train", TRAIN), ("test", TEST)])
def test_lfw_images_and_attributes(lfw, split, names):
    dataset = build("lfw", split, 64, data_root=str(lfw.parent))
    assert [dataset.name_of(i) for i in range(len(dataset))] == names
    targets = dataset.targets()
    assert dataset.has_labels and targets.names == ATTRIBUTES
    assert (targets.values.dtype, targets.values.shape) == (torch.float32, (len(names), 73))
    expected = np.array([traits(name) for name in names]).astype(np.float32)
    np.testing.assert_array_equal(targets.values.numpy(), expected)
    image, position = dataset[1]
    assert (image.dtype, image.shape, position) == (torch.uint8, (3, 64, 64), 1)
    stored = Image.open(lfw / "lfw_funneled" / names[1])
    expected = stored.resize((70, 70), Image.Resampling.BILINEAR).crop((3, 3, 67, 67))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("shape", [(250, 250), (101, 67), (40, 90)])
def test_the_transform_is_that_of_torchvision(size, shape):
    import_torchvision()
    from torchvision.transforms import CenterCrop, Compose, Resize

    image = picture(5, *shape)
    expected = Compose([Resize(int(1.1 * size)), CenterCrop(size)])(image)
    np.testing.assert_array_equal(np.asarray(centre(image, size)), np.asarray(expected))


def test_every_missing_file_of_lfw_is_named(lfw, tmp_path):
    with raises("no LFW at .*/none/lfw, and its original host is gone") as caught:
        build("lfw", "train", 8, data_root=str(tmp_path / "none"))
    assert all(name in str(caught.value) for name in ORIGINS) and "\n" not in str(caught.value)
    for name in ("peopleDevTest.txt", "lfw_attributes.txt"):
        (lfw / name).unlink()
    with raises("missing there are peopleDevTest.txt .*, lfw_attributes.txt") as caught:
        build("lfw", "train", 8, data_dir=str(lfw))
    assert "lfw_funneled (" not in str(caught.value) and "peopleDevTrain.txt (" not in str(caught.value)


def test_missing_and_broken_images_of_lfw(lfw):
    (lfw / "lfw_funneled" / TRAIN[2]).write_bytes(b"no image")
    with raises("has a bad image George_W_Bush/George_W_Bush_0002.jpg: no image format"):
        build("lfw", "train", 8, data_dir=str(lfw))[2]
    (lfw / "lfw_funneled" / TRAIN[1]).unlink()
    with raises("lfw: 1 of 4 images are missing, the first is .*/lfw_funneled/Abdul_Rahman_al-Omari/Abdul"):
        build("lfw", "train", 8, data_dir=str(lfw))
    assert len(build("lfw", "train", 8, data_dir=str(lfw), split_range="2:")) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#\tperson", "person", "expected a comment on line 1, and on line 2 #, person, imagenum and the names"),
        ("\tBlack Hair\t", "\tMale\t", "expected different label names in the header"),
        ("Jr\t2\t", "Jr\ttwo\t", "expected a person, an image number and 73 values on line 3, .* 'John"),
        ("Jr\t2\t", "Jr\t2\t1.5\t", "expected 73 labels on line 3, got 74"),
        ("Jr\t2\t", "Jr\t1\t", "expected one row for 'John_F.*jpg', line 4 is another"),
        ("Jr\t2\t", "Jr\t2\tx", "expected a number on line 3, column 'Male', got 'x"),
        ("# LFW attributes\n", "", "expected a comment on line 1"),
    ],
)
def test_wrong_attributes_of_lfw(lfw, old, new, message):
    edit(lfw / "lfw_attributes.txt", old, new)
    with raises(f"lfw_attributes.txt: {message}"):
        build("lfw", "train", 8, data_dir=str(lfw)).targets()


@pytest.mark.parametrize("text", ["", "2\nBo_Li\t2\nJohn F Kennedy\t2\n", "2\nBo_Li\t2\nBo_Li\t2\n", "3\nBo_Li\t2\n"])
def test_wrong_people_of_lfw(lfw, text):
    (lfw / "peopleDevTest.txt").write_text(text)
    with raises("peopleDevTest.txt: expected a number on line 1, and as many rows of First_Last"):
        build("lfw", "test", 8, data_dir=str(lfw))


# -- label files -----------------------------------------------------------------------------------------------------

ROWS = [f"{i:06d}.jpg {1 if i % 2 else -1} -1" for i in range(1, 5)]
OFFICIAL = "\n".join(["4", "Bald Young", *ROWS]) + "\n"
CSV = "\n".join(["image_id,Bald,Young", *(row.replace(" ", ",") for row in ROWS)]) + "\n"
IMAGES = [f"{i:06d}.jpg" for i in range(1, 5)]


@pytest.mark.parametrize(
    "text",
    [
        OFFICIAL,
        OFFICIAL.replace(" ", "   ").replace("\n", "\r\n\r\n"),
        "\n \n" + CSV.replace("\n", "\r\n , ,\r\n"),
        "\ufeff" + CSV,
        "\ufeff" + OFFICIAL.replace("0000", "./0000"),
        CSV.replace("0000", ".\\0000").replace(",", " , "),
        CSV.encode("utf-16"),
        OFFICIAL.encode("utf-16"),
    ],
)
def test_forms_of_a_label_file(tmp_path, text):
    (tmp_path / "labels").write_bytes(text if isinstance(text, bytes) else text.encode())
    targets = read_labels(str(tmp_path / "labels")).targets(IMAGES, "binary")
    assert (targets.names, targets.values.tolist()) == (("Bald", "Young"), [[1, 0], [0, 0]] * 2)


def test_forty_columns_without_names_are_those_of_celeba():
    for gap in ",", " ":
        table = parse_labels("list", "".join(gap.join([name, *["-1"] * 40]) + "\n" for name in IMAGES))
        assert table.names == toyfaces.ATTRIBUTES and table.targets(IMAGES, "binary").values.sum() == 0


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg 0\nb.jpg  2\n",
        "a.jpg,0\r\nb.jpg,2\r\n",
        "image_id,partition\n\n./a.jpg,0\nb.jpg, 2\n",
        "file,split\nb.jpg,2\na.jpg,0",
    ],
)
def test_forms_of_a_partition(text):
    assert parse_partition("list", text).targets(["b.jpg", "a.jpg"]).values.tolist() == [[2], [0]]
    with raises("list: expected a header line and labels, this looks like a partition"):
        parse_labels("list", text)


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_partition, OFFICIAL, "expected a partition, .*; this is a list of labels"),
        (parse_partition, CSV, "expected a partition, .*; this is a list of labels"),
        (parse_partition, "image_id,Bald\na.jpg,1\n", "this is a list of labels"),
        (parse_partition, "a.jpg 0\nb.jpg\n", "expected a file name and 0, 1 or 2 on line 2, got 'b.jpg'"),
        (parse_partition, "a.jpg 0\n./a.jpg 1\n", "expected one row for './a.jpg', line 2 is another"),
        (
            parse_labels,
            OFFICIAL.replace("4", "9", 1),
            "expected 9 rows, as it says on line 1, there are 4: the file is cut",
        ),
        (parse_labels, OFFICIAL[:-4], "expected 2 labels on line 6, got 1"),
        (parse_labels, OFFICIAL[2:], "expected a header line"),
        (parse_labels, "4\n", "expected a header line"),
        (parse_labels, "\n".join(ROWS), "expected a header line"),
    ],
)
def test_wrong_label_files(parse, text, message):
    with raises(f"^list: .*{message}"):
        parse("list", text)


@pytest.mark.parametrize("data", [CSV.encode("utf-16-le"), "file,é\na,1".encode("latin-1"), b"PK\3\4\0\0"])
def test_label_files_that_are_no_text(tmp_path, data):
    (tmp_path / "labels.csv").write_bytes(data)
    with raises("labels.csv: expected a readable text file, UTF-8 or UTF-16 with its mark"):
        read_labels(str(tmp_path / "labels.csv"))
    with raises("none.csv: expected a readable text file of labels: No such file"):
        read_labels(str(tmp_path / "none.csv"))


def test_names_find_their_rows(tmp_path, caplog):
    """However paths and accents are written; rows that no image has are counted."""
    root = image_folder(tmp_path, ["caf\u00e9.png", "x/cafe\u0301.png", "z.png"], 8, 8)
    rows = ["./x/caf\u00e9.png,1", "cafe\u0301.png,2", "x\\..\\z.png,3", "y.png,4"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,age", *rows]), encoding="utf-8")
    dataset = build(f"folder:{root}", "train", 8)
    values = dict(zip(map(dataset.name_of, range(3)), dataset.targets().values[:, 0].tolist(), strict=True))
    assert values == {"caf\u00e9.png": 2, "x/cafe\u0301.png": 1, "z.png": 3}
    assert "1 of 4 rows are for images that are not there" in caplog.text
    image_folder(tmp_path, ["cafe\u0301.png"], 8, 8)
    with raises("labels.csv: expected images with different names, some differ by the writing of accents"):
        build(f"folder:{root}", "train", 8).targets()
    (tmp_path / "labels.csv").write_text("file,age\n" + "".join(f"{i}.jpg,1\n" for i in range(4)))
    with raises("there is none for 'caf.*.png' .its 4 rows begin with '0.jpg'"):
        build(f"folder:{root}", "train", 8).targets()


def test_celeba_reads_kaggles_files(tmp_path):
    path = image_lmdb(tmp_path / "celeba", "None-%07d", 4, 178, 218)
    (tmp_path / "celeba/list_attr_celeba.csv").write_text(CSV)
    partition = tmp_path / "celeba/list_eval_partition.csv"
    partition.write_text("image_id,partition\n" + "".join(f"{name},{i // 2}\n" for i, name in enumerate(IMAGES)))
    dataset = build("celeba", "valid", 8, data_dir=path)
    assert (dataset.indices, dataset.targets("binary").values.tolist()) == ([2, 3], [[1, 0], [0, 0]])
    partition.write_text("".join(f"{name},0\n" for name in IMAGES[:3]))
    with raises("list_eval_partition.csv: .* there is none for '000004.jpg'"):  # not 3 images without a word
        build("celeba", "train", 8, data_dir=path)


# -- splits with targets ---------------------------------------------------------------------------------------------


def lengths(parts):
    for part in parts.values():
        assert len(part.dataset) == len(part.targets) == len(part.targets.values)
        assert part.targets.kind == "class" or part.targets.values.shape[1] == len(part.targets.names)
        assert part.targets.values.dtype == (torch.int64 if part.targets.kind == "class" else torch.float32)
    return {split: len(part.targets) for split, part in parts.items()}


def celeba(tmp_path, rows, names="Bald Young", count=20):
    """A CelebA of ``count`` images with rows by number."""
    path = image_lmdb(tmp_path / "celeba", "None-%07d", count, 178, 218)
    text = "".join(f"{i + 1:06d}.jpg {row}\n" for i, row in enumerate(rows))
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text(f"{count}\n{names}\n{text}")
    return path


def own_folder(tmp_path, columns, count=20):
    """A folder with the columns of labels.csv, name -> values. Its images are broken: none is read for labels."""
    root = tmp_path / "own"
    root.mkdir()
    for i in range(count):
        (root / f"{i}.png").touch()
    rows = [",".join([f"{i}.png", *(str(values[i]) for values in columns.values())]) for i in range(count)]
    (root / "labels.csv").write_text("\n".join([",".join(["file", *columns]), *rows]) + "\n")
    return f"folder:{root}"


def test_lfw_is_for_regression(lfw):
    parts = labelled_splits("lfw", "real", 8, data_root=str(lfw.parent))
    assert lengths(parts) == {"train": 4, "test": 3}
    assert parts["test"].targets.names == ATTRIBUTES
    np.testing.assert_allclose(parts["test"].targets.values[0], np.array(traits(TEST[0])).astype(float), rtol=1e-6)
    with raises("lfw: expected labels of the kind real, got binary"):
        labelled_splits("lfw", "binary", 8, data_root=str(lfw.parent))


def test_toyfaces(tmp_path):
    parts = labelled_splits("toyfaces", "binary", 8, data_root=str(tmp_path))
    assert lengths(parts) == {"train": 10_000, "valid": 1_000, "test": 1_000}
    assert parts["valid"].targets.names == toyfaces.ATTRIBUTES
    assert torch.equal(parts["valid"].targets.values, parts["valid"].dataset.targets().values)
    parts = labelled_splits("toyfaces", "real", 8, data_root=str(tmp_path))
    assert lengths(parts) == {"train": 10_000, "test": 1_000}
    assert parts["test"].targets.names == toyfaces.PARAMETERS
    assert torch.equal(parts["test"].targets.values, torch.from_numpy(toyfaces.targets(range(11_000, 12_000))))


def test_celeba_with_minus_one_for_no(tmp_path):
    path = celeba(tmp_path, ["1 -1", "-1 1"] * 10)
    parts = labelled_splits("celeba", "binary", 8, data_dir=path)
    assert lengths(parts) == {"train": 16, "valid": 2, "test": 2}
    assert parts["valid"].targets.names == ("Bald", "Young")
    assert parts["valid"].targets.values.tolist() == [[1, 0], [0, 1]]
    assert parts["valid"].dataset.indices == range(16, 18)
    parts = labelled_splits("celeba", "real", 8, data_dir=path)
    assert lengths(parts) == {"train": 16, "test": 2}
    assert parts["test"].targets.values.tolist() == [[1, -1], [-1, 1]]


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        (["1 -1", "-1 1"] * 9, "Bald Young", "expected 20 rows, as it says on line 1, there are 18: the file is cut$"),
        (["1 1"] * 19 + ["1 2"], "Bald Young", "column 'Young': expected 0 and 1, or -1 and 1, .* got 2$"),
        (["1 -1"] * 18 + ["1 1"] * 2, "Bald Young", "every label in train, there are none of Young$"),
    ],
)
def test_wrong_labels_of_celeba(tmp_path, rows, names, message):
    path = celeba(tmp_path, rows, names)
    with raises(f"list_attr_celeba.txt.* {message}"):
        labelled_splits("celeba", "binary", 8, data_dir=path)


def test_celebahq_is_split_by_index_and_says_so_once(tmp_path, caplog):
    path = image_lmdb(tmp_path / "celebahq", "128-%05d", 30)
    rows = "".join(f"{i}.jpg {1 if i % 3 else -1}\n" for i in range(30))
    (tmp_path / "celebahq" / "CelebAMask-HQ-attribute-anno.txt").write_text(f"30\nBald\n{rows}")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            parts = labelled_splits("celebahq", "binary", 8, data_root=str(tmp_path))
    assert lengths(parts) == {"train": 24, "valid": 3, "test": 3}
    assert parts["test"].dataset.name_of(0) == "128-00027"
    assert parts["test"].targets.values.tolist() == [[0], [1], [1]]
    assert lengths(labelled_splits("celebahq", "real", 8, data_dir=path)) == {"train": 24, "test": 6}
    said = Counter(record.message for record in caplog.records)
    assert said[f"{path}: no official split, so by index, 80 % train, 10 % valid, 10 % test"] == 1


def test_folder_with_labels_inside_and_elsewhere(tmp_path):
    name = own_folder(tmp_path, {"tall": [0, 1] * 40, "sure": [1] * 80, "old": [1, -1] * 40}, 80)
    parts = labelled_splits(name, "binary", 8)
    assert lengths(parts) == {"train": 64, "valid": 8, "test": 8}
    assert parts["valid"].targets.names == ("tall", "sure", "old")
    assert parts["valid"].targets.values.tolist() == [[i % 2, 1, 1 - i % 2] for i in parts["valid"].dataset.indices]
    other = tmp_path / "ages.csv"
    other.write_text("file,age\n" + "".join(f"{i}.png,{i / 2}\n" for i in range(80)))
    parts = labelled_splits(name, "real", 8, labels=str(other))
    assert lengths(parts) == {"train": 64, "test": 16}
    assert parts["test"].targets.names == ("age",)
    assert parts["test"].targets.values.tolist() == [[i / 2] for i in parts["test"].dataset.indices]
    with raises("ages.csv, column 'age': expected 0 and 1, or -1 and 1, as binary, got 0.5"):
        labelled_splits(name, "binary", 8, labels=str(other))


def test_a_sorted_folder_is_shuffled_before_it_is_split(tmp_path, caplog):
    """As is an LMDB that is made of it: to the same splits, whatever the kind of label."""
    name = own_folder(tmp_path, {"late": [0] * 100 + [1] * 100}, 200)
    with caplog.at_level(logging.WARNING):
        parts = labelled_splits(name, "binary", 8)
    assert all(0.3 < part.targets.values.mean() < 0.7 for part in parts.values())
    assert "own: 200 images: 160 train, 20 valid, 20 test, shuffled with seed 2" in caplog.text
    indices = {split: part.dataset.indices for split, part in parts.items()}
    assert sorted(i for each in indices.values() for i in each) == list(range(200))
    assert indices["valid"][:5] == [16, 24, 41, 43, 46]  # on every machine
    path = image_lmdb(tmp_path / "lmdb", "8-%05d", 200, 8, 8)
    rows = "".join(f"8-{i:05d},{i // 100}\n" for i in range(200))
    (tmp_path / "lmdb/labels.csv").write_text(f"key,late\n{rows}")
    again = labelled_splits(f"folder:{path}", "binary", 8)
    assert indices == {split: part.dataset.indices for split, part in again.items()}
    classes = labelled_splits(name, "class", 8)
    assert indices == {split: part.dataset.indices for split, part in classes.items()}


@pytest.mark.parametrize(("task", "count"), [("binary", 5), ("real", 1)])
def test_folder_that_is_too_small(tmp_path, task, count):
    name = own_folder(tmp_path, {"x": [1] * count}, count)
    with raises(f"own: expected 10 images or more to split, got {count}"):
        labelled_splits(name, task, 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0] + [1] * 18 + [-1], "labels.csv, column 'x': .* got 0 beside -1"),
        ([1] * 19 + ["nan"], "labels.csv: expected a number on line 21, column 'x', got 'nan'"),
        ([-1] * 20, "labels.csv: expected positives of every label in train, there are none of x$"),
    ],
)
def test_values_that_are_no_classes(tmp_path, values, message):
    name = own_folder(tmp_path, {"sure": [1] * 20, "x": values})
    with raises(message):
        labelled_splits(name, "binary", 8)


def test_a_label_without_positives_outside_train_is_for_the_scores_to_leave_out(tmp_path):
    parts = labelled_splits(own_folder(tmp_path, {"sure": [1] * 20, "x": [0] * 16 + [1, 1, 0, 0]}), "binary", 8)
    assert [parts[split].targets.values[:, 1].sum() for split in ("train", "valid", "test")] == [2, 0, 0]


def test_wrong_requests(tmp_path):
    with raises("labels: expected one of the kinds binary, class, real, got 'ranking'"):
        labelled_splits("toyfaces", "ranking", 8)
    with raises("labels: expected only with folder:PATH.* got them with celeba"):
        labelled_splits("celeba", "binary", 8, labels="x.csv")
    path = image_lmdb(tmp_path / "ffhq", "256-%05d", 20)
    with raises("ffhq has no labels: expected .*/labels.csv"):
        labelled_splits("ffhq", "real", 8, data_dir=path)


# -- classes ---------------------------------------------------------------------------------------------------------


def test_toyfaces_have_the_colours_of_hair_as_classes(tmp_path):
    parts = labelled_splits("toyfaces", "class", 8, data_root=str(tmp_path))
    assert lengths(parts) == {"train": 10_000, "valid": 1_000, "test": 1_000}
    targets = parts["test"].targets
    colour = [targets.names[c] for c in targets.values[:200].tolist()]
    assert colour == [toyfaces.describe(11_000 + i).hair_colour for i in range(200)]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["cat", "dog", "a bird"], ("a bird", "cat", "dog")),
        (["10", "2", "3.0"], ("2", "3", "10")),
        (["10", "b", "2"], ("10", "2", "b")),
    ],
)
def test_classes_of_a_column(tmp_path, cells, names):
    """Text or whole numbers; their names are in order."""
    other = tmp_path / "kinds.csv"
    rows = "".join(f"{i}.png,{cells[i % 3]},1\n" for i in range(30))
    other.write_text(f"file,kind,more\n{rows}")
    table = read_labels(f"{other}:kind")
    targets = table.targets([f"{i}.png" for i in (4, 0, 2)], "class")
    assert (targets.kind, targets.names, targets.values.dtype) == ("class", names, torch.int64)
    assert [names[c] for c in targets.values] == [cells[i].removesuffix(".0") for i in (1, 0, 2)]
    with raises("kinds.csv: expected one column for classes, .*got kind, more"):
        read_labels(str(other)).targets(["0.png"], "class")
    with raises("expected one of the columns kind, more, got 'age'"):
        read_labels(f"{other}:age")


def test_a_column_of_text_is_a_class_by_itself(tmp_path):
    name = own_folder(tmp_path, {"kind": ["dog", "cat"] * 10})
    targets = build(name, "train", 8).targets()
    assert (targets.kind, targets.names, targets.values[:3].tolist()) == ("class", ("cat", "dog"), [1, 0, 1])
    parts = labelled_splits(name, "class", 8)
    assert lengths(parts) == {"train": 16, "valid": 2, "test": 2}
    assert all(part.targets.values.bincount().tolist() == [len(part.targets) / 2] * 2 for part in parts.values())
    with raises("labels.csv: expected a number on line 2, column 'kind', got 'dog'"):
        labelled_splits(name, "binary", 8)


def test_folders_are_classes(tmp_path):
    root = image_folder(tmp_path / "own", [f"{kind}/{i}.png" for kind in ("dog", "cat") for i in range(10)], 8, 8)
    dataset = build(f"folder:{root}", "train", 8)
    assert not dataset.has_labels
    parts = labelled_splits(f"folder:{root}", "class", 8)
    assert lengths(parts) == {"train": 16, "valid": 2, "test": 2}
    for part in parts.values():
        named = [part.dataset.name_of(i).split("/")[0] for i in range(len(part.dataset))]
        assert [part.targets.names[c] for c in part.targets.values] == named
    assert parts["test"].dataset[1][0].shape == (3, 8, 8)
    image_folder(root, ["rare/1.png"])
    with raises("own: expected images of every class in train, there are none of rare$"):
        labelled_splits(f"folder:{root}", "class", 8)
    image_folder(root, ["stray.png"])
    with raises("own has no classes: expected .*labels.csv, or all images in two or more folders"):
        labelled_splits(f"folder:{root}", "class", 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"] * 19 + [""], "text or a whole number, on line 21, got ''"),
        ([1] * 19 + [0.5], "text or a whole number, on line 21"),
    ],
)
def test_columns_that_are_no_classes(tmp_path, values, message):
    name = own_folder(tmp_path, {"x": values})
    with raises(f"labels.csv: .*{message}"):
        labelled_splits(name, "class", 8)


def test_sets_without_classes(tmp_path):
    path = celeba(tmp_path, ["1 -1", "-1 1"] * 10)
    with raises("celeba: expected labels of the kind binary or real, got class"):
        labelled_splits("celeba", "class", 8, data_dir=path)


@pytest.mark.parametrize(("limit", "expected"), [(None, [6, 4]), (5, [3, 2]), (1, [1]), (100, [6, 4])])
def test_a_limit_is_spread_over_the_parts(limit, expected):
    """As the images of a class may stand together."""
    images = build("toyfaces", "test", 32)
    whole = Labelled(images, images.targets("class"))
    found = spread([whole.part(range(6)), whole.part(range(6, 10))], limit)
    assert [len(part.targets) for part in found] == expected
    taken = [images.indices.index(i) for part in found for i in part.dataset.indices]
    assert limit != 5 or taken == [0, 2, 4, 6, 8]
