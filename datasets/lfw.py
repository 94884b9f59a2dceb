"""LFW (Huang et al., 2007) with the 73 real-valued attributes of Kumar et al. (ICCV 2009)."""

import os
import re
from collections.abc import Iterator

from PIL import Image

from datasets.base import ImageDataset, check_split, cut
from datasets.images import check_pixels, decode, log_once, read_bytes
from datasets.label_files import read_text
from datasets.labels import LabelTable
from dbae.config import UserError

IMAGES = "lfw_funneled"
ATTRIBUTES = "lfw_attributes.txt"
PEOPLE = {"train": "peopleDevTrain.txt", "test": "peopleDevTest.txt"}
ORIGINS = {  # of every file that must be there
    IMAGES: "from lfw-funneled.tgz, e.g. the copy on figshare that scikit-learn's fetch_lfw_people uses",
    PEOPLE["train"]: "the training people of LFW's view 1",
    PEOPLE["test"]: "the test people of LFW's view 1",
    ATTRIBUTES: "the file 'LFW attributes' of Kumar et al.",
}


class Lfw(ImageDataset):
    """The images of one split's people, in the order of its file; images without attributes are left out.

    Labels are the attributes, as real numbers. Raises UserError for files that are missing or wrong.
    """

    kinds = ("real",)

    def __init__(self, root: str, split: str, size: int, split_range: str | None = None) -> None:
        check_split("lfw", split, tuple(PEOPLE))
        missing = [f"{name} ({origin})" for name, origin in ORIGINS.items() if not os.path.exists(f"{root}/{name}")]
        if missing:
            raise UserError(f"no LFW at {root}, and its original host is gone: missing there are {', '.join(missing)}")
        self.labels_path = os.path.join(root, ATTRIBUTES)
        self._table, listed = read_attributes(self.labels_path), read_people(os.path.join(root, PEOPLE[split]))
        self.names = [name for name in listed if name in self._table.rows]
        if without := len(listed) - len(self.names):
            log_once(f"{root}: {without} of {len(listed)} {split} images have no attributes and are left out")
        super().__init__(root, size, cut(range(len(self.names)), split_range))
        missing = [self._path(index) for index in self.indices if not os.path.isfile(self._path(index))]
        if missing:
            raise UserError(f"{root}: {len(missing)} of {len(self)} images are missing, the first is {missing[0]}")

    def name(self, index: int) -> str:
        return self.names[index]

    def image(self, index: int) -> Image.Image:
        return centre(decode(read_bytes(self._path(index))), self.size)

    def files(self) -> Iterator[str]:
        return map(self._path, self.indices)

    def table(self, kind: str | None) -> LabelTable:
        return self._table

    def _path(self, index: int) -> str:
        return os.path.join(self.title, IMAGES, self.names[index])


def centre(image: Image.Image, size: int) -> Image.Image:
    """torchvision's Resize(int(1.1 * size)) and CenterCrop(size) of a PIL image, to the pixel.

    Raises BadImage for one so narrow that the resized one would have too many pixels.
    """
    short = int(1.1 * size)
    width, height = (int(short * side / min(image.size)) for side in image.size)
    check_pixels(width, height)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def read_attributes(path: str) -> LabelTable:
    """By image: a comment line, a header, then rows of a person (with spaces), an image number and the values."""
    lines = [line.rstrip().split("\t") for line in read_text(path).splitlines()]
    header = lines[1] if len(lines) > 1 else []
    if header[:3] != ["#", "person", "imagenum"] or len(header) < 4:
        expected = "a comment on line 1, and on line 2 #, person, imagenum and the names of attributes"
        raise UserError(f"{path}: expected {expected}, separated by tabs")
    table = LabelTable(path, tuple(name.strip() for name in header[3:]))
    for number, cells in enumerate(lines[2:], start=3):
        if cells == [""]:
            continue
        if len(cells) < 2 or not (cells[0] and cells[1].isdecimal()):
            expected = f"a person, an image number and {len(table.names)} values on line {number}, separated by tabs"
            raise UserError(f"{path}: expected {expected}, got {' '.join(cells)[:60]!r}")
        table.add(number, _image_name(cells[0].replace(" ", "_"), int(cells[1])), cells[2:])
    return table


def read_people(path: str) -> list[str]:
    """Names of all images of the people in a file: a count, then rows of a person and a number of images."""
    count, *rows = read_text(path).splitlines() or [""]
    people = dict(re.findall(r"^(\S+)\t(\d+)\s*$", "\n".join(rows), re.MULTILINE))
    if not count.strip() == str(len(people)) == str(len(list(filter(str.strip, rows)))):
        expected = "a number on line 1, and as many rows of First_Last, a tab and a number of images"
        raise UserError(f"{path}: expected {expected}, found {len(people)} after {count.strip()[:60]!r}")
    return [_image_name(person, image) for person, images in people.items() for image in range(1, int(images) + 1)]


def _image_name(person: str, number: int) -> str:
    return f"{person}/{person}_{number:04d}.jpg"
