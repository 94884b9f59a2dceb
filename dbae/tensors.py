"""Tensors in files: as ``torch.save`` writes them, and as .safetensors. Nothing in a file is ever executed."""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from types import ModuleType
from typing import IO, Any

import blobfile as bf
import torch
from torch import Tensor

from dbae.config import UserError
from dbae.io import atomic_write

OTHER_ARCHIVE = "an archive, to be unpacked first"
# What files that are no weights begin with
FOREIGN = {
    "an empty file": re.compile(rb"\Z"),
    "a Git LFS pointer in place of the file, which `git lfs pull` fetches": re.compile(rb"version https://git-lfs"),
    "a web page in place of the file, whose own address is needed": re.compile(rb"\s*<(!doctype|html|\?xml)", re.I),
    "text, such as JSON": re.compile(rb"\s*[\[{]\s*[\"\]}\[{\d]"),
    OTHER_ARCHIVE: re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc|(?s:.{257})ustar"),
    "an HDF5 file": re.compile(rb"\x89HDF"),
}
SAFE = re.compile(rb".{7}\0\{", re.S)  # a .safetensors file begins with the length of a header that is JSON
LONGEST = 100_000_000  # bytes of a header, as the package has it
METADATA = "dbae"  # where a .safetensors file carries its configuration
# Keys one entry of a Lightning checkpoint; nothing of it is called
LIGHTNING = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})


def write_tensors(path: str, content: Mapping[str, Any], copied: bool = False) -> str:
    """Write a dictionary of tensors and plain values, and return the file's ``fingerprint``.

    Tensors are written as ``host_copy`` makes them, unless it has already. The file appears under its name only when it
    is complete. Raises OSError where it cannot be written.
    """
    with atomic_write(path) as file:
        stream = _Digested(file)
        torch.save(content if copied else host_copy(content), stream)
        if stream.error:
            raise stream.error
    return stream.digest.hexdigest()[:16]


def host_copy(content: Any) -> Any:
    """The same with a copy of every tensor on the CPU, contiguous, which shares its memory with no other."""
    if isinstance(content, Mapping):
        return {name: host_copy(value) for name, value in content.items()}
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return content


class _Digested:
    """A file for ``torch.save``, which hides errors of writing behind its own: the first one is kept here."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """``atomic_write`` does."""


def read_tensors(path: str, mapped: bool = False) -> dict[str, Any]:
    """Read a dictionary written by ``torch.save`` without executing anything in it.

    ``mapped`` tensors stay in a local file until they are used, for large files of which little is. Raises UserError
    for a file that is missing, damaged (a single wrong bit suffices) or holds something else.
    """
    head = read_head(path)
    try:
        with bf.BlobFile(path, "rb") as file, torch.serialization.safe_globals([LIGHTNING]):
            wrong = _damaged_part(file)
            file.seek(0)
            # torch reads a path by its ending, too
            mapped = mapped and head.startswith(b"PK") and not ("://" in path or path.endswith(".safetensors"))
            source = path if mapped else file
            content = None if wrong else torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises a dozen kinds for damaged or hostile files
        reason = describe_foreign(head) or "damaged or no torch file"
        if str(error) == OTHER_ARCHIVE:
            reason = OTHER_ARCHIVE
        elif "GLOBAL" in str(error):
            reason = "it holds more than tensors, and nothing in a file is executed"
            if "lightning" in str(error):
                reason = f"a Lightning checkpoint: {reason}; save its state_dict alone where it was made"
        elif "TorchScript" in str(error):
            reason = "a TorchScript program, of which nothing is executed"
        raise UserError(f"{path}: refused: {reason}; expected tensors written by torch.save") from None
    if wrong:
        raise UserError(f"{path}: refused: damaged: the checksum of its part {wrong} is wrong")
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return content


def read_head(path: str) -> bytes:
    """The first 512 bytes of a file. Raises UserError where there is none, or one cannot read it."""
    if bf.isdir(path):
        raise UserError(f"{path} is a folder; expected a weight file, such as one in it")
    try:
        with bf.BlobFile(path, "rb") as file:
            return file.read(512)
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied") from None
    except (OSError, ValueError, bf.Error):
        raise UserError(f"model_path: no such file: {path}") from None


def describe_foreign(head: bytes) -> str | None:
    """What a file that begins with ``head`` is, where it cannot hold weights; None where it may."""
    return next((what for what, start in FOREIGN.items() if start.match(head)), None)


def _damaged_part(file: IO[bytes]) -> str | None:
    """The first part of a torch file whose CRC-32 does not agree; torch writes these checksums and never reads them.

    The old format has none, and in files whose writer left them out all are 0. Raises ValueError for another archive.
    """
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        if not any(name.endswith("data.pkl") for name in archive.namelist()):
            raise ValueError(OTHER_ARCHIVE)
        return archive.testzip() if any(part.CRC for part in archive.infolist()) else None


def write_safetensors(path: str, state: Mapping[str, Tensor], content: Mapping[str, Any] | None) -> None:
    """Write tensors, with ``content`` in the metadata. Raises UserError where the package is missing."""
    data = safetensors_library(path).save(host_copy(state), {METADATA: json.dumps(content), "format": "pt"})
    with atomic_write(path) as file:
        file.write(data)


def read_safetensors(path: str) -> dict[str, Tensor]:
    """Tensors by name. Raises UserError for a damaged file, and where the package is missing."""
    library = safetensors_library(path)
    try:
        with bf.BlobFile(path, "rb") as file:
            return library.load(file.read())  # checks the header, too
    except Exception as error:  # the library raises its own kind, and what Python and torch raise for odd headers
        raise _damaged(path, error) from None


def read_metadata(path: str) -> Any:
    """What ``write_safetensors`` was given as ``content``, or None. Reads the header alone; UserError if damaged."""
    try:
        with bf.BlobFile(path, "rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), LONGEST)))
        text = header.get("__metadata__", {}).get(METADATA)
        return text and json.loads(text)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from None


def _damaged(path: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{path}: refused: damaged or no safetensors file ({reason})")


def safetensors_library(path: str) -> ModuleType:
    """The package that reads and writes the file. Raises UserError where it is missing."""
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(f"{path}: .safetensors files need the package safetensors: pip install safetensors") from None
    return safetensors.torch
