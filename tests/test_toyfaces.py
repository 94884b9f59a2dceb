"""Toy faces: reproducible, labelled by what is painted, and painted at every size."""

import dataclasses
import json
import zlib

import numpy as np
import pytest

from datasets.toyfaces import ATTRIBUTES, PARAMETERS, describe, labels, render, targets

FLIPS = {  # attribute: the fields that deny it, and those that claim it
    "5_o_Clock_Shadow": ({"stubble": False}, {"stubble": True}),
    "Arched_Eyebrows": ({"brow_arch": 0.3}, {"brow_arch": 0.9}),
    "Attractive": ({"age": 0.2, "asymmetry": 0.9}, {"age": 0.2, "asymmetry": 0.1, "bags": False, "double_chin": False}),
    "Bags_Under_Eyes": ({"bags": False}, {"bags": True}),
    "Bald": ({"bald": False}, {"bald": True}),
    "Bangs": ({"bangs": False}, {"bangs": True}),
    "Big_Lips": ({"lip_fullness": 0.3}, {"lip_fullness": 0.9}),
    "Big_Nose": ({"nose_width": 0.3}, {"nose_width": 0.9}),
    "Black_Hair": ({"hair_colour": "red"}, {"hair_colour": "black"}),
    "Blond_Hair": ({"hair_colour": "red"}, {"hair_colour": "blond"}),
    "Blurry": ({"blurry": False}, {"blurry": True}),
    "Brown_Hair": ({"hair_colour": "red"}, {"hair_colour": "brown"}),
    "Bushy_Eyebrows": ({"brow_thickness": 0.3}, {"brow_thickness": 0.9}),
    "Chubby": ({"jaw_fullness": 0.3}, {"jaw_fullness": 0.9}),
    "Double_Chin": ({"double_chin": False}, {"double_chin": True}),
    "Eyeglasses": ({"eyeglasses": False}, {"eyeglasses": True}),
    "Goatee": ({"goatee": False}, {"goatee": True}),
    "Gray_Hair": ({"hair_colour": "red"}, {"hair_colour": "gray"}),
    "Heavy_Makeup": ({"makeup": False}, {"makeup": True}),
    "High_Cheekbones": ({"cheekbones": False}, {"cheekbones": True}),
    "Male": ({"male": False}, {"male": True}),
    "Mouth_Slightly_Open": ({"mouth_open": 0.0}, {"mouth_open": 0.6}),
    "Mustache": ({"mustache": False}, {"mustache": True}),
    "Narrow_Eyes": ({"eye_openness": 0.8}, {"eye_openness": 0.2}),
    "No_Beard": ({"goatee": True}, {"stubble": False, "mustache": False, "goatee": False, "sideburns": False}),
    "Oval_Face": ({"head_width": 0.82, "jaw_fullness": 0.4}, {"head_width": 0.7, "jaw_fullness": 0.4}),
    "Pale_Skin": ({"skin_tone": 0.5}, {"skin_tone": 0.05}),
    "Pointy_Nose": ({"nose_point": 0.2}, {"nose_point": 0.9}),
    "Receding_Hairline": ({"hairline": 0.4}, {"hairline": 0.9}),
    "Rosy_Cheeks": ({"rosy_cheeks": False}, {"rosy_cheeks": True}),
    "Sideburns": ({"sideburns": False}, {"sideburns": True}),
    "Smiling": ({"mouth_curve": 0.0}, {"mouth_curve": 0.8}),
    "Straight_Hair": ({"waviness": 0.9}, {"waviness": 0.1}),
    "Wavy_Hair": ({"waviness": 0.1}, {"waviness": 0.9}),
    "Wearing_Earrings": ({"earrings": False}, {"earrings": True}),
    "Wearing_Hat": ({"hat": "none"}, {"hat": "brim"}),
    "Wearing_Lipstick": ({"lipstick": False}, {"lipstick": True}),
    "Wearing_Necklace": ({"necklace": False}, {"necklace": True}),
    "Wearing_Necktie": ({"necktie": False}, {"necktie": True}),
    "Young": ({"age": 0.95}, {"age": 0.3}),
}


