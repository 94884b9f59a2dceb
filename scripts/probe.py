"""Probes of a frozen model's codes: the common part of ``infer_class`` and ``infer_reg``."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import torch
from torch import Generator, Tensor

from datasets import ImageDataset, labelled_splits
from datasets.tolerant import Tolerant
from dbae import runtime
from dbae.config import UserError, option, require_positive
from dbae.io import atomic_write, fingerprint, to_float, write_tensors
from dbae.methods import AutoEncoder
from eval.arrays import Arrays, read_arrays
from eval.features import CachedFeatures, Encode, FeatureCache, encode_dataset, pca, reduced
from eval.probe import Part, Result, coverage, fit, fit_fractions, left_out, predict, summary
from eval.scores import json_safe
from scripts.cli import Parser
from scripts.common import ModelOptions, TrainedModel, load, parse, print_dry_run, result_folder
from scripts.encoding import array_encoder, encode_to_file, identity
from scripts.probe_figure import draw, score_of

# Kind of the targets -> folder of the official results, data set that is probed by default, mirrored training images
OFFICIAL = {
    "binary": ("multitask_ema", "celeba", True),
    "class": ("class_ema", "", True),
    "real": ("regression_ema", "lfw", False),
}
SCORES = {"binary": "ap", "class": "accuracy", "real": "r"}
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
    time: float | None = option(None, "time whose noise the images get for the features of a block")
    solver: str = option("adam", "the official protocol, the exact solution, or neighbours", ("adam", "exact", "knn"))
    epochs: int = option(15, "epochs of the official protocol")
    probe_batch_size: int | None = option(None, "its batch size (default: 128 to classify, 64 to regress)")
    probe_lr: float = option(1e-3, "its learning rate")
    label_fraction: tuple[float, ...] = option((), "also repeat with shares of the labels, such as 0.01,0.1")
    repeats: int = option(5, "random subsets per share of the labels")
    baseline: str | None = option(None, "results.json of another probe, to draw beside")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "probe_lr", "repeats", "probe_batch_size"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        if self.kind == "real" and self.solver == "knn":
            raise UserError("solver: expected adam or exact for regression, got knn")
        if (self.time is None) != (self.features in ("model", *BASELINES)):
            raise UserError("time: expected one with --features BLOCK, and only there")
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
        return OFFICIAL[self.kind][2] and self.solver == "adam"

    @property
    def folder(self) -> str:
        """The official folder of results; another one, named by the data, where that is not the official one."""
        name, official, _ = OFFICIAL[self.kind]
        suffix = "_" + os.path.basename(os.path.normpath(self.data.partition(":")[2] or self.data))
        name += suffix if self.data != official else ""
        return result_folder(self.model_path, "downstream_inference", name)


@dataclass(frozen=True)
class ClassificationOptions(RegressionOptions):
    """What to probe, and how."""

    kind: str = option("binary", "what the labels are: binary attributes, or one class of several", ("binary", "class"))


def model_features(
    trained: TrainedModel, weights: str, data: ImageDataset, name: str, flip: bool, options: RegressionOptions
) -> Arrays:
    """What the code is drawn from, or features of a block, read from a file that all processes encode their share of.

    ``weights`` is the checkpoint's fingerprint, ``name`` that of the split. Only the first process reads the file.
    """
    settings = identity(weights, data, len(data), flip)
    block = "" if options.features == "model" else options.features
    if block:
        settings |= {"features": block, "time": options.time}
    if block or not isinstance(trained.model, AutoEncoder):  # features of images with noise
        settings["seed"] = options.seed
    file = f"{name}{'_flip' * flip}_{FeatureCache('', settings).key}.npz"
    path = result_folder(options.model_path, "latents", file)
    how = (settings, options.batch_size, options.num_workers, f"encode {name}{' mirrored' * flip}")
    encode_to_file(path, array_encoder(trained, block, options.time), Tolerant(data), *how)
    return read_arrays(path)[0] if runtime.rank() == 0 else {}


def pixel_encoder(train: ImageDataset, length: int, options: RegressionOptions) -> Encode:
    """Pixels at 16x16, or as many pixels (up to a square) or their principal components as ``length``."""
    size = {"pixels": 16, "thumbnail": ceil(sqrt(length / 3)), "pca": 32}[options.features]

    def pixels(images: Tensor, index: Sequence[int]) -> dict[str, Tensor]:
        return {"z": reduced(to_float(images), size)}

    if options.features != "pca":
        return pixels
    rows = encode_dataset(pixels, train, options.batch_size, desc="read pixels")["z"]
    project = pca(rows, length, seed=options.seed)
    return lambda images, index: {"z": project(pixels(images, index)["z"])}


def read_baseline(options: RegressionOptions) -> dict[str, Any] | None:
    """The report to draw beside, if any. Raises UserError for a file that is none, or one with another score."""
    if not options.baseline:
        return None
    expected = "accuracy" if options.solver == "knn" else SCORES[options.kind]
    try:
        with open(options.baseline) as file:
            report = json.load(file)
        found = score_of(report)
    except (OSError, ValueError, TypeError, AttributeError, StopIteration):
        raise UserError(f"baseline: expected the results.json of a probe, got {options.baseline}") from None
    if found != expected:
        raise UserError(f"baseline: expected a probe scored by {expected}, {options.baseline} is by {found}")
    return report


def about_codes(layer: torch.nn.Linear, train: Part) -> dict[str, Any]:
    """What editing wants to know of a classifier's training codes: their spread, and the logits of real positives."""
    logits = torch.as_tensor(predict(layer, "train", train, 0))
    medians = [column[has > 0].nanmedian().item() for column, has in zip(logits.T, train.targets.T, strict=True)]
    return {"std": train.draw(0).std(dim=0).tolist(), "median_logit_of_positives": [json_safe(m) for m in medians]}


