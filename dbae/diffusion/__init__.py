"""The maths: schedules, processes over them, preconditionings, time grids and solvers. Pure functions of tensors."""

from dbae.diffusion.grids import GRIDS, index_grid, log_snr, time_grid
from dbae.diffusion.precond import Epsilon, Identity, Karras, Preconditioning
from dbae.diffusion.process import Bridge, Diffusion, Process
from dbae.diffusion.schedules import VE, VP, ConstantBeta, LinearBeta, Schedule
from dbae.diffusion.solvers import DEFAULTS, SOLVERS, check_settings, nfe, sample

__all__ = [
    "DEFAULTS", "GRIDS", "SOLVERS", "VE", "VP", "Bridge", "ConstantBeta", "Diffusion", "Epsilon", "Identity", "Karras",
    "LinearBeta", "Preconditioning", "Process", "Schedule", "check_settings", "index_grid", "log_snr", "nfe", "sample",
    "time_grid",
]  # fmt: skip
