"""Small LMDBs and image files for the tests of data sets."""

import io
import os

import lmdb
import numpy as np
from PIL import Image


def picture(seed: int, width: int = 24, height: int = 24) -> Image.Image:
    """A smooth random RGB image, different for every seed."""
    levels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_lmdb(path, entries: dict[str, bytes], subdir: bool = True) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with lmdb.open(str(path), map_size=1 << 24, subdir=subdir) as env, env.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key.encode(), value)
    return str(path)


def image_lmdb(path, key_format: str, count: int, width=24, height=24, length=True, subdir=True) -> str:
    """An LMDB of ``picture(0..count-1)``."""
    entries = {key_format % i: encoded(picture(i, width, height)) for i in range(count)}
    if length:
        entries["length"] = str(count).encode()
    return write_lmdb(path, entries, subdir)


def image_folder(path, names, width=24, height=24) -> str:
    """A folder with ``picture(0..)`` under the given names."""
    for seed, name in enumerate(names):
        target = os.path.join(path, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        picture(seed, width, height).save(target)
    return str(path)
