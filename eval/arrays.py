"""Named arrays in one file, written row by row: memory does not grow with their length.

``.npz`` is NumPy's own format without pickles; ``.safetensors`` is a JSON header and the raw values.
"""

import json
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import blobfile as bf
import numpy as np

from dbae.config import UserError
from dbae.io import atomic_write

SAFETENSORS = {"float32": "F32", "int64": "I64", "uint8": "U8", "int32": "I32"}


@dataclass(frozen=True)
class Column:
    """An array to be written: its shape and type, and its values in pieces along the first axis."""

    shape: tuple[int, ...]
    dtype: str
    pieces: Iterable[np.ndarray]


def write_arrays(path: str, columns: Mapping[str, Column], about: Mapping[str, str] | None = None) -> None:
    """Write an ``.npz`` or ``.safetensors`` file; ``about`` is text that goes with it (strings by name).

    Raises UserError for another ending.
    """
    if path.endswith(".npz"):
        _write_npz(path, columns, about or {})
    elif path.endswith(".safetensors"):
        _write_safetensors(path, columns, about or {})
    else:
        raise UserError(f"{path}: expected a name that ends in .npz or .safetensors")


def read_arrays(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the text of a file. Raises UserError where it is missing, damaged or holds objects."""
    if not bf.exists(path):
        raise UserError(f"no such file: {path}")
    try:
        with bf.BlobFile(path, "rb") as file:
            return _read_npz(file) if path.endswith(".npz") else _read_safetensors(file)
    except (OSError, ValueError, KeyError, EOFError, struct.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged, or not a file of arrays ({error})") from None


def _write_npz(path: str, columns: Mapping[str, Column], about: Mapping[str, str]) -> None:
    text = {name: Column((), f"<U{max(len(value), 1)}", [np.array(value)]) for name, value in about.items()}
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, column in {**columns, **text}.items():
            descr = np.lib.format.dtype_to_descr(np.dtype(column.dtype))
            header = {"descr": descr, "fortran_order": False, "shape": column.shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for piece in column.pieces:
                    member.write(np.ascontiguousarray(piece, column.dtype).tobytes())


def _write_safetensors(path: str, columns: Mapping[str, Column], about: Mapping[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, column in columns.items():
        start, end = end, end + int(np.prod(column.shape)) * np.dtype(column.dtype).itemsize
        kind = SAFETENSORS[np.dtype(column.dtype).name]
        header[name] = {"dtype": kind, "shape": list(column.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for column in columns.values():
            for piece in column.pieces:
                file.write(np.ascontiguousarray(piece, column.dtype).tobytes())


def _read_npz(file: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with np.load(file, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    if not all(isinstance(value, np.ndarray) for value in arrays.values()):
        raise ValueError("a part that is no array")
    text = {name for name, value in arrays.items() if value.ndim == 0 and value.dtype.kind == "U"}
    return {n: v for n, v in arrays.items() if n not in text}, {name: str(arrays[name]) for name in text}


def _read_safetensors(file: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > 1 << 27:
        raise ValueError("a header of more than 128 MiB")
    header = json.loads(file.read(length))
    values = file.read()
    types = {short: name for name, short in SAFETENSORS.items()}
    about = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        arrays[name] = np.frombuffer(values[start:end], types[entry["dtype"]]).reshape(entry["shape"])
    return arrays, about
