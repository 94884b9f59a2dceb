"""The methods by name. A method of your own is one more class in METHODS."""

from dbae.methods.autoencoder import AutoEncoder
from dbae.methods.base import DiffusionModel
from dbae.methods.dbae import DBAE
from dbae.methods.ddae import DDAE, EDMDDAE
from dbae.methods.diffae import DDIM, DiffAE
from dbae.methods.presets import preset
from dbae.methods.prior import LatentPrior

CLASSES = (DBAE, DiffAE, DDIM, DDAE, EDMDDAE, LatentPrior)
METHODS: dict[str, type[DiffusionModel]] = {each.method: each for each in CLASSES}

__all__ = ["DBAE", "DDAE", "DDIM", "METHODS", "AutoEncoder", "DiffAE", "DiffusionModel", "LatentPrior", "preset"]
