"""Reading and writing files, local or remote (anything ``blobfile`` reaches), never half-written."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import blobfile as bf


@contextmanager
def atomic_write(path: str, mode: str = "wb") -> Iterator[IO]:
    """Open ``path`` for writing; it appears under its name only when the block ends without an error.

    Local files are written beside their final name, synchronised and renamed; remote ones are uploaded whole.
    """
    remote = "://" in path
    folder = tempfile.gettempdir() if remote else os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    beside = os.path.join(folder, f"{bf.basename(path)}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if remote:
            bf.copy(beside, path, overwrite=True)
        else:
            os.replace(beside, path)
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def listdir(path: str) -> list[str]:
    """Names in a folder; none where there is no such folder."""
    return [name.rstrip("/") for name in bf.listdir(path)] if bf.isdir(path) else []
