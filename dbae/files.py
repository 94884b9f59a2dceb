"""Reading and writing files, local or remote (anything ``blobfile`` reaches), never half-written."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import blobfile as bf


@contextmanager
def atomic_write(path: str, mode: str = "wb") -> Iterator[IO]:
    """Open ``path`` for writing; it appears under its name only when the block ends without an error.

    Local files are written beside their final name, synchronised and renamed. A remote blob appears when it is closed.
    """
    remote = "://" in path
    beside = path if remote else f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        with bf.BlobFile(beside, mode) as file:
            yield file
            if not remote:
                file.flush()
                os.fsync(file.fileno())
        if not remote:
            os.replace(beside, path)
    except BaseException:
        if not remote and os.path.exists(beside):
            os.remove(beside)
        raise


def listdir(path: str) -> list[str]:
    """Names in a folder; none where there is no such folder."""
    return [name.rstrip("/") for name in bf.listdir(path)] if bf.isdir(path) else []
