"""CIFAR-10, CIFAR-100 and Tiny-ImageNet as they are released: what ``prepare`` makes LMDBs with classes and splits of.

CIFAR is records (the binary release) or pickles (the Python release, of which nothing but numpy's arrays and plain
values is ever made), both as folders or as the archives, or as image files ``train/CLASS/...`` and ``test/CLASS/...``.
"""

import io
import os
import pickle
import re
import tarfile
from _codecs import encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct
from PIL import Image

from datasets.labels import LabelTable
from datasets.originals import Originals, open_originals
from dbae.config import UserError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
# Files of the records of each split, in order, bytes of labels before each image, and what names the classes
RELEASES = {
    "cifar10": (([f"data_batch_{k}" for k in range(1, 6)], ["test_batch"]), 1, "batches.meta", "label_names", "labels"),
    "cifar100": ((["train"], ["test"]), 2, "fine_label_names", "fine_label_names", "fine_labels"),
}
ALLOWED = {  # what pickled arrays ask for, under the names of numpy 1 and 2
    **{(module, "_reconstruct"): _reconstruct for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): encode,
}
PARTITION = {"train": "0", "test": "2"}
SIDES = {"train": "train", "test": "test", "val": "test"}  # folders and the splits that they are


@dataclass(frozen=True)
class Records(Originals):
    """CIFAR's images [n, 3, 32, 32] uint8 in memory, by names like ``train/00000``."""

    images: np.ndarray = field(repr=False)
    place: dict[str, int] = field(repr=False)  # by name
    sources: tuple[str, ...] = ()  # files that they are from

    def names(self) -> list[str]:
        return list(self.place)

    def read(self, name: str) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.images[self.place[name]].transpose(1, 2, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    def files(self, names: Sequence[str]) -> Sequence[str]:
        return self.sources


def open_classes(kind: str, path: str) -> tuple[Originals, list[str], dict[str, LabelTable]]:
    """A released set: its originals, their names, training images first, and tables of classes and splits.

    Raises UserError for a path where there is no such set, or a damaged one.
    """
    found = _members(path) if kind in RELEASES and os.path.exists(path) else {}
    binary = {name.removesuffix(".bin"): data for name, data in found.items() if name.endswith(".bin")}
    if binary or any(name in found for files in _files(kind) for name in files):
        return _records(kind, path, found, binary)
    return _image_files(kind, path)


def _files(kind: str) -> tuple[list[str], list[str]]:
    return RELEASES[kind][0] if kind in RELEASES else ([], [])


def _members(path: str) -> dict[str, str | bytes]:
    """Files by name, of a folder or the folder in it their paths, and of an archive their contents; none for others."""
    wanted = re.compile(
        r"(data_batch_\d|test_batch|train|test)(\.bin)?|batches\.meta(\.txt)?|meta|fine_label_names\.txt"
    )
    if os.path.isfile(path):
        if not tarfile.is_tarfile(path):
            return {}
        try:
            with tarfile.open(path) as archive:
                chosen = [m for m in archive if m.isfile() and wanted.fullmatch(os.path.basename(m.name))]
                return {os.path.basename(m.name): archive.extractfile(m).read() for m in chosen}
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{path}: expected a readable archive: {error}") from None
    below = sorted(entry.path for entry in os.scandir(path) if entry.is_dir())
    for folder in (path, *below):
        files = [entry for entry in os.scandir(folder) if entry.is_file() and wanted.fullmatch(entry.name)]
        if files:
            return {entry.name: entry.path for entry in files}
    return {}


def _read(content: str | bytes) -> bytes:
    if isinstance(content, bytes):
        return content
    with open(content, "rb") as file:
        return file.read()


def _records(
    kind: str, path: str, found: dict[str, str | bytes], binary: dict[str, str | bytes]
) -> tuple[Originals, list[str], dict[str, LabelTable]]:
    splits, skipped, meta, names_key, labels_key = RELEASES[kind]
    images, labels, place = [], [], {}
    for side, files in zip(PARTITION, splits, strict=True):
        before = len(labels)
        for name in files:
            content = binary.get(name) if binary else found.get(name)
            if content is None:
                raise UserError(f"{path}: expected {name}{'.bin' * bool(binary)} beside the other files, it is missing")
            data = _read(content)
            if binary:
                if not data or len(data) % (skipped + PIXELS):
                    raise UserError(
                        f"{path}: {name}.bin: expected records of {skipped + PIXELS} bytes, got {len(data)}"
                    )
                rows = np.frombuffer(data, np.uint8).reshape(-1, skipped + PIXELS)
                images.append(rows[:, skipped:])
                labels += rows[:, skipped - 1].tolist()
            else:
                pixels, numbers = _batch(f"{path}: {name}", unpickle(data, f"{path}: {name}"), labels_key)
                images.append(pixels)
                labels += numbers
        place |= {f"{side}/{i:05d}": before + i for i in range(len(labels) - before)}
    classes = _class_names(kind, path, found, meta, names_key)
    if max(labels) >= len(classes):
        raise UserError(f"{path}: expected labels below {len(classes)}, got {max(labels)}")
    sources = [path] if os.path.isfile(path) else [file for file in found.values() if isinstance(file, str)]
    originals = Records(path, np.concatenate(images).reshape(-1, 3, 32, 32), place, tuple(sources))
    return originals, list(place), _tables(path, {name: classes[labels[i]] for name, i in place.items()})


def _class_names(kind: str, path: str, found: dict[str, str | bytes], meta: str, key: str) -> Sequence[str]:
    if f"{meta}.txt" in found:
        return _read(found[f"{meta}.txt"]).decode(errors="replace").split()
    pickled = next((name for name in (meta, "meta") if name in found), None)
    if pickled:
        names = _plain(unpickle(_read(found[pickled]), f"{path}: {pickled}")).get(key)
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return names
        raise UserError(f"{path}: {pickled}: expected names of classes under {key!r}")
    return CIFAR10 if kind == "cifar10" else [f"class_{i:02d}" for i in range(100)]


def _batch(where: str, content: Any, key: str) -> tuple[np.ndarray, list[int]]:
    content = _plain(content)
    pixels, labels = content.get("data"), content.get(key)
    right = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (PIXELS,)
    right = right and isinstance(labels, list) and all(type(label) is int and label >= 0 for label in labels)
    if not right or len(labels) != len(pixels) or not labels:
        raise UserError(f"{where}: expected uint8 data [n, {PIXELS}] and {key}, n whole numbers")
    return pixels, labels


def _plain(content: Any) -> dict[str, Any]:
    """A dictionary with names as text, which Python 2 wrote as bytes; empty for anything else."""
    if not isinstance(content, dict):
        return {}
    return {name.decode("latin1") if isinstance(name, bytes) else name: value for name, value in content.items()}


class _ArraysOnly(pickle.Unpickler):
    """Makes plain values and numpy's arrays, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(f"refused: it asks for {module}.{name}")
        return ALLOWED[module, name]


def unpickle(data: bytes, where: str) -> Any:
    """What a pickle of CIFAR holds. Raises UserError for one that asks for more than arrays, or is damaged."""
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # damaged pickles raise a dozen kinds
        raise UserError(f"{where}: expected a pickle of CIFAR, it is damaged: {str(error)[:100]}") from None


def _image_files(kind: str, path: str) -> tuple[Originals, list[str], dict[str, LabelTable]]:
    """Images in folders ``train`` and ``test`` (or ``val``) by class, or with ``val_annotations.txt``.

    They are ordered by their number within their class, so that any part of the order has all classes alike.
    """
    originals, classes, sides = open_originals(path), {}, {}
    named = _annotations(originals)
    for name in originals.names():
        parts = name.split("/")
        at = next((i for i, part in enumerate(parts[:-1]) if part in SIDES), None)
        folders = [] if at is None else [part for part in parts[at + 1 : -1] if part != "images"]
        label = named.get(parts[-1]) if at is not None and parts[at] == "val" and not folders else None
        if at is not None and (folders or label):
            classes[name], sides[name] = label or folders[0], SIDES[parts[at]]
    if set(sides.values()) != set(PARTITION):
        expected = "train/CLASS/... and test/CLASS/..., or a release of the set"
        raise UserError(f"{path}: expected images of {kind}, {expected}; got {len(classes)} of such names")
    known, unknown = ({classes[n] for n in classes if sides[n] == side} for side in ("train", "test"))
    if unknown - known:
        raise UserError(f"{path}: expected the classes of train in test, too, got {min(unknown - known)!r}")
    counts, rank = Counter(), {}
    for name, label in classes.items():
        counts[sides[name], label] += 1
        rank[name] = counts[sides[name], label]
    names = sorted(classes, key=lambda name: (sides[name] == "test", rank[name], classes[name]))
    return originals, names, _tables(path, {name: classes[name] for name in names}, sides)


def _annotations(originals: Originals) -> dict[str, str]:
    """Classes of Tiny-ImageNet's validation images by file."""
    found = originals.companion(["val_annotations.txt"], beside=False)
    if not found and os.path.isdir(originals.path):
        below = os.path.join(originals.path, "val")
        found = Originals(below).companion(["val_annotations.txt"], beside=False) if os.path.isdir(below) else None
    rows = [line.split("\t") for line in found[1].decode(errors="replace").splitlines()] if found else []
    return {cells[0]: cells[1] for cells in rows if len(cells) > 1}


def _tables(path: str, classes: dict[str, str], sides: dict[str, str] | None = None) -> dict[str, LabelTable]:
    labels, partition = LabelTable(path, ("class",)), LabelTable(path, ("partition",))
    for line, (name, label) in enumerate(classes.items(), start=1):
        labels.add(line, name, [label])
        partition.add(line, name, [PARTITION[sides[name] if sides else name.partition("/")[0]]])
    return {"labels.csv": labels, "partition.csv": partition}
