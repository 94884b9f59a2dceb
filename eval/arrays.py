"""Named arrays and text in one file: ``.npz`` by NumPy, or ``.safetensors`` by its own package."""

import json
from collections.abc import Mapping
from types import ModuleType

import blobfile as bf
import numpy as np

from dbae.config import UserError
from dbae.io import atomic_write

Arrays = dict[str, np.ndarray]
Content = tuple[Arrays, dict[str, str]]  # arrays and text, by name


def write_arrays(path: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, str] | None = None) -> None:
    """Write ``.safetensors`` where the path ends so (UserError without that package), else ``.npz``.

    ``about`` is text that goes with the arrays.
    """
    about = dict(about or {})
    if path.endswith(".safetensors"):
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        data = _safetensors(path).save(whole, about)
        with atomic_write(path) as file:
            file.write(data)
    else:
        with atomic_write(path) as file:
            np.savez(file, **arrays, **about)


def read_arrays(path: str) -> Content:
    """The arrays and the text of a file. Raises UserError where it is missing, damaged or holds objects."""
    if not bf.exists(path):
        raise UserError(f"no such file: {path}")
    library = _safetensors(path) if path.endswith(".safetensors") else None
    try:
        with bf.BlobFile(path, "rb") as file:
            if library:
                data = file.read()
                arrays = library.load(data)  # checks the header, from which the text is read
                return arrays, json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
            with np.load(file, allow_pickle=False) as content:
                arrays = dict(content)
        text = {name: str(value) for name, value in arrays.items() if value.ndim == 0 and value.dtype.kind == "U"}
        return {name: value for name, value in arrays.items() if name not in text}, text
    except Exception as error:  # each library raises its own kinds, and what Python raises for odd headers
        raise UserError(f"{path}: damaged, or not a file of arrays ({' '.join(str(error).split())})") from None


def _safetensors(path: str) -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError(f"{path}: .safetensors files need the package safetensors: pip install safetensors") from None
    return safetensors.numpy
