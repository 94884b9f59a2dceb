"""The methods by name. A method of your own is one more class in METHODS."""

from dbae.methods.autoencoder import AutoEncoder
from dbae.methods.base import DiffusionModel, preset, preset_name
from dbae.methods.dbae import DBAE

METHODS: dict[str, type[DiffusionModel]] = {each.method: each for each in (DBAE,)}

__all__ = ["DBAE", "METHODS", "AutoEncoder", "DiffusionModel", "preset", "preset_name"]