def write(
    result: Result,
    report: dict[str, Any],
    baseline: dict[str, Any] | None,
    train: Part,
    names: tuple[str, ...],
    options: RegressionOptions,
) -> str:
    """Write report, picture and, where there is one, layer. Returns the report's path.

    The official probe of the model's codes takes the official names, others carry theirs.
    """
    plain = (options.features, options.solver) == ("model", "adam")
    at = "" if options.time is None else f"@{options.time:g}"
    stem = os.path.join(options.folder, "{}" + ("" if plain else f"_{options.features}{at}_{options.solver}") + ".{}")
    files = {("results", "json"): json.dumps(report, indent=2) + "\n"}
    if result.layer is not None:
        write_tensors(stem.format("best", "pt"), result.best.state_dict())
        beside = {"attributes": list(names), "normalisation": "none: the layer takes the code as it is"}
        if options.kind == "binary":
            beside["codes"] = about_codes(result.best, train)
        files["best", "json"] = json.dumps(beside, indent=2) + "\n"
    best = report["best"] if "last" in report and "best" in report else {}
    lines: dict[str, Any] = summary(report) | {f"{name} of the best epoch": best[name] for name in ("r", "mse") if best}
    if missing := left_out(report):
        lines |= {"mean": coverage(report).strip(), "left out, with one value on test": ", ".join(missing)}
    if absent := report.get("absent", {}).get("test"):
        lines["classes without test images"] = ", ".join(absent)
    files["test", "txt"] = "".join(f"{name}: {value}\n" for name, value in lines.items())
    for name, text in files.items():
        with atomic_write(stem.format(*name), "w") as file:
            file.write(text)
    draw(stem.format("attributes", "png"), report, baseline)
    return stem.format("results", "json")


def describe(scores: dict[str, float]) -> str:
    """One line: ``r 0.7311  mse 0.0887``."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if name != "epoch")


def main(cls: type[RegressionOptions], doc: str, args: list[str] | None = None) -> None:
    """Parse, encode what is not cached, probe, write."""
    options, about, _ = parse(Parser(doc), cls, "probe", args)
    if options.dry_run:
        return print_dry_run(options, about, probe_data=options.data, output=options.folder)
    baseline = read_baseline(options)  # a wrong one ends before any work
    trained = TrainedModel.of(load(options, about, runtime.setup(options.device)), options)
    size = trained.model.config.image_size
    splits = labelled_splits(options.data, options.kind, size, options.data_root, options.data_dir, options.labels)
    if options.check:
        return None

    # Features: those of the model by all processes, of pixels by the first alone
    weights = fingerprint(options.model_path)
    example = trained.encode_arrays(torch.zeros(1, 3, size, size, dtype=torch.uint8), [0])
    pixels = options.features in BASELINES
    splits = {} if pixels and runtime.rank() else splits
    encode = pixel_encoder(splits["train"].dataset, example["z"].shape[1], options) if pixels and splits else None

    def code(arrays: dict[str, Tensor], generator: Generator) -> Tensor:
        noise = torch.randn(next(iter(arrays.values())).shape, generator=generator)
        return trained.model.code(arrays, noise if options.latent == "sample" else None)

    codes = {}
    for split, each in splits.items():
        orientations = [
            encode_dataset(encode, each.dataset, options.batch_size, flip, f"{options.features} of {split}")
            if encode
            else model_features(trained, weights, each.dataset, split, flip, options)
            for flip in ((False, True) if options.flips and split == "train" else (False,))
        ]
        codes[split] = CachedFeatures(*orientations, code=code, seed=options.seed)

    # Probe and report
    if runtime.rank() == 0:
        names = splits["train"].targets.names
        parts = {split: Part(codes[split].draw, each.targets.values) for split, each in splits.items()}
        how: dict[str, Any] = {"solver": options.solver, "device": trained.device}
        if options.solver == "adam":
            how |= {"epochs": options.epochs, "batch_size": options.probe_batch_size, "lr": options.probe_lr}
            how |= {
                "seed": options.seed,
                "progress": lambda entry: print(f"epoch {entry['epoch']:2d}  {describe(entry)}"),
            }
        result = fit(options.kind, parts, names, **how)
        report = {
            "checkpoint": options.model_path,
            "weights": weights,
            "data": options.data,
            "features": options.features,
            **({} if options.time is None else {"time": options.time}),
            "solver": options.solver,
            "latent_mode": options.latent if "mu" in example else "deterministic",
            **result.report,
        }
        if options.label_fraction:
            shares = (options.label_fraction, options.repeats, options.seed)
            report["label_fractions"] = fit_fractions(options.kind, parts, names, *shares, **how)
        path = write(result, report, baseline, parts["train"], names, options)
        print(f"{describe(summary(report))}{coverage(report)}", f"({path})")
    runtime.cleanup()
    return None
