"""Data sets: what is read, from where, in which order, and what is said when it cannot be."""

import io
import logging
import os
import struct
import zipfile
from itertools import chain, islice

import numpy as np
import pytest
import torch
from lmdb_fixtures import encoded, image_folder, image_lmdb, picture, write_lmdb
from PIL import Image, ImageCms
from PIL._util import DeferredError

from datasets import DATASETS, build, images, loader, sets, toyfaces
from datasets.images import BadImage, cover, decode, read_image, to_rgb
from datasets.lfw import centre
from datasets.listing import image_names
from datasets.loader import Order, auto_workers, ordered_batches, training_batches
from datasets.prepare import main as prepare
from dbae.config import UserError

CELEBA = "None-%07d"


def pixels(dataset, i):
    return dataset[i][0].permute(1, 2, 0).numpy()


def flat(lists):
    return list(chain.from_iterable(lists))


def raises(message):
    return pytest.raises(UserError, match=message)


# -- LMDB ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("subdir", [True, False])
@pytest.mark.parametrize("name", DATASETS)
def test_every_row_of_the_table(tmp_path, name, subdir, length):
    source = DATASETS[name]
    width, height = (178, 218) if source.crop else (24, 24)
    folder = tmp_path / (name if subdir else f"{name}.lmdb")
    image_lmdb(folder, source.keys[0], 10, width, height, length, subdir)
    dataset = build(name, "train", 16, data_root=str(tmp_path))
    image, position = dataset[3]
    assert (image.dtype, image.shape, position) == (torch.uint8, (3, 16, 16), 3)
    assert dataset.name_of(3) == source.keys[0] % 3
    assert len(dataset) == (8 if source.splits else 10)
    if not source.crop:
        expected = np.asarray(picture(3).resize((16, 16), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(pixels(dataset, 3), expected)


@pytest.mark.parametrize("size", [128, 256])
def test_celebahq_keys_are_found_out(tmp_path, size):
    image_lmdb(tmp_path / f"celebahq{size}.lmdb", f"{size}-%05d", 3)
    assert build("celebahq", "test", 8, data_root=str(tmp_path)).name_of(2) == f"{size}-00002"


def test_length_without_its_key_is_right_over_gaps_and_among_other_keys(tmp_path):
    picked = {CELEBA % i: encoded(picture(i, 178, 218)) for i in (1, 2, 7)}
    path = write_lmdb(tmp_path / "celeba", {**picked, "zzz": b"", "Mone-0000099": b""})
    assert build("celeba", "train", 8, data_dir=path).length == 8


@pytest.mark.parametrize("key", ["256-%d", "256-%05d"])
@pytest.mark.parametrize("length", [None, "3", "12"])
def test_every_image_is_read_whatever_keys_and_length_say(tmp_path, caplog, key, length):
    images = {key % i: encoded(picture(i)) for i in range(12)}
    path = write_lmdb(tmp_path / "own", images | ({"length": length.encode()} if length else {}))
    dataset = build(f"folder:{path}", "train", 24, whole=True)
    assert [dataset.name_of(i) for i in (2, 11)] == [key % 2, key % 11] and len(dataset) == 12
    np.testing.assert_array_equal(pixels(dataset, 11), np.asarray(picture(11)))
    assert ("the key length says 3, all 12 images that are there are used" in caplog.text) == (length == "3")


def test_indices_outgrow_their_zeros(tmp_path):
    path = write_lmdb(tmp_path / "ffhq", {f"256-{i:05d}": encoded(picture(0)) for i in (0, 9, 10_000, 99_999, 100_000)})
    assert len(build("ffhq", "train", 8, data_dir=path)) == 100_001


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"256-0": b"", "256-00001": b""}, "expected keys 256-NUMBER of one kind"),
        ({"256-001": b"", "256-00001": b""}, "expected keys 256-NUMBER of one kind"),
        ({"256-1": b"", "256-2": b""}, "has no image 256-0: expected 256-0 to 256-2 without gaps"),
        (
            {"256-00000": b"", "256-00003": b"", "length": b"4"},
            "has no image 256-00001: expected 256-00000 to 256-00003",
        ),
        ({"256-0": b"", "256-1": b"", "length": b"3"}, "has no image 256-2: expected 256-0 to 256-2 without gaps"),
        (
            {"256-0": b"", "64-0": b"", "64-1": b""},
            "expected image keys of one kind, there are 1 like 256-0, 2 like 64-0",
        ),
    ],
)
def test_keys_with_gaps_or_of_two_kinds_are_refused_at_once(tmp_path, entries, message):
    path = write_lmdb(tmp_path / "own", entries)
    with raises(message):
        build(f"folder:{path}", "train", 8, whole=True)


