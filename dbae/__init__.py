"""Diffusion autoencoders: DBAE, and what its siblings share with it."""

from dbae.checkpoint import load_model
from dbae.config import SampleConfig, TrainConfig, UserError
from dbae.methods import DBAE, METHODS, DiffAE, LatentPrior

__all__ = ["DBAE", "METHODS", "DiffAE", "LatentPrior", "SampleConfig", "TrainConfig", "UserError", "load_model"]
