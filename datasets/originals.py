"""Where prepared images come from: a folder, a zip (never extracted), LSUN's own LMDB, or the drawing of faces."""

import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from PIL import Image

from datasets import toyfaces
from datasets.images import MAX_BYTES, BadImage, decode, read_bytes
from datasets.label_files import read_file
from datasets.listing import choose_images, image_names
from datasets.lmdb import is_lmdb, open_store
from dbae.config import UserError

LABEL_FOLDERS = ("", "Anno", "Eval")  # in which the publisher of CelebA lays its text files


@dataclass(frozen=True)
class Originals:
    """Images by name, of a folder. An instance holds nothing open, so that worker processes can have it."""

    path: str

    def names(self) -> list[str]:
        """All images in natural order. Raises UserError where there are none."""
        return image_names(self.path)

    def read(self, name: str) -> bytes:
        """The bytes of an image file. Raises OSError or BadImage."""
        return read_bytes(os.path.join(self.path, name))

    def image(self, name: str) -> Image.Image:
        """The upright RGB image. Raises OSError or BadImage."""
        return decode(self.read(name))

    def files(self, names: Sequence[str]) -> Iterable[str]:
        """Paths of the files that hold the named images."""
        return (os.path.join(self.path, name) for name in names)

    def companion(self, names: Sequence[str], beside: bool) -> tuple[str, bytes] | None:
        """Path and contents of the first text file of these names in the folder, or beside folder, zip or LMDB."""
        folders = [self.path, os.path.dirname(os.path.abspath(self.path))] if beside else [self.path]
        paths = [os.path.join(*parts) for parts in product(folders, LABEL_FOLDERS if beside else [""], names)]
        found = next(filter(os.path.isfile, paths), None)
        return (found, read_file(found)) if found else None


class ZipOriginals(Originals):
    def names(self) -> list[str]:
        return choose_images(self.path, _open_zip(self.path, os.getpid()).namelist())

    def read(self, name: str) -> bytes:
        archive = _open_zip(self.path, os.getpid())
        if archive.getinfo(name).file_size > MAX_BYTES:
            raise BadImage(f"it unpacks to more than {MAX_BYTES >> 20} MiB")
        try:
            return archive.read(name)
        except Exception as error:  # decompressors raise a dozen kinds for damaged or encrypted members
            raise BadImage(str(error)) from error

    def files(self, names: Sequence[str]) -> list[str]:
        return [self.path]

    def companion(self, names: Sequence[str], beside: bool) -> tuple[str, bytes] | None:
        members = _open_zip(self.path, os.getpid()).namelist()
        member = next((member for name in names for member in members if os.path.basename(member) == name), None)
        try:
            return (f"{self.path}: {member}", self.read(member)) if member else super().companion(names, beside)
        except BadImage as error:
            raise UserError(f"{self.path}: {member} cannot be unpacked: {error}") from None


class LmdbOriginals(Originals):
    """LSUN's own export: arbitrary keys, encoded images as values."""

    def names(self) -> list[str]:
        return list(open_store(self.path).keys())

    def read(self, name: str) -> bytes:
        return _open_store(self.path).get(name) or b""

    def files(self, names: Sequence[str]) -> list[str]:
        return [_open_store(self.path).file]


@dataclass(frozen=True)
class DrawnFaces(Originals):
    """Toy faces, whose name is their index; ``path`` is not used."""

    count: int
    size: int

    def names(self) -> list[str]:
        return [str(index) for index in range(self.count)]

    def image(self, name: str) -> Image.Image:
        return toyfaces.render(toyfaces.describe(int(name), seed=0), self.size)

    def files(self, names: Sequence[str]) -> list[str]:
        return []


def open_originals(path: str) -> Originals:
    """The originals at a path. Raises UserError for what is neither folder, zip nor LMDB."""
    if os.path.isfile(path) and zipfile.is_zipfile(path):
        return ZipOriginals(path)
    if is_lmdb(path) and (os.path.isdir(path) or path.endswith((".lmdb", ".mdb"))):
        return LmdbOriginals(path)
    if os.path.isdir(path):
        return Originals(path)
    raise UserError(f"source {path}: expected a folder of images, a zip or an LMDB")


@lru_cache(maxsize=2)
def _open_zip(path: str, process: int) -> zipfile.ZipFile:
    """One open archive per process: a file position shared through a fork would mix up what is read."""
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # as above
        raise UserError(f"{path}: expected a readable zip: {error}") from None


# Kept open between reads, where `open_store` alone keeps a store only as long as somebody holds it
_open_store = lru_cache(maxsize=1)(open_store)
