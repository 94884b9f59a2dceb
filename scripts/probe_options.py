"""What a probe takes: the options of ``infer_class`` and ``infer_reg``."""

import os
from dataclasses import dataclass

from dbae.config import UserError, check_numbers, option
from scripts.common import result_folder
from scripts.options import ModelOptions

# Kind of the targets -> folder of the official results, data set that is probed by default, mirrored training images
OFFICIAL = {
    "binary": ("multitask_ema", "celeba", True),
    "class": ("class_ema", "", True),
    "real": ("regression_ema", "lfw", False),
}
BASELINES = (
    "pixels",
    "thumbnail",
    "pca",
)  # 16x16 pixels; pixels or principal components, as many as the code's numbers


@dataclass(frozen=True)
class RegressionOptions(ModelOptions):
    """What to probe, and how."""

    kind = "real"
    probe_data: str = option("", "labelled data set: celeba, celebahq, toyfaces, lfw or folder:PATH (default: by task)")
    labels: str | None = option(None, "CSV of a folder of images (default: its labels.csv)")
    features: str = option("model", "the model's code, a baseline (pixels, thumbnail, pca), or a block of its network")
    time: float | None = option(None, "features of a block: time (noise level) to which images are noised")
    solver: str = option(
        "adam",
        "adam: the official protocol; diffae: DiffAE's (normalised codes, shuffled, 300,000 samples in batches of 32); "
        "exact: the exact solution; knn: neighbours",
        ("adam", "diffae", "exact", "knn"),
    )
    epochs: int = option(15, "epochs of the official protocol")
    probe_batch_size: int | None = option(None, "its batch size (default: 128 to classify, 64 to regress)")
    probe_lr: float = option(1e-3, "its learning rate")
    label_fraction: tuple[float, ...] = option((), "also repeat with shares of the labels, such as 0.01,0.1")
    repeats: int = option(5, "random subsets per share of the labels")
    baseline: str | None = option(None, "results.json of another probe, to draw beside")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ["epochs", "probe_lr", "repeats", "probe_batch_size"])
        if self.kind == "real" and self.solver in ("diffae", "knn"):
            raise UserError(f"solver: expected adam or exact for regression, got {self.solver}")
        if (self.time is None) != (self.features in ("model", *BASELINES)):
            raise UserError("time: expected one with --features BLOCK, and only there")
        if self.probe_lr > 1e6:
            raise UserError(f"probe_lr: expected a number up to 1e6, got {self.probe_lr:g}")
        if self.label_fraction and self.repeats < 2:
            raise UserError(f"repeats: expected 2 or more with --label_fraction, got {self.repeats}")
        if not all(0 < share <= 1 for share in self.label_fraction):
            raise UserError(f"label_fraction: expected shares in (0, 1] like 0.01,0.1, got {self.label_fraction}")

    @property
    def data(self) -> str:
        """The labelled data set: as asked, the model's own where that has labels, else the official one."""
        own = self.dataset == "toyfaces" or self.dataset.startswith("folder:")
        return self.probe_data or (not own and OFFICIAL[self.kind][1]) or self.dataset

    @property
    def flips(self) -> bool:
        """Whether training sees mirrored images."""
        return OFFICIAL[self.kind][2] and self.solver in ("adam", "diffae")

    @property
    def folder(self) -> str:
        """The official folder of results; another one, named by the data, where that is not the official one."""
        name, official, _ = OFFICIAL[self.kind]
        suffix = "_" + os.path.basename(os.path.normpath(self.data.partition(":")[2] or self.data))
        name += suffix if self.data != official else ""
        return result_folder(self.model_path, "downstream_inference", name, out=self.out)

    def path(self, name: str) -> str:
        """Path of a result: the official probe of the model's codes takes the official names, others carry theirs."""
        plain = (self.features, self.solver) == ("model", "adam")
        at = "" if self.time is None else f"@{self.time:g}"
        stem, ending = os.path.splitext(name)
        return os.path.join(self.folder, stem + ("" if plain else f"_{self.features}{at}_{self.solver}") + ending)


@dataclass(frozen=True)
class ClassificationOptions(RegressionOptions):
    """What to probe, and how."""

    kind: str = option("binary", "what the labels are: binary attributes, or one class of several", ("binary", "class"))