def test_crop_at_full_size_is_crop_then_resize(tmp_path):
    path = image_lmdb(tmp_path / "celeba", CELEBA, 10, 178, 218)
    for size in (64, 128):
        expected = picture(2, 178, 218).crop((25, 57, 153, 185)).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(pixels(build("celeba", "train", size, data_dir=path), 2), np.asarray(expected))


def test_crop_scales_with_the_stored_size(tmp_path):
    y, x = np.mgrid[0:109, 0:89]
    ramp = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    path = write_lmdb(tmp_path / "celeba", {CELEBA % i: encoded(ramp) for i in range(10)})
    image = pixels(build("celeba", "train", 64, data_dir=path), 0).astype(float)
    # Box 12.5..76.5 by 28.5..92.5: output pixel 0 is centred at source coordinate 13.0, between pixels 12 and 13.
    np.testing.assert_allclose(image[32, :, 0], 12.5 + np.arange(64), atol=0.51)
    np.testing.assert_allclose(image[:, 32, 1], 28.5 + np.arange(64), atol=0.51)


def test_crop_refuses_images_that_were_cropped_before(tmp_path):
    path = image_lmdb(tmp_path / "celeba", CELEBA, 10, 64, 64)
    with raises("None-0000001: it is 64x64, expected the uncropped 178x218"):
        build("celeba", "train", 64, data_dir=path)[1]


def test_messages_name_what_is_missing(tmp_path):
    with raises(r"celeba, .*celeba\.lmdb: make one with `python -m datasets.prepare celeba "):
        build("celeba", "train", 64, data_root=str(tmp_path))
    with raises("no LMDB of horse at .*/none.*lsun --category horse"):
        build("horse", "train", 64, data_dir=str(tmp_path / "none"))
    with raises("expected ffhq, .* got 'faces'"):
        build("faces", "train", 64)
    path = image_lmdb(tmp_path / "ffhq", "256-%05d", 3)
    with raises("expected keys like None-0000000, found 256-00000"):
        build("celeba", "train", 64, data_dir=path)
    broken = tmp_path / "broken.lmdb"
    broken.write_bytes(b"no LMDB at all")
    with raises("broken.lmdb: expected an LMDB"):
        build("ffhq", "train", 64, data_dir=str(broken))


@pytest.mark.parametrize(("size", "kept"), [(100_000, 1_000_000), (5_000, 100_000)])
def test_a_truncated_lmdb_is_said_and_does_not_crash(tmp_path, size, kept):
    path = tmp_path / "ffhq.lmdb"
    write_lmdb(path, {f"256-{i:05d}": bytes(size) for i in range(30)}, subdir=False)
    path.write_bytes(path.read_bytes()[:kept])
    with raises("ffhq.lmdb is truncated: .* copy or download it again"):
        build("ffhq", "train", 8, data_root=str(tmp_path))


def test_a_path_can_be_open_twice_in_one_process(tmp_path):
    path = image_lmdb(tmp_path / "celeba", CELEBA, 10, 178, 218)
    train, test = (build("celeba", split, 8, data_dir=path) for split in ("train", "test"))
    assert train[0][0].shape == test[0][0].shape


# -- splits ----------------------------------------------------------------------------------------------------------


