"""Photographs: central squares, aligned faces, pasting back, every kind of file, and files of landmarks."""

import cmath
import json
import math

import numpy as np
import pytest
from lmdb_fixtures import image_folder, picture
from PIL import Image

from datasets.images import fit
from datasets.landmarks import match_landmarks, read_landmarks
from datasets.photos import Photo, central_square, face_square, photo_paths, read_photo
from datasets.toyfaces import describe, render
from dbae.config import UserError

FACE = ((100, 112), (156, 112), (128, 145), (107, 172), (149, 172))  # in a toy face of 256 pixels: eyes, nose, mouth
LEVEL = ((188.0, 188.0), (188.0, 412.0), (412.0, 412.0), (412.0, 188.0))  # a square around (300, 300)


def moved(points, factor, shift):
    """Points after the similarity p -> shift + factor p of complex numbers."""
    places = [shift + factor * complex(*point) for point in points]
    return [(place.real, place.imag) for place in places]


def turned(factor, shift):
    """A scene of 700x600 with a toy face turned and scaled by ``factor`` and moved by ``shift``; and its landmarks."""
    back = 1 / factor
    origin = -shift / factor
    affine = (back.real, -back.imag, origin.real, back.imag, back.real, origin.imag)
    face = render(describe(3), 256)
    scene = face.transform((700, 600), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    return scene, moved(FACE, factor, shift)


def difference(a, b):
    return np.asarray(a, float) - np.asarray(b, float)


def inside(quad, size):
    """Distance [H, W] of each pixel's centre from the quad's nearest edge, in pixels, negative outside."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    corners = [complex(*corner) for corner in quad]
    distances = []
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        along = (end - start) / abs(end - start)
        distances.append(-((x + 1j * y - start) * along.conjugate()).imag)
    return np.min(distances, axis=0)


# ---- which photos


def test_photo_paths(tmp_path):
    folder = image_folder(tmp_path / "some", ["10.jpg", "2.png", "sub/a.webp"])
    single = str(tmp_path / "some" / "10.jpg")
    assert photo_paths([single, folder]) == [
        single,
        *(f"{folder}/{name}" for name in ("2.png", "10.jpg", "sub/a.webp")),
    ]


# ---- out of the photo


@pytest.mark.parametrize("width, height, size", [(90, 61, 9), (90, 61, 16), (61, 90, 64), (40, 40, 40)])
def test_central_crop_is_what_models_are_trained_on(tmp_path, width, height, size):
    path = image_folder(tmp_path, ["a.png"], width, height) + "/a.png"
    expected = fit(picture(0, width, height), size)
    np.testing.assert_array_equal(np.asarray(read_photo(path).crop(size)), np.asarray(expected))


def test_square_of_an_upright_face():
    # eyes 56 apart at height 112, mouth at 172: half a side is 2 * 56 > 1.8 * 60, around (128, 112 + 0.1 * 60)
    assert face_square(FACE, 256, 256) == ((16, 6), (16, 230), (240, 230), (240, 6))
    longer = (*FACE[:3], (107, 192), (149, 192))  # now 1.8 * 80 > 2 * 56, around (128, 120)
    assert face_square(longer, 256, 256) == ((-16, -24), (-16, 264), (272, 264), (272, -24))


@pytest.mark.parametrize("degrees", [-150, -35, 20, 90, 180])
def test_square_turns_with_the_face(degrees):
    factor, shift = cmath.rect(1.7, math.radians(degrees)), complex(500, 500)
    points = [(x - 128, y - 128) for x, y in FACE[:4]] + [(15, 50)]  # a crooked mouth
    square = face_square([(x + 500, y + 500) for x, y in points], 1000, 1000)
    expected = moved([(x - 500, y - 500) for x, y in square], factor, shift)
    np.testing.assert_allclose(face_square(moved(points, factor, shift), 1000, 1000), expected)


@pytest.mark.parametrize("degrees, scale", [(0, 2), (30, 1.3), (-75, 1.6), (180, 2)])
def test_aligned_crops_do_not_depend_on_where_the_face_is(degrees, scale):
    face = render(describe(3), 256)
    reference = Photo("", face, face_square(FACE, 256, 256)).crop(48)
    factor = cmath.rect(scale, math.radians(degrees))
    scene, landmarks = turned(factor, complex(350, 300) - factor * complex(128, 118))
    crop = Photo("", scene, face_square(landmarks, 700, 600)).crop(48)
    assert abs(difference(crop, reference)).mean() < 2.5
    assert abs(difference(crop, reference.rotate(3))).mean() > 6


def test_aligned_crops_are_antialiased():
    checks = np.indices((600, 600)).sum(axis=0) % 2 * 255
    photo = Photo("", Image.fromarray(checks.astype(np.uint8)).convert("RGB"), tuple(moved(LEVEL, 1j, 600 + 0j)))
    assert abs(difference(photo.crop(32), 127.5)).max() < 8


def test_outside_of_the_photo_is_its_blurred_reflection():
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1))).convert("RGB")
    quad = ((-50, 40), (-50, 140), (50, 140), (50, 40))
    crop = np.asarray(Photo("", ramp, quad).crop(100))[:, :, 0].astype(int)
    np.testing.assert_array_equal(crop[50, 50:], np.arange(50))
    np.testing.assert_allclose(crop[50, 5:40], np.arange(44, 9, -1), atol=1.5)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_reflection_is_blurred_at_every_border(degrees):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    factor = cmath.rect(1, math.radians(degrees))
    quad = moved([(-50, 40), (-50, 140), (50, 140), (50, 40)], factor, (100 + 100j) * (1 - factor))
    quad = tuple((round(x), round(y)) for x, y in quad)  # its left half is outside, as it sees itself
    crop = np.asarray(Photo("", Image.fromarray(noise), quad).crop(100))
    assert crop[:, :40].std() < 0.2 * crop[:, 50:].std()
    np.testing.assert_array_equal(crop[1:, 51:], np.rot90(noise, degrees // 90)[41:140, 1:50])


def test_crop_is_where_the_square_is_to_a_fraction_of_a_pixel():
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 2, dtype=np.uint8), (128, 1))).convert("RGB")
    quad = ((10.5, 14.5), (10.5, 110.5), (106.5, 110.5), (106.5, 14.5))
    crop = np.asarray(Photo("", ramp, quad).crop(16))[:, 1:-1, 0]
    np.testing.assert_allclose(crop, np.tile(2 * (10 + 6 * np.arange(1.5, 15)), (16, 1)), atol=0.6)


def test_face_at_the_border_of_a_small_photo():
    photo = Photo("", Image.new("RGB", (40, 30), (10, 200, 90)), ((-30, -30), (-30, 40), (40, 40), (40, -30)))
    for size in (1, 8, 100):
        assert photo.crop(size).getcolors() == [(size * size, (10, 200, 90))]
        assert photo.paste(photo.crop(size)).getcolors() == [(40 * 30, (10, 200, 90))]


# ---- back into the photo


@pytest.mark.parametrize("degrees", [0, 37, 180])
def test_unedited_crop_pasted_back_changes_little(degrees):
    image = picture(1, 600, 600)
    quad = tuple(
        moved(LEVEL, cmath.rect(1, math.radians(degrees)), 300 * (1 + 1j) * (1 - cmath.rect(1, math.radians(degrees))))
    )
    photo = Photo("", image, quad)
    for size in (64, 224, 500):
        change = difference(photo.paste(photo.crop(size)), image)
        assert abs(change).max() <= 4
        assert abs(change.mean()) < 0.02  # neither darker nor lighter


def test_central_square_pasted_back_is_the_same():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8))
    photo = Photo("", image, central_square(90, 61))
    np.testing.assert_array_equal(np.asarray(photo.paste(photo.crop(61))), np.asarray(image))


@pytest.mark.parametrize("size", [(7, 7), (64, 64), (700, 700), (30, 20)])
def test_paste_stays_in_the_square_and_has_no_seam(size):
    turn = cmath.rect(1, math.radians(28))
    quad = tuple(moved(LEVEL, turn, 300 * (1 + 1j) * (1 - turn)))
    pasted = np.asarray(Photo("", Image.new("RGB", (600, 600)), quad).paste(Image.new("RGB", size, "white")))
    depth = inside(quad, (600, 600))
    assert not pasted[depth < 0].any()
    assert (pasted[depth > 224 / 8] == 255).all()
    steps = [abs(np.diff(pasted[:, :, 0].astype(int), axis=axis)).max() for axis in (0, 1)]
    assert max(steps) < 2 * 1.5 * 255 / (224 / 12)  # a smooth step over a twelfth of the side


def test_paste_does_not_fade_at_the_border_of_the_photo():
    photo = Photo("", Image.new("RGB", (100, 60)), central_square(100, 60))
    pasted = np.asarray(photo.paste(Image.new("RGB", (16, 16), "white")))[:, :, 0]
    assert (pasted[:, 50] == 255).all()
    assert (pasted[30, [19, 20, 79, 80]] < 30).all()
    corner = Photo("", Image.new("RGB", (100, 60)), ((0, 0), (0, 40), (40, 40), (40, 0)))
    pasted = np.asarray(corner.paste(Image.new("RGB", (16, 16), "white")))[:, :, 0]
    assert pasted[0, 0] == pasted[0, 30] == pasted[30, 0] == 255
    assert max(pasted[39, 20], pasted[20, 39]) < 30
    whole = Photo("", Image.new("RGB", (60, 60)), central_square(60, 60))
    assert np.asarray(whole.paste(Image.new("RGB", (16, 16), "white"))).min() == 255


def test_right_side_up_after_a_round_trip():
    scene, landmarks = turned(cmath.rect(1.5, 2.0), complex(500, 200))
    photo = Photo("", scene, face_square(landmarks, 700, 600))
    mark = Image.new("RGB", (224, 224), "black")
    mark.paste("white", (40, 40, 60, 60))  # left of and above the middle
    again = Photo("", photo.paste(mark), photo.quad).crop(224)
    assert abs(difference(again, mark))[20:204, 20:204].mean() < 3


# ---- kinds of files


def test_exif_orientation(tmp_path):
    image = picture(0, 60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    photo = read_photo(str(tmp_path / "a.jpg"))
    assert photo.image.size == (40, 60)
    assert abs(difference(photo.image, image.transpose(Image.Transpose.ROTATE_270))).mean() < 3


def test_files_that_are_no_photo(tmp_path):
    text, tiny = tmp_path / "text.jpg", tmp_path / "tiny.png"
    text.write_text("no photo")
    picture(0, 3, 3).save(tiny)
    for path, message in [
        (text, "text.jpg is a bad image: no image format"),
        (tiny, "tiny.png: expected at least 8 pixels on a side, got 3x3"),
        (tmp_path / "absent.png", "absent.png is a bad image"),
    ]:
        with pytest.raises(UserError, match=message):
            read_photo(str(path))


# ---- landmarks


@pytest.mark.parametrize(
    "landmarks, message",
    [
        (FACE[:4], "expected five pairs of finite numbers"),
        ([*FACE[:4], (149, math.nan)], "expected five pairs of finite numbers"),
        ([*FACE[:4], (149, 172, 1)], "expected five pairs of finite numbers"),
        ([(128, 128)] * 5, "expected left_eye, .* no face has them at"),
        ([FACE[i] for i in (1, 0, 2, 4, 3)], "expected left_eye, right_eye, .* as seen in the picture"),
        ([(x / 256, y / 256) for x, y in FACE], "expected a face of at least 8 pixels in a photo of 256x256"),
        ([(x - 140, y) for x, y in FACE], r"expected a face .* in a photo of 256x256, got .* around \(-12, 118\)"),
        ([(x * 9, y * 9) for x, y in FACE], "expected landmarks in a photo of 256x256"),
        ([*FACE[:4], (1e308, 1e308)], "expected landmarks in a photo of 256x256"),
    ],
)
def test_landmarks_that_are_no_face(tmp_path, landmarks, message):
    path = image_folder(tmp_path, ["a.png"], 256, 256) + "/a.png"
    with pytest.raises(UserError, match=f"a.png: {message}"):
        read_photo(path, landmarks)


def test_profile_is_a_face():
    square = face_square([(128, 112), (128, 112), (150, 140), (120, 172), (120, 172)], 256, 256)
    assert abs(complex(*square[3]) - complex(*square[0])) == pytest.approx(3.6 * abs(-8 + 60j))


HEADER = "file," + ",".join(f"{name}_{axis}" for name in ("le", "re", "nose", "lm", "rm") for axis in "xy")
ROW = ",".join(f"{value}" for point in FACE for value in point)


def test_read_landmarks(tmp_path):
    expected = {"a.jpg": FACE, "sub/b.png": tuple(moved(FACE, 2, 0))}
    table, tree = tmp_path / "marks.csv", tmp_path / "marks.json"
    table.write_text(f"{HEADER}\na.jpg,{ROW}\n\nsub/b.png,{','.join(str(2 * v) for p in FACE for v in p)}\n")
    tree.write_text(json.dumps({name: [list(p) for p in points] for name, points in expected.items()}))
    assert read_landmarks(str(table)) == read_landmarks(str(tree)) == expected


@pytest.mark.parametrize(
    "names, paths, expected",
    [
        (["a.jpg", "b.jpg"], ["x/b.jpg", "y/a.jpg"], [1, 0]),
        (["x/a.jpg", "y/a.jpg"], ["y/a.jpg", "x/a.jpg", "y/a.jpg"], [1, 0, 1]),
        (["elsewhere/a.jpg"], ["x/a.jpg"], [0]),  # the folder has been renamed
        (["a.jpg", "x/a.jpg"], ["x/a.jpg"], [1]),
        (["C:\\x\\\u00e9.jpg"], ["x/e\u0301.jpg"], [0]),
        (["a.jpg"], ["x/a.jpg", "y/a.jpg"], "expected folders in the names, 'a.jpg' is not the only one for .*y/a.jpg"),
        (["p/a.jpg", "q/a.jpg"], ["x/a.jpg"], "expected folders in the names, 'p/a.jpg' is not the only one"),
        (["a.jpg"], ["x/ba.jpg"], "expected some for every image, there are none for .*/x/ba.jpg"),
    ],
)
def test_landmarks_of_photos_with_equal_names(names, paths, expected):
    landmarks = {name: i for i, name in enumerate(names)}
    if isinstance(expected, list):
        assert match_landmarks(landmarks, paths) == expected
    else:
        with pytest.raises(UserError, match=f"landmarks: {expected}"):
            match_landmarks(landmarks, paths)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", f"{HEADER}\na.jpg,{ROW[:-4]}\n", "line 2, got 9"),
        ("a.csv", f"{HEADER}\na.jpg,{ROW}\nb.jpg,{ROW[:-3]}nan\n", "line 3.*'nan'"),
        ("a.csv", f"{HEADER},more\n", "expected the header file,left_eye_x,.*got 12 columns"),
        ("a.json", b"\xff\xfe{", "expected a readable text file"),
        ("a.json", "[[1, 2]]", "expected a JSON object"),
        ("a.json", "[" * 100_000, "expected a JSON object"),
        ("a.json", '{"a.jpg": [[1, 2], [3, 4]]}', "'a.jpg': expected five pairs"),
        ("a.json", '{"a.jpg": [[1, 2], [3, 4], [5, 6], [7, 8], [9, NaN]]}', "'a.jpg': expected five pairs"),
        ("a.json", '{"a.jpg": [[1, 2], [3, 4], [5, 6], [7, 8], [9, true]]}', "'a.jpg': expected five pairs"),
        ("a.json", '{"a.jpg": [[1,2],[3,4],[5,6],[7,8],[9,0]], "a.jpg": [[1,2],[3,4],[5,6],[7,8],[9,0]]}', "twice"),
        ("a.txt", "", "expected landmarks in a .json or .csv file"),
    ],
)
def test_wrong_landmark_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"{name}: .*{message}"):
        read_landmarks(str(path))
