"""Diffusion Bridge AutoEncoders. The public names are loaded on first use, so that ``--help`` need not import torch."""

from importlib import import_module
from typing import Any

_HOMES = {
    "DBAE": "dbae.methods.dbae",
    "load_model": "dbae.checkpoint",
    "ModelConfig": "dbae.config",
    "TrainConfig": "dbae.config",
    "SampleConfig": "dbae.config",
    "UserError": "dbae.config",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dbae' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