def test_celeba_split_by_share_is_said(tmp_path, caplog):
    path = image_lmdb(tmp_path / "celeba", CELEBA, 20, 178, 218)
    with caplog.at_level(logging.WARNING):
        parts = {split: build("celeba", split, 8, data_dir=path).indices for split in sets.SPLITS}
    assert parts == {"train": range(16), "valid": range(16, 18), "test": range(18, 20)}
    assert [record.message.count("80 % train") for record in caplog.records] == [1]


def test_celeba_split_by_partition_file(tmp_path):
    path = image_lmdb(tmp_path / "celeba", CELEBA, 4, 178, 218)
    partition = tmp_path / "celeba" / "list_eval_partition.txt"
    partition.write_text("000001.jpg 0\n000002.jpg 2\n000003.jpg 0\n000004.jpg 2\n000005.jpg 1\n")
    assert list(build("celeba", "train", 8, data_dir=path).indices) == [0, 2]
    dataset = build("celeba", "test", 8, data_dir=path)
    assert (list(dataset.indices), dataset[1][1], dataset.name_of(1)) == ([1, 3], 1, "None-0000003")
    with raises("puts none of the 4 images in valid"):
        build("celeba", "valid", 8, data_dir=path)
    partition.write_text("000001.jpg 0\n000002.jpg train\n")
    with raises("line 2"):
        build("celeba", "train", 8, data_dir=path)


def test_celeba_official_ranges_where_complete(tmp_path):
    path = write_lmdb(tmp_path / "celeba", {CELEBA % 0: b"", "length": b"202599"})
    lengths = [len(build("celeba", split, 8, data_dir=path)) for split in sets.SPLITS]
    assert lengths == [162_770, 19_867, 19_962]
    assert build("celeba", "test", 8, data_dir=path).name_of(0) == "None-0182637"


def test_other_sets_are_whole_and_can_be_cut(tmp_path):
    path = image_lmdb(tmp_path / "ffhq", "256-%05d", 6)
    assert len(build("ffhq", "train", 8, data_dir=path)) == len(build("ffhq", "test", 8, data_dir=path)) == 6
    part = build("ffhq", "train", 8, data_dir=path, split_range="2:5")
    assert [part.name_of(i) for i in range(len(part))] == ["256-00002", "256-00003", "256-00004"]
    assert len(build("ffhq", "train", 8, data_dir=path, split_range="4:")) == 2
    with raises("expected train or test, got 'valid'"):
        build("ffhq", "valid", 8, data_dir=path)
    for wrong in ("5:2", "0:7", "3", "a:b", "-1:2", "3:3", ""):
        with raises("split range: expected A:B with 0 <= A < B <= 6"):
            build("ffhq", "train", 8, data_dir=path, split_range=wrong)


# -- labels ----------------------------------------------------------------------------------------------------------


def test_labels_of_celeba_go_by_number(tmp_path):
    path = image_lmdb(tmp_path / "celeba", CELEBA, 10, 178, 218)
    dataset = build("celeba", "train", 8, data_dir=path, split_range="2:4")
    assert not dataset.has_labels
    with raises("no labels: expected .*list_attr_celeba.txt"):
        dataset.targets()
    rows = "".join(f"{i:06d}.jpg  {i} -1\n" for i in range(1, 11))
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text(f"10\nBald  Young\n{rows}")
    assert (dataset.has_labels, dataset.targets().names) == (True, ("Bald", "Young"))
    assert dataset.targets().values.tolist() == [[3, -1], [4, -1]]
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text("1\nBald  Young\n000001.jpg 1\n")
    with raises("expected 2 labels on line 3, got 1"):
        build("celeba", "train", 8, data_dir=path).targets()


# -- folders ---------------------------------------------------------------------------------------------------------


