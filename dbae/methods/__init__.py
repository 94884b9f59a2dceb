"""The methods by name. A method of your own is one more class in METHODS."""

from dbae.methods.autoencoder import AutoEncoder
from dbae.methods.base import DiffusionModel, preset, preset_name
from dbae.methods.dbae import DBAE
from dbae.methods.diffae import DDIM, DiffAE
from dbae.methods.prior import LatentPrior

METHODS: dict[str, type[DiffusionModel]] = {each.method: each for each in (DBAE, DiffAE, DDIM, LatentPrior)}

__all__ = ["DBAE", "DDIM", "METHODS", "AutoEncoder", "DiffAE", "DiffusionModel", "LatentPrior", "preset", "preset_name"]
