"""What a probe is asked for: the two tasks as table rows, and the options of their programs."""

import os
from dataclasses import dataclass

from dbae.config import UserError, option, require_positive
from scripts.inputs import ModelInputs, result_folder


@dataclass(frozen=True)
class Task:
    """What is particular to a kind of probe."""

    name: str  # of the task in datasets.labelled
    folder: str  # of the official results, under downstream_inference
    data: str  # probed on by default
    batch_size: int
    flips: bool  # whether training sees mirrored images


TASKS = {
    "classification": Task("classification", "multitask_ema", "celeba", 128, True),
    "regression": Task("regression", "regression_ema", "lfw", 64, False),
}


# The code; 16x16 pixels; and as long as the code: pixels of a thumbnail (rounded up to a square), principal components
FEATURES = ("model", "pixels", "thumbnail", "pca")


@dataclass(frozen=True)
class ProbeOptions(ModelInputs):
    """What to probe, and how."""

    probe_data: str = option("", "labelled data set: celeba, celebahq, toyfaces, lfw or folder:PATH (default: by task)")
    labels: str | None = option(None, "CSV of a folder of images (default: its labels.csv)")
    features: str = option("model", "what is probed: the code, or a baseline", FEATURES)
    solver: str = option("adam", "the official protocol, the exact solution, or neighbours", ("adam", "exact", "knn"))
    epochs: int = option(15, "epochs of the official protocol")
    probe_batch_size: int | None = option(None, "its batch size (default: 128 to classify, 64 to regress)")
    probe_lr: float = option(1e-3, "its learning rate")
    label_fraction: str = option("", "also repeat with shares of the labels, such as 0.01,0.1")
    repeats: int = option(5, "random subsets per share of the labels")
    baseline: str | None = option(None, "results.json of another probe, to draw beside")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "probe_lr", "repeats"):
            require_positive(name, getattr(self, name))
        if self.probe_batch_size is not None:
            require_positive("probe_batch_size", self.probe_batch_size)
        if self.baseline and not os.path.exists(self.baseline):
            raise UserError(f"baseline: no such file: {self.baseline}")
        self.fractions()

    def fractions(self) -> tuple[float, ...]:
        """Shares of the labels in (0, 1]."""
        try:
            shares = tuple(float(part) for part in self.label_fraction.split(",") if part)
        except ValueError:
            shares = (0.0,)
        if not all(0 < share <= 1 for share in shares):
            raise UserError(f"label_fraction: expected shares in (0, 1] like 0.01,0.1, got {self.label_fraction!r}")
        return shares


def probe_data(options: ProbeOptions, task: Task) -> str:
    """The labelled data set: as asked, the model's own where that has labels, else the task's."""
    if options.probe_data:
        return options.probe_data
    own = options.dataset == "toyfaces" or options.dataset.startswith("folder:")
    return options.dataset if own else task.data


def output_folder(options: ProbeOptions, task: Task) -> str:
    """The official folder; another one, named by the data, where it is not the task's default."""
    data = probe_data(options, task)
    suffix = "" if data == task.data else "_" + os.path.basename(os.path.normpath(data.partition(":")[2] or data))
    return result_folder(options.model_path, "downstream_inference", task.folder + suffix)
