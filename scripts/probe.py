"""Probes of a frozen model's codes: the common part of ``infer_class`` and ``infer_reg``."""

import json
from collections.abc import Sequence
from itertools import chain
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor

from datasets import ImageDataset, Labelled, labelled_splits
from dbae import runtime
from dbae.config import UserError
from dbae.io import atomic_write, fingerprint, to_float, with_command
from dbae.tensors import write_tensors
from eval.features import CachedFeatures, Encode, encode_dataset, pca, reduced
from eval.probe import Part, Result, coverage, fit, fit_fractions, left_out, predict, standard_errors, summary
from eval.scores import json_safe
from scripts.cli import Parser
from scripts.common import check_time, load, parse, print_dry_run
from scripts.encoding import drawn_code, noise_settings, read_features, write_features
from scripts.probe_figure import draw, score_of
from scripts.probe_options import BASELINES, RegressionOptions
from scripts.results import check_report
from scripts.trained import TrainedModel

FEW_STEPS = 500  # of Adam, after which a layer on codes is still nearer to its random start than to the optimum
SCORES = {"binary": "ap", "class": "accuracy", "real": "r"}
WRITTEN = ("results.json", "best.pt", "best.json", "test.txt", "attributes.png")


def settings_of(trained: TrainedModel, splits: dict[str, Labelled], options: RegressionOptions) -> dict[str, Any]:
    """What a probe's results depend on: they stand in its results.json."""
    names = ["features", "time", "solver", "label_fraction", "repeats", "latent", "seed"]
    if options.solver == "adam":
        names += ["epochs", "probe_batch_size", "probe_lr"]
    settings = {"weights": fingerprint(options.model_path)} | noise_settings(trained, options.time)
    for split, each in splits.items():
        settings |= {f"{split} {name}": value for name, value in each.identity().items()}
    return settings | {name: getattr(options, name) for name in names}


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
    if (found, report.get("data")) != (expected, options.data):
        got = f"{options.baseline} is one of {report.get('data')} by {found}"
        raise UserError(f"baseline: expected a probe of {options.data} scored by {expected}, {got}")
    return report


def about_codes(layer: torch.nn.Linear, train: Part) -> dict[str, Any]:
    """What editing wants to know of a classifier's training codes: spread, and the median logits of both sides."""
    logits = torch.as_tensor(predict(layer, "train", train, 0))
    about: dict[str, Any] = {"std": train.draw(0).std(dim=0).tolist()}
    for side, has in (("positives", train.targets > 0), ("negatives", train.targets <= 0)):
        medians = [column[rows].nanmedian().item() for column, rows in zip(logits.T, has.T, strict=True)]
        about[f"median_logit_of_{side}"] = [json_safe(median) for median in medians]
    return about


def write(
    result: Result,
    report: dict[str, Any],
    baseline: dict[str, Any] | None,
    train: Part,
    names: tuple[str, ...],
    options: RegressionOptions,
) -> str:
    """Write report, picture and, where there is one, layer. Returns the report's path."""
    files = {"results.json": json.dumps(report, indent=2) + "\n"}
    if result.layer is not None:
        layer = write_tensors(options.path("best.pt"), result.best.state_dict())
        beside = {"attributes": list(names), "normalisation": "none: the layer takes the code as it is"}
        beside |= {"weights": report["weights"], "layer": layer}
        if options.kind == "binary":
            beside["codes"] = about_codes(result.best, train)
        files["best.json"] = json.dumps(beside, indent=2) + "\n"
    best = report["best"] if "last" in report and "best" in report else {}
    lines: dict[str, Any] = summary(report) | {f"{name} of the best epoch": best[name] for name in ("r", "mse") if best}
    if missing := left_out(report):
        lines |= {"mean": coverage(report).strip(), "left out, with one value on test": ", ".join(missing)}
    if absent := report.get("absent", {}).get("test"):
        lines["classes without test images"] = ", ".join(absent)
    files["test.txt"] = "".join(f"{name}: {value}\n" for name, value in lines.items())
    for name, text in files.items():
        with atomic_write(options.path(name), "w") as file:
            file.write(text)
    draw(options.path("attributes.png"), report, baseline)
    return options.path("results.json")


