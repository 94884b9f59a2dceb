"""What the linear probe takes: its options, and the cells, blocks at times, that they name of a model."""

import math
import os
from dataclasses import dataclass

import torch

from datasets.sets import DATASETS
from dbae.config import RuntimeConfig, UserError, check_numbers, option
from dbae.methods import AutoEncoder, DiffusionModel
from dbae.methods.ddae import EDMDDAE
from dbae.methods.ddae_config import EDM_STEPS, sigma_of_step
from eval.heads import PENALTIES
from scripts.common import check_time, result_folder
from scripts.options import ModelOptions

PROBES = ("auto", "official", "exact", "ridge", "adam")
CODE = "z"  # an autoencoder's code among the blocks


@dataclass(frozen=True)
class Cell:
    """A block whose features are probed, and the time whose noise the images get; a code has none."""

    block: str
    time: float | None = None


@dataclass(frozen=True)
class LinearOptions(ModelOptions, RuntimeConfig):
    """What to probe, and how."""

    probe_data: str = option("", "labelled data set (default: the model's own)")
    kind: str = option("auto", "what the labels are: a class, or binary attributes", ("auto", "class", "binary"))
    labels: str | None = option(None, "CSV of a folder of images (default: its labels.csv)")
    grid: bool = option(False, "all blocks at several times, in place of the configuration's block and time")
    blocks: tuple[str, ...] = option((), "these blocks alone; z is an autoencoder's code")
    times: tuple[float, ...] = option((), "these times: 1 to 1000 of DDPM, noise levels of EDM")
    edm_steps: tuple[int, ...] = option((), f"the same of EDM as steps of its {EDM_STEPS}-step grid, 1 to {EDM_STEPS}")
    probe: str = option(
        "auto",
        "official: new crops, flips and noise every epoch; on features computed once: exact (logistic regression), "
        "ridge (least squares, for a first look) or adam; auto: official, in a grid and for attributes exact",
        PROBES,
    )
    epochs: int = option(15, "epochs of official and adam")
    probe_batch_size: int = option(512, "their batch, of all processes (official: 128 on each of 4)")
    probe_lr: float = option(4e-3, "their learning rate (official: 1e-3 times 4 processes)")
    penalties: tuple[float, ...] = option(PENALTIES, "penalties of exact and ridge to choose from")
    draws: int = option(1, "features are averaged over so many draws of noise")
    flip: bool = option(False, "mirrored training images, too, where features are computed once")
    limit: int | None = option(None, "only N training images, a random choice of the seed")
    test_limit: int | None = option(None, "the same of validation and of test images")
    refit: bool = option(
        True, "fit the chosen head again on training and validation images together (never with a limit)"
    )
    baselines: bool = option(False, "also pixels, their principal components, and an untrained network")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ["epochs", "probe_batch_size", "probe_lr", "draws", "limit", "test_limit"])
        if not self.penalties or not all(0 < p < math.inf for p in self.penalties):
            raise UserError(f"penalties: expected numbers above 0, got {self.penalties}")
        if self.probe == "official" and self.targets == "binary":
            raise UserError("probe: expected exact, ridge or adam for binary attributes, official is for classes")
        if self.flip and self.how == "official":
            raise UserError("flip: expected with exact, ridge or adam, official always mirrors half of the images")
        for name in ("blocks", "times", "edm_steps"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"{name}: expected each once, got {', '.join(map(str, values))}")
        if self.times and self.edm_steps:
            raise UserError("times, edm_steps: expected one of them")

    @property
    def data(self) -> str:
        return self.probe_data or self.dataset

    @property
    def targets(self) -> str:
        """The kind of the labels: as asked, of sets of faces binary attributes, else classes."""
        if self.kind != "auto":
            return self.kind
        return "binary" if self.data in DATASETS and DATASETS[self.data].row else "class"

    @property
    def how(self) -> str:
        if self.probe != "auto":
            return self.probe
        return "exact" if self.grid or self.targets == "binary" else "official"

    @property
    def whole(self) -> tuple[str, ...]:
        """The splits that chosen heads are fitted on again; none where they are not, as with ``limit``."""
        return ("train", "valid") if self.refit and not self.limit else ()

    @property
    def folder(self) -> str:
        return result_folder(self.model_path, "linear", out=self.out)

    def stem(self, cells: list[Cell]) -> str:
        """Path of the results without their ending: of a grid, some cells or one, on which data, and how."""
        time = "" if cells[0].time is None else f"{cells[0].time:.4g}_"
        what = "grid" if self.grid else "cells" if len(cells) > 1 else f"{time}{cells[0].block}"
        name = os.path.basename(os.path.normpath(self.data.partition(":")[2] or self.data))
        other = f"{name}_" if self.data != self.dataset else ""
        labels = "binary_" if self.targets == "binary" else ""
        return os.path.join(self.folder, f"{other}{labels}{what}_{self.how}")


def cells_of(model: DiffusionModel, options: LinearOptions) -> list[Cell]:
    """What the options name, blocks from the deepest, and an autoencoder's code last.

    Raises UserError for a block that the model does not have and for a time out of range.
    """
    code = [CODE] if isinstance(model, AutoEncoder) else []
    known, own = model.block_names(), getattr(model, "FEATURES", (CODE, None))
    if not known and not code:
        raise UserError(f"blocks: expected some to probe, the network of {options.model_path} names none")
    blocks = list(options.blocks) or (known + code if options.grid else [own[0]])
    if unknown := [block for block in blocks if block not in known + code]:
        raise UserError(f"blocks: expected some of {', '.join(known + code)}, got {', '.join(unknown)}")
    noisy = [block for block in known if block in blocks]
    times = list(options.times)
    if options.edm_steps:
        if not isinstance(model, EDMDDAE):
            raise UserError("edm_steps: expected with a configuration of EDM, give --times")
        times = [check_time(model, sigma_of_step(step), "edm_steps") for step in options.edm_steps]
    if times and not noisy:
        raise UserError("times: expected with blocks of the network, its code has no noise")
    if noisy and not times:
        times = default_times(model) if options.grid or own[1] is None else [own[1]]
    cells = [Cell(block, check_time(model, time, "times")) for time in times for block in noisy]
    return cells + [Cell(block) for block in blocks if block in code]


def default_times(model: DiffusionModel) -> list[float]:
    """Times of a grid: the method's own, or those that have as much noise as the grid of EDM's DDAE."""
    if model.FEATURE_TIMES:
        return list(model.FEATURE_TIMES)
    levels = torch.tensor(EDMDDAE.FEATURE_TIMES, dtype=torch.float64)
    times = model.process.time_at(-levels.log()).tolist()
    return [int(time) if model.process.discrete else float(f"{time:.3g}") for time in times]


def time_name(model: DiffusionModel, time: float | None) -> str:
    """What official code calls a time: a step of EDM's grid where it is one; else the number, or nothing."""
    if time is None:
        return ""
    if isinstance(model, EDMDDAE):
        for step in range(1, EDM_STEPS + 1):
            if math.isclose(time, sigma_of_step(step), rel_tol=1e-3):
                return str(step)
    return f"{time:g}"


def time_axis(model: DiffusionModel) -> str:
    """What the times are, for tables and pictures."""
    return "step of EDM's grid (noise level)" if isinstance(model, EDMDDAE) else "time t"
