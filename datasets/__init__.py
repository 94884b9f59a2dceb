"""Data sets: LMDBs of the published sets, LFW, folders of images, and the embedded toy faces.

``build`` is the one entrance. Everything heavy is imported where it is used, so importing this package is quick.
"""

import os
from typing import TYPE_CHECKING

from datasets.sources import DATASETS, OWN_LMDB, Source
from dbae.config import UserError

if TYPE_CHECKING:
    from datasets.base import ImageDataset

__all__ = ["DATASETS", "Source", "build"]


def build(
    name: str,
    split: str,
    size: int,
    data_root: str = "data",
    data_dir: str | None = None,
    split_range: str | None = None,
    labels: str | None = None,
    whole: bool = False,
) -> "ImageDataset":
    """One split of a data set, whose images are uint8 [3, size, size].

    ``name`` is a row of DATASETS, ``toyfaces``, ``lfw`` or ``folder:PATH`` (images, or an LMDB that `prepare folder`
    made). ``data_dir`` is the exact path of the LMDB or of LFW's folder, in place of the usual names under
    ``data_root``. ``split_range`` A:B cuts the split. ``labels`` is a CSV for a folder of images. With ``whole``
    an LMDB must hold the split's last image, so that one which is shorter than it says is noticed before any work.
    Raises UserError for what is unknown, missing or bad.
    """
    kind, _, path = name.partition(":")
    if labels and kind != "folder":
        raise UserError(f"labels: expected only with folder:PATH, got them with {name}")
    if kind == "folder" and path:
        return _build_folder(path, split, size, split_range, labels, whole)
    if name == "toyfaces":
        return _build_toyfaces(split, size, data_root, data_dir, split_range)
    if name == "lfw":
        from datasets.lfw import Lfw

        return Lfw(data_dir or os.path.join(data_root, "lfw"), split, size, split_range)
    if name not in DATASETS:
        raise UserError(f"data set: expected {', '.join(DATASETS)}, toyfaces, lfw or folder:PATH, got {name!r}")
    from datasets.lmdb_images import LmdbImages, find_lmdb

    source = DATASETS[name]
    return LmdbImages(find_lmdb(source, data_root, data_dir), source, split, size, split_range, whole)


def _build_folder(
    path: str, split: str, size: int, split_range: str | None, labels: str | None, whole: bool
) -> "ImageDataset":
    from datasets.folder import FolderImages
    from datasets.lmdb_images import LmdbImages
    from datasets.lmdb_store import is_lmdb

    if is_lmdb(path) and (os.path.isdir(path) or path.endswith(".lmdb")):
        if labels:
            raise UserError(f"labels: expected only with a folder of images, {path} is an LMDB with its own labels.csv")
        return LmdbImages(path, OWN_LMDB, split, size, split_range, whole)
    return FolderImages(path, split, size, split_range, labels)


def _build_toyfaces(
    split: str, size: int, data_root: str, data_dir: str | None, split_range: str | None
) -> "ImageDataset":
    from datasets.faces import ToyFaces
    from datasets.lmdb_store import is_lmdb, open_store

    path = data_dir or os.path.join(data_root, "toyfaces")
    if data_dir and not is_lmdb(data_dir):
        raise UserError(f"no LMDB of toyfaces at {data_dir}: make one with `python -m datasets.prepare toyfaces`")
    return ToyFaces(split, size, split_range, open_store(path) if is_lmdb(path) else None)