def describe(scores: dict[str, float], errors: dict[str, float]) -> str:
    """One line: ``r 0.7311 ± 0.0031  mse 0.0887``, standard errors where they are known."""
    known = {name: f" ± {error:.2g}" for name, error in errors.items()}
    return "  ".join(f"{name} {value:.4f}{known.get(name, '')}" for name, value in scores.items() if name != "epoch")


def main(cls: type[RegressionOptions], doc: str, args: list[str] | None = None) -> None:
    """Parse, encode what is not cached, probe, write."""
    options, about, _ = parse(Parser(doc), cls, "probe", args)
    if options.dry_run:
        return print_dry_run(options, about, probe_data=options.data, output=options.folder)
    baseline = read_baseline(options)  # a wrong one ends before any work
    trained = TrainedModel.of(load(options, about, runtime.setup(options.device)), options)
    if options.time is not None:  # features of a block, at that time
        check_time(trained.model, options.time)
        trained.model.check_blocks([options.features])
    size = trained.model.config.image_size
    splits = labelled_splits(options.data, options.kind, size, options.data_root, options.data_dir, options.labels)

    def begin() -> dict[str, Any]:
        settings = settings_of(trained, splits, options)
        inputs = [options.model_path, *filter(None, [options.baseline])]
        inputs += chain.from_iterable(each.files() for each in splits.values())
        report, *others = map(options.path, WRITTEN)
        check_report(report, others, settings, inputs, "a probe", options.overwrite)
        return settings

    settings = runtime.on_first(begin)
    if options.check:
        return None

    # Features: those of the model by all processes, of pixels by the first alone
    example = trained.encode_arrays(torch.zeros(1, 3, size, size, dtype=torch.uint8), [0])
    pixels = options.features in BASELINES
    splits = {} if pixels and runtime.rank() else splits
    encode = pixel_encoder(splits["train"].dataset, example["z"].shape[1], options) if pixels and splits else None

    block = "" if options.features == "model" else options.features
    codes = {}
    for split, each in splits.items():
        about = {name: settings[f"{split} {name}"] for name in ("data", "size", "images", "digest of images")}
        about["weights"] = settings["weights"]
        orientations = [
            encode_dataset(encode, each.dataset, options.batch_size, flip, f"{options.features} of {split}")
            if encode
            else read_features(write_features(trained, options, about, each.dataset, split, flip, block, options.time))
            for flip in ((False, True) if options.flips and split == "train" else (False,))
        ]
        codes[split] = CachedFeatures(*orientations, code=drawn_code(trained), seed=options.seed)

    # Probe and report
    if runtime.rank() == 0:
        names = splits["train"].targets.names
        parts = {split: Part(codes[split].draw, each.targets.values) for split, each in splits.items()}
        how: dict[str, Any] = {"solver": options.solver, "device": trained.device}
        how |= {"seed": options.seed} if options.solver in ("adam", "diffae") else {}
        if options.solver == "adam":
            how |= {"epochs": options.epochs, "batch_size": options.probe_batch_size, "lr": options.probe_lr}
            how["progress"] = lambda entry: print(f"epoch {entry['epoch']:2d}  {describe(entry, {})}")
        result = fit(options.kind, parts, names, **how)
        report = {
            "checkpoint": options.model_path,
            "weights": settings["weights"],
            "made_from": with_command(settings),
            "data": options.data,
            "features": options.features,
            **({} if options.time is None else {"time": options.time}),
            "solver": options.solver,
            "latent_mode": options.latent if "mu" in example else "deterministic",
            **result.report,
        }
        if result.layer is not None:
            report["standard_errors"] = standard_errors(options.kind, parts["test"], names, result.layer)
        path = write(result, report, baseline, parts["train"], names, options)
        if options.label_fraction:
            shares = (options.label_fraction, options.repeats, options.seed)
            report["label_fractions"] = fit_fractions(options.kind, parts, names, *shares, **how)
            write(result, report, baseline, parts["train"], names, options)
        print(f"{describe(summary(report), report.get('standard_errors', {}))}{coverage(report)}", f"({path})")
        if options.solver == "adam":
            used = report["settings"]
            steps = used["epochs"] * ceil(len(parts["train"].targets) / used["batch_size"])
            if steps < FEW_STEPS:
                print(f"note: {steps} steps of Adam are too few to converge; --solver exact gives the optimum")
    return runtime.cleanup()
