"""Diffusion autoencoders: DBAE, and what its siblings share with it."""

from dbae.checkpoint import load_model
from dbae.config import SampleConfig, TrainConfig, UserError
from dbae.methods import DBAE, METHODS

__all__ = ["DBAE", "METHODS", "SampleConfig", "TrainConfig", "UserError", "load_model"]
