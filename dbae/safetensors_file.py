"""Weights and their configuration in one ``.safetensors`` file, an optional format beside the released ``.pt``.

It holds the same tensors under the same names, and under ``dbae`` in its metadata what otherwise stands in
``config.json``. There is nothing in such a file that could be executed.
"""

import json
import struct
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import blobfile as bf
from torch import Tensor

from dbae.config import ModelConfig, UserError, from_json
from dbae.io import atomic_write

KEY = "dbae"
MAX_HEADER = 100_000_000  # bytes, as in the format's own library


def write_safetensors(path: str, state: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors by name, and ``content`` of a ``config.json``. Raises UserError without the package safetensors."""
    library = _library(path)
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    data = library.save(own, {KEY: json.dumps(content), "format": "pt"})
    with atomic_write(path) as file:
        file.write(data)


def read_safetensors(path: str) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """Tensors by name, on the CPU, and the configuration where the file carries one.

    Raises UserError for a file that is missing, damaged or foreign, and without the package safetensors.
    """
    library = _library(path)
    try:
        with bf.BlobFile(path, "rb") as file:
            state = library.load(file.read())
    except (FileNotFoundError, IsADirectoryError, bf.Error):
        raise UserError(f"model_path: no such file: {path}") from None
    except Exception as error:  # the library raises its own kind, and what Python and torch raise for odd headers
        raise UserError(f"{path}: refused: damaged or no safetensors file ({_line(error)})") from None
    content = read_content(path)
    return state, content and from_json(ModelConfig, content["model"], path)


def read_content(path: str) -> dict[str, Any] | None:
    """What a file carries of a ``config.json``, or None. Raises UserError like ``read_safetensors``."""
    try:
        with bf.BlobFile(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, MAX_HEADER)))
        text = header.get("__metadata__", {}).get(KEY)
        content = None if text is None else json.loads(text)
    except (FileNotFoundError, IsADirectoryError, bf.Error):
        raise UserError(f"model_path: no such file: {path}") from None
    except (struct.error, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: refused: damaged or no safetensors file ({_line(error)})") from None
    if content is not None and (not isinstance(content, dict) or "model" not in content):
        raise UserError(f'{path}: expected an object with "dataset" and "model" in its metadata {KEY}')
    return content


def _library(path: str) -> ModuleType:
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(f"{path}: .safetensors files need the package safetensors: pip install safetensors") from None
    return safetensors.torch


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
