"""Reading and writing files, local or remote (anything ``blobfile`` reaches), never half-written."""

import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import blobfile as bf

UNFINISHED = re.compile(r".+\.[0-9a-f]{8}\.tmp")


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
            _sync_folder(folder)
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def remove_unfinished(folder: str) -> None:
    """Remove what killed processes left of their ``atomic_write`` in a local folder; nobody else may write there."""
    for name in listdir(folder) if "://" not in folder else []:
        if UNFINISHED.fullmatch(name):
            os.remove(os.path.join(folder, name))


def listdir(path: str) -> list[str]:
    """Names in a folder; none where there is no such folder."""
    return [name.rstrip("/") for name in bf.listdir(path)] if bf.isdir(path) else []


def _sync_folder(folder: str) -> None:
    """Make a rename survive a loss of power. Windows cannot open folders, and needs no such thing."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
