"""Diffusion autoencoders: DBAE, and what its siblings share with it."""

from dbae.checkpoint import load_model
from dbae.config import SampleConfig, TrainConfig, UserError
from dbae.methods import DBAE, DDAE, METHODS, DiffAE, LatentPrior

__all__ = ["DBAE", "DDAE", "METHODS", "DiffAE", "LatentPrior", "SampleConfig", "TrainConfig", "UserError", "load_model"]