def test_folder_finds_sorts_and_cuts(tmp_path):
    root = image_folder(tmp_path / "own", ["10.png", "2.PNG", "sub/a.jpeg", "b.webp", "._b.png"], 40, 20)
    (tmp_path / "own" / "notes.txt").write_text("no image")
    dataset = build(f"folder:{root}", "train", 10)
    assert [dataset.name_of(i) for i in range(4)] == ["2.PNG", "10.png", "b.webp", "sub/a.jpeg"]
    expected = picture(1, 40, 20).crop((10, 0, 30, 20)).resize((10, 10), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels(dataset, 0), np.asarray(expected))
    assert not dataset.has_labels
    with raises("no labels: expected .*labels.csv"):
        dataset.targets()


def test_folder_turns_images_upright(tmp_path):
    image = picture(0, 32, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(pixels(build(f"folder:{tmp_path}", "test", 32), 0), expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_every_colour_mode_becomes_rgb(mode):
    grey = Image.new("L", (4, 4), 255)
    deep = Image.fromarray(np.full((4, 4), 200 * 256 + 255, np.uint16))
    rgb = to_rgb(deep if mode == "I;16" else grey.convert("RGB" if mode in ("CMYK", "HSV") else "L").convert(mode))
    assert to_rgb(Image.new("RGBA", (2, 2), (9, 9, 9, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert (rgb.mode, rgb.getpixel((0, 0))) == ("RGB", (200,) * 3 if mode == "I;16" else (255,) * 3)


def test_sixteen_bits_are_cut_to_eight_and_unknown_ranges_refused():
    deep = Image.fromarray(np.array([[0, 255, 256, 40_000, 65_535]], np.uint16))
    for kind in ("PNG", "PPM", "TIFF"):
        assert np.asarray(decode(encoded(deep, kind)))[0, :, 0].tolist() == [0, 0, 1, 156, 255]
    white_is_zero, twelve_bits = io.BytesIO(), io.BytesIO()
    deep.save(white_is_zero, "TIFF", tiffinfo={262: 0})
    assert np.asarray(decode(white_is_zero.getvalue()))[0, :, 0].tolist() == [255, 255, 254, 99, 0]
    Image.fromarray(np.array([[0xF0FF, 0]], np.uint16)).save(twelve_bits, "TIFF")
    bits = struct.pack("<HHI", 258, 3, 1)
    twelve = twelve_bits.getvalue().replace(bits + struct.pack("<H", 16), bits + struct.pack("<H", 12))
    assert decode(twelve).getpixel((0, 0))[0] == 255
    for wide in (deep.convert("I"), deep.convert("F")):
        with pytest.raises(BadImage, match="its pixels are signed or 32-bit numbers"):
            decode(encoded(wide, "TIFF"))


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = SRGB.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")  # red for green
GREY = (SRGB[:16] + b"GRAY" + SRGB[20:]).replace(b"rTRC", b"kTRC")
LINEAR = GREY.replace(struct.pack(">i", round(2.4 * 65536)), struct.pack(">i", 65536))  # roughly: without gamma


@pytest.mark.parametrize(
    ("mode", "colour", "profile", "expected"),
    [
        ("RGB", (250, 10, 90), SWAPPED, (10, 250, 90)),
        ("RGBA", (255, 0, 0, 0), SWAPPED, (255, 255, 255)),
        ("P", (255, 0, 0), SWAPPED, (0, 255, 0)),
        ("L", 128, LINEAR, (192, 192, 192)),
        ("LA", (128, 255), LINEAR, (192, 192, 192)),
        ("L", 77, SWAPPED, (77, 77, 77)),
    ],
    ids=["RGB", "RGBA", "P", "L", "LA", "L with a profile of RGB"],
)
def test_colours_are_converted_to_srgb(mode, colour, profile, expected):
    image = Image.new("RGB", (4, 4), colour).convert("P") if mode == "P" else Image.new(mode, (4, 4), colour)
    image.info["icc_profile"] = profile
    rgb = to_rgb(image)
    assert np.abs(np.array(rgb.getpixel((0, 0))) - expected).max() <= 1
    assert not rgb.info  # so that nobody stores the profile with it, and converts it again


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colours_without_a_profile_of_use_are_kept(kind, caplog):
    image, buffer = picture(0), io.BytesIO()
    for profile in (SRGB, SRGB.replace(b"sRGB", b"mine"), SWAPPED[:300], b"nothing", GREY, None):
        buffer = io.BytesIO()
        image.save(buffer, kind, icc_profile=profile)
        assert decode(buffer.getvalue()).tobytes() == decode(encoded(image, kind)).tobytes()
    image.save(buffer := io.BytesIO(), kind, icc_profile=SWAPPED)
    swapped = np.asarray(decode(buffer.getvalue())).astype(int)
    assert np.abs(swapped - np.asarray(decode(encoded(image, kind)))[..., [1, 0, 2]]).max() <= 1


def test_without_littlecms_profiles_are_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(ImageCms, "core", DeferredError(ImportError("no _imagingcms")))
    image = Image.new("RGB", (4, 4), "red")
    image.info["icc_profile"] = SWAPPED + b"never seen before"
    assert to_rgb(image).getpixel((0, 0)) == (255, 0, 0) and "lacks littleCMS" in caplog.text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_images_are_turned_once_wherever_they_come_from(tmp_path, kind):
    image, exif = picture(0, 32, 32), Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a.{kind.lower()}"
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    image.save(path, kind, exif=exif, **lossless.get(kind, {}))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, path.name)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
    found = [pixels(build(f"folder:{tmp_path}", "train", 32), 0)]
    for source in (tmp_path / "a.zip", tmp_path):
        out = f"{tmp_path}/{source.stem}.lmdb"
        assert prepare(["folder", "--source", str(source), "--out", out, "--size", "32", "--workers", "1"]) == 0
        found.append(pixels(build(f"folder:{out}", "train", 32), 0))
    found.append(decode(path.read_bytes()))
    assert all(np.abs(np.asarray(each) - expected).mean() < 3 for each in found)


def test_pixel_bombs_are_bad_images(monkeypatch):
    data = encoded(picture(0, 30, 30))
    for limit in (800, 400):  # PIL warns above the limit, and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(BadImage, match="900 pixels"):
            decode(data)


@pytest.mark.parametrize("name", ["ffhq", "celeba", "toyfaces", "folder"])
def test_every_reader_bounds_pixels_before_decoding(tmp_path, monkeypatch, name):
    """Also where PIL's own limit was switched off."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    width, height = (178, 218) if name == "celeba" else (30, 30)
    keys = DATASETS[name].keys[0] if name in DATASETS else "toy-%06d"
    path = str(tmp_path / name)
    if name == "folder":
        image_folder(path, ["a.png", "b.png"], width, height)
    else:
        image_lmdb(path, keys, 10, width, height)
    dataset = build(f"folder:{path}", "train", 30) if name == "folder" else build(name, "train", 30, data_dir=path)
    assert dataset[1][0].shape == (3, 30, 30)
    monkeypatch.setattr(images, "MAX_PIXELS", 899)
    monkeypatch.setattr(images, "to_rgb", None)
    with raises(f"bad image.*: {width}x{height} are more than 899 pixels"):
        dataset[1]


def test_resizing_of_narrow_images_is_bounded(monkeypatch):
    """A strip that is small as it lies there becomes a bomb when its short side is stretched."""
    monkeypatch.setattr(images, "MAX_PIXELS", 100_000)
    for resize in (cover, centre):
        assert resize(Image.new("RGB", (20, 100)), 100).size == (100, 100)
        with pytest.raises(BadImage, match=r"\d+x\d+ are more than 100000 pixels"):
            resize(Image.new("RGB", (1, 60)), 110)


def test_files_are_bounded(tmp_path, monkeypatch):
    root = image_folder(tmp_path, ["a.png"])
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with raises("has a bad image a.png: it has more than"):
        build(f"folder:{root}", "train", 8)[0]


def test_only_picture_formats_are_opened(tmp_path):
    """PIL would start Ghostscript for this one, whatever its name."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    assert Image.open(io.BytesIO(program)).format == "EPS"
    (tmp_path / "a.png").write_bytes(program)
    with raises("has a bad image a.png: no image format that is read here"):
        build(f"folder:{tmp_path}", "train", 8)[0]
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        assert decode(encoded(picture(0), kind)).size == (24, 24)


def test_every_format_is_found_by_its_ending(tmp_path, caplog):
    kinds = {ending: kind for ending, kind in Image.EXTENSION.items() if kind in images.FORMATS and kind in Image.SAVE}
    assert kinds.keys() >= {".jfif", ".jpe", ".gif", ".jp2", ".ppm", ".pgm", ".bmp", ".tif", ".webp", ".tga", ".ico"}
    for ending, kind in kinds.items():
        mode = "L" if ending in (".pgm", ".pbm", ".pfm") else "RGB"
        picture(0, 32, 32).convert(mode).save(tmp_path / f"{ending[1:]}{ending.upper()}", kind)
    for name in ("a.txt", "b.TXT", "c.mp4", "README", "labels.csv", ".hidden", "Thumbs.db", "__MACOSX"):
        (tmp_path / name).touch()
    names = image_names(str(tmp_path))
    assert len(names) == len(kinds) and all(read_image(str(tmp_path / name)).size == (32, 32) for name in names)
    left_out = f"4 of {len(kinds) + 4} files are no images by their ending, left out: .txt 2, no ending 1, .mp4 1"
    assert [record.message for record in caplog.records] == [f"{tmp_path}: {left_out}"]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_of_several_frames_is_read(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, kind, save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert decode(buffer.getvalue()).getpixel((4, 4))[0] > 240


def test_links_to_folders_are_followed_once(tmp_path):
    """Without circles, and no folder comes twice; links to files are files."""
    own = tmp_path / "own"
    image_folder(own, ["a.png", "sub/b.png"])
    image_folder(tmp_path / "elsewhere", ["c.png", "deep/d.png"])
    for link, target in {
        "sub/circle": own,
        "again": own / "sub",
        "away": tmp_path / "elsewhere",
        "deeper": tmp_path / "elsewhere/deep",
        "e.png": tmp_path / "elsewhere/c.png",
        "gone.png": tmp_path / "nothing",
    }.items():
        (own / link).symlink_to(target)
    names = ["a.png", "away/c.png", "away/deep/d.png", "e.png", "gone.png", "sub/b.png"]
    assert image_names(str(own)) == names
    (tmp_path / "link").symlink_to(own)
    assert image_names(str(tmp_path / "link")) == names
    with raises("own has a bad image gone.png: No such file"):
        build(f"folder:{own}", "train", 8)[4]


def test_folder_messages(tmp_path):
    with raises("there is nothing of that name"):
        build(f"folder:{tmp_path / 'none'}", "train", 8)
    with raises("there are none in this folder"):
        build(f"folder:{tmp_path}", "train", 8)
    (tmp_path / "a.png").write_bytes(b"no image")
    with raises("this is a file"):
        build(f"folder:{tmp_path / 'a.png'}", "train", 8)
    with raises("has a bad image a.png: no image format"):
        build(f"folder:{tmp_path}", "train", 8)[0]
    with raises("image size: expected a positive number, got 0"):
        build(f"folder:{tmp_path}", "train", 0)


def test_folder_labels(tmp_path):
    root = image_folder(tmp_path, ["a.png", "b.png", "sub/c.png"])
    table = "\ufefffile,tall, age\r\nsub/c.png,1,3.5\r\nb.png,0,-2\r\na.png,1,1e1\r\n\r\nother.png,0,0\r\n"
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8", newline="")
    dataset = build(f"folder:{root}", "test", 8)
    targets = dataset.targets()
    assert (dataset.has_labels, targets.kind, targets.names) == (True, "real", ("tall", "age"))
    assert targets.values.dtype == torch.float32
    assert targets.values.tolist() == [[1, 10], [0, -2], [1, 3.5]]
    assert build(f"folder:{root}", "test", 8, split_range="1:2").targets().values.tolist() == [[0, -2]]
    other = tmp_path / "other.csv"
    other.write_text("file,x\na.png,1\nb.png,2\nsub/c.png,3\n")
    assert build(f"folder:{root}", "train", 8, labels=str(other)).targets().names == ("x",)


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (("1_1", "11", "12"), ("11", "12", "1_1")),
        (("9007199254740993", "9007199254740992", "5"), ("5", "9007199254740992", "9007199254740993")),
        (("1", "1.0", "1e1"), ("1", "10")),
    ],
)
def test_classes_that_are_written_differently(tmp_path, cells, names):
    root = image_folder(tmp_path, ["a.png", "b.png", "c.png"])
    rows = "".join(f"{name}.png,{cell}\n" for name, cell in zip("abc", cells, strict=True))
    (tmp_path / "labels.csv").write_text(f"file,class\n{rows}")
    assert build(f"folder:{root}", "train", 8).targets("class").names == names


def test_a_place_that_is_not_read_is_refused(tmp_path):
    for name in (f"folder:{image_folder(tmp_path, ['a.png'])}", "sprites"):
        with raises("data_dir: expected none with"):
            build(name, "train", 8, data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "expected a header line"),
        ("a.png,1\nb.png,2\n", "expected a header line"),
        ("file,x\na.png,1\n", "there is none for 'b.png'"),
        ("file,x\na.png,1\nb.png,yes\n", "line 3, column 'x', got 'yes'"),
        ("file,x\na.png,nan\nb.png,1\n", "line 2, column 'x', got 'nan'"),
        ("file,x,y\na.png,1,2\nb.png,1\n", "expected 2 labels on line 3, got 1"),
        ("file,x\na.png,1\na.png,1\n", "expected one row for 'a.png', line 3"),
        ("file,x,x\na.png,1,1\n", "expected different label names"),
    ],
)
def test_wrong_tables(tmp_path, table, message):
    root = image_folder(tmp_path, ["a.png", "b.png"])
    (tmp_path / "labels.csv").write_text(table)
    dataset = build(f"folder:{root}", "train", 8)  # without labels it is read all the same
    with raises(message):
        dataset.targets()


# -- toy faces -------------------------------------------------------------------------------------------------------


def test_toyfaces_are_drawn(tmp_path):
    dataset = build("toyfaces", "valid", 32, data_root=str(tmp_path))
    assert (len(dataset), dataset.name_of(12)) == (1000, "toyfaces-010012")
    expected = np.asarray(toyfaces.render(toyfaces.describe(10_012, seed=0), 32))
    np.testing.assert_array_equal(pixels(dataset, 12), expected)
    few = build("toyfaces", "test", 32, data_root=str(tmp_path), split_range="0:5")
    assert few.targets().values.shape == (5, 40) and few.targets().names == toyfaces.ATTRIBUTES
    with raises("train or valid or test or all"):
        build("toyfaces", "most", 32)


def test_toyfaces_read_a_store_of_the_same_size_only(tmp_path):
    image_lmdb(tmp_path / "toyfaces", "toy-%06d", 2, 32, 32)
    dataset = build("toyfaces", "train", 32, data_root=str(tmp_path))
    np.testing.assert_array_equal(pixels(dataset, 1), np.asarray(picture(1, 32, 32)))
    drawn = build("toyfaces", "train", 32, data_root=str(tmp_path / "none"))
    assert torch.equal(dataset[2][0], drawn[2][0])  # beyond the store
    assert not torch.equal(build("toyfaces", "train", 16, data_root=str(tmp_path))[1][0][:, :2, :2], dataset[1][0])
    with raises("no LMDB of toyfaces at"):
        build("toyfaces", "train", 32, data_dir=str(tmp_path / "none"))


# -- order -----------------------------------------------------------------------------------------------------------


class Numbers(torch.utils.data.Dataset):
    """Images that hold nothing but their position."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.full((3, 1, 1), i, dtype=torch.uint8), i


def stream(count, n=10, microbatch=0, **options):
    """The positions in the first ``count`` micro-batches."""
    batches = training_batches(Numbers(n), microbatch=microbatch, seed=3, **options)
    return [images[:, 0, 0, 0].tolist() for images, _ in islice(batches, count)]


def test_every_epoch_is_a_new_permutation():
    order = Order(10, seed=3)
    epochs = [order.indices(10 * k, 10 * k + 10) for k in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.indices(7, 27) == flat(epochs)[7:27]
    assert order.indices(0, 10) == epochs[0] != Order(10, seed=4).indices(0, 10)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_batch_of_one_process(world):
    expected = Order(10, seed=3).indices(0, 5 * 8)
    ranks = [stream(5, batch_size=8, rank=rank, world=world) for rank in range(world)]
    assert [i for step in zip(*ranks, strict=True) for share in step for i in share] == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_microbatches_cut_a_share_in_order(workers):
    whole = stream(3, batch_size=8)
    pieces = stream(9, batch_size=8, microbatch=3, num_workers=workers)
    assert [len(piece) for piece in pieces] == [3, 3, 2] * 3
    assert flat(pieces) == flat(whole)
    assert stream(3, batch_size=8, microbatch=100) == stream(3, batch_size=8, microbatch=-1) == whole


def test_start_continues_an_interrupted_run():
    assert stream(3, batch_size=8, start=16, world=2, rank=1) == stream(5, batch_size=8, world=2, rank=1)[2:]
    assert flat(stream(4, batch_size=4, start=6)) == Order(10, seed=3).indices(6, 22)


def test_uneven_shares_are_refused():
    with raises("batch size: expected a positive multiple of the 3 processes, got 8"):
        training_batches(Numbers(10), 8, 0, 0, world=3)


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    stream(1, batch_size=2)
    list(ordered_batches(Numbers(3), 2))
    assert torch.rand(1) == expected


@pytest.mark.parametrize(("cores", "processes", "expected"), [(2, 1, 2), (4, 1, 3), (16, 1, 8), (16, 4, 3), (16, 8, 2)])
def test_workers_by_what_the_machine_has(monkeypatch, cores, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert auto_workers() == expected
    seen = []
    monkeypatch.setattr(loader, "_load", lambda dataset, batches, num_workers, pinned: seen.append(num_workers))
    for n in (1, 5, 100):
        ordered_batches(Numbers(n), 2, num_workers=None)
    assert seen == [0, 2, expected]


@pytest.mark.parametrize("limit", [None, 1, 7, 100])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ordered_batches_lose_and_repeat_nothing(world, limit):
    seen = []
    for rank in range(world):
        batches = list(ordered_batches(Numbers(11), 2, rank, world, limit))
        assert all(len(images) == len(positions) == 2 for images, positions in batches[:-1])
        assert all(torch.equal(images[:, 0, 0, 0].long(), positions) for images, positions in batches)
        mine = [i for _, positions in batches for i in positions.tolist()]
        assert mine == list(range(rank, min(11, limit or 11), world))
        seen += mine
    assert sorted(seen) == list(range(min(11, limit or 11)))


def test_images_of_equal_size_and_time_are_told_apart(tmp_path):
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{i}.bmp")
        os.utime(tmp_path / f"{i}.bmp", ns=(5, 5))
    before = build(f"folder:{tmp_path}", "train", 8).digest()
    first, second = (tmp_path / f"{i}.bmp" for i in (0, 1))
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    assert first.stat().st_mtime_ns == second.stat().st_mtime_ns
    assert build(f"folder:{tmp_path}", "train", 8).digest() != before


def test_smaller_images_are_not_enlarged_in_silence(tmp_path):
    path = image_lmdb(tmp_path / "ffhq64.lmdb", "64-%05d", 3)
    with pytest.raises(UserError, match=r"ffhq64.lmdb: expected images of 128 pixels or more, they have 64;"):
        build("ffhq", "train", 128, data_root=str(tmp_path))
    assert build("ffhq", "train", 128, data_dir=path)[0][0].shape == (3, 128, 128)
    assert build("ffhq", "train", 64, data_root=str(tmp_path))[0][0].shape == (3, 64, 64)