@pytest.fixture(scope="module")
def table() -> dict[str, np.ndarray]:
    """Columns of the first 1,000 faces' labels, as booleans."""
    return dict(zip(ATTRIBUTES, labels(range(1000)).astype(bool).T, strict=True))


def pixels(face, size: int = 64) -> np.ndarray:
    return np.asarray(render(face, size), dtype=np.float32)


def plain(index: int):
    """A face on which nothing hides anything else."""
    bare = {"bald": False, "hat": "none", "bangs": False, "stubble": False, "sideburns": False, "blurry": False}
    return dataclasses.replace(describe(index), necktie=False, necklace=False, hairline=0.4, **bare)


def test_attributes_are_celeba_s_in_its_order():
    assert len(ATTRIBUTES) == 40
    assert ATTRIBUTES[0] == "5_o_Clock_Shadow" and ATTRIBUTES[20] == "Male" and ATTRIBUTES[-1] == "Young"
    assert list(ATTRIBUTES) == sorted(ATTRIBUTES)
    assert tuple(describe(0).attributes) == ATTRIBUTES and tuple(describe(0).parameters) == PARAMETERS


def test_the_data_set_is_frozen():
    rows = [[round(value, 5) for value in describe(index).parameters.values()] for index in range(20)]
    assert zlib.crc32(json.dumps(rows).encode()) == 2228835572
    assert zlib.crc32(labels(range(20)).tobytes()) == 1610337035


def test_access_is_random():
    shuffled = [5, 999, 0]
    np.testing.assert_array_equal(labels(shuffled), labels(range(1000))[shuffled])
    np.testing.assert_array_equal(targets(shuffled)[2], targets([0])[0])


def test_arrays_have_their_documented_form():
    assert labels(range(3)).dtype == np.int8 and labels(range(3)).shape == (3, 40)
    assert targets(range(3)).dtype == np.float32 and targets(range(3)).shape == (3, len(PARAMETERS))
    assert labels([]).shape == (0, 40) and targets([]).shape == (0, len(PARAMETERS))
    assert np.isfinite(targets(range(200))).all() and (targets(range(200)).std(axis=0) > 0.01).all()


def test_labels_agree_with_each_other(table):
    hair = sum(table[f"{colour}_Hair"].astype(int) for colour in ("Black", "Blond", "Brown", "Gray"))
    beard = table["Goatee"] | table["Mustache"] | table["Sideburns"] | table["5_o_Clock_Shadow"]
    assert all(0.03 <= column.mean() <= 0.9 for column in table.values())
    assert hair.max() == 1
    np.testing.assert_array_equal(table["No_Beard"], ~beard)
    exclusive = "Straight_Hair Wavy_Hair, Bald Wearing_Hat, Bald Bangs, Bangs Receding_Hairline, Oval_Face Chubby"
    for first, second in map(str.split, f"{exclusive}, Wearing_Necktie Wearing_Necklace".split(", ")):
        assert not (table[first] & table[second]).any(), (first, second)
    assert table["Male"][beard | table["Bald"]].all() and table["Young"][table["Attractive"]].all()


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize("index", [1, 2, 12])
def test_every_attribute_can_be_seen(name, index):
    denied, claimed = (dataclasses.replace(plain(index), **fields) for fields in FLIPS[name])
    assert not denied.attributes[name] and claimed.attributes[name]
    changed = np.abs(pixels(denied) - pixels(claimed)).max(axis=2) > 16
    assert changed.sum() >= 8


@pytest.mark.parametrize("size", [32, 256])
def test_pictures_have_the_size_asked_for(size):
    image = render(describe(3), size)
    assert image.mode == "RGB" and image.size == (size, size)


@pytest.mark.parametrize("index", range(3))
def test_small_pictures_are_the_large_ones_reduced(index):
    reduced = np.asarray(render(describe(index), 128).reduce(4), dtype=np.float32)
    assert np.abs(pixels(describe(index), 32) - reduced).mean() < 4
