"""Named arrays and text in one file: ``.npz`` by NumPy, or ``.safetensors`` by its own package."""

import json
from collections.abc import Mapping
from types import ModuleType
from typing import IO

import blobfile as bf
import numpy as np

from dbae.config import UserError
from dbae.io import atomic_write

Arrays = dict[str, np.ndarray]
Content = tuple[Arrays, dict[str, str]]  # arrays and text, by name


def write_arrays(path: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, str] | None = None) -> None:
    """Write an ``.npz`` or ``.safetensors`` file; ``about`` is text that goes with it.

    Raises UserError for another ending, and for the second without the package safetensors.
    """
    if path.endswith(".npz"):
        with atomic_write(path) as file:
            np.savez(file, **arrays, **{name: np.array(text) for name, text in (about or {}).items()})
    elif path.endswith(".safetensors"):
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        data = _safetensors(path).save(whole, dict(about or {}))
        with atomic_write(path) as file:
            file.write(data)
    else:
        raise UserError(f"{path}: expected a name that ends in .npz or .safetensors")


def read_arrays(path: str) -> Content:
    """The arrays and the text of a file. Raises UserError where it is missing, damaged or holds objects."""
    if not bf.exists(path):
        raise UserError(f"no such file: {path}")
    library = _safetensors(path) if path.endswith(".safetensors") else None
    try:
        with bf.BlobFile(path, "rb") as file:
            return _read_safetensors(library, file.read()) if library else _read_npz(file)
    except Exception as error:  # each library raises its own kinds, and what Python raises for odd headers
        raise UserError(f"{path}: damaged, or not a file of arrays ({' '.join(str(error).split())})") from None


def _read_npz(file: IO[bytes]) -> Content:
    with np.load(file, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    if not all(isinstance(value, np.ndarray) for value in arrays.values()):
        raise ValueError("a part that is no array")
    text = {name for name, value in arrays.items() if value.ndim == 0 and value.dtype.kind == "U"}
    return {n: v for n, v in arrays.items() if n not in text}, {name: str(arrays[name]) for name in text}


def _read_safetensors(library: ModuleType, data: bytes) -> Content:
    arrays = library.load(data)  # checks the header, from which the text is read
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return arrays, header.get("__metadata__", {})


def _safetensors(path: str) -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError(f"{path}: .safetensors files need the package safetensors: pip install safetensors") from None
    return safetensors.numpy
