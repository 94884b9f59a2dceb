"""The maths of diffusion models: schedules, processes over them, preconditionings, time grids and samplers.

A model is a schedule, a process over it, a preconditioning and a network. This package imports torch alone.
"""

from dbae.diffusion.grids import GRIDS, index_grid, inverted, time_grid
from dbae.diffusion.precond import Epsilon, Identity, Karras, Preconditioning
from dbae.diffusion.process import Bridge, Diffusion, Process
from dbae.diffusion.sampling import DEFAULTS, SOLVERS, check_settings, integrate, nfe, sample, solver_updates
from dbae.diffusion.schedules import VE, VP, ConstantBeta, LinearBeta, Schedule
from dbae.diffusion.solvers import Update

__all__ = [
    "DEFAULTS", "GRIDS", "SOLVERS", "VE", "VP", "Bridge", "ConstantBeta", "Diffusion", "Epsilon", "Identity", "Karras",
    "LinearBeta", "Preconditioning", "Process", "Schedule", "Update",
    "check_settings", "index_grid", "integrate", "inverted", "nfe", "sample", "solver_updates", "time_grid",
]  # fmt: skip
