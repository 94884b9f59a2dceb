"""Linear probes of a frozen model: shared by dbae_infer_class and dbae_infer_reg, which differ by a row of TASKS."""

import json
import os
from typing import TYPE_CHECKING, Any

from dbae.config import UserError
from scripts.cli import Parser
from scripts.inputs import load, parse, print_dry_run, result_folder
from scripts.probe_options import TASKS, ProbeOptions, Task, output_folder, probe_data

if TYPE_CHECKING:
    import torch

    from datasets.labelled import Labelled
    from dbae.methods.dbae import DBAE
    from eval.latents import Codes
    from eval.probe import Part, Result

    Parts = dict[str, Part]


def model_codes(
    model: "DBAE", weights: str, data: "Labelled", split: str, flip: bool, options: ProbeOptions, device: "torch.device"
) -> "Codes | None":
    """Cached codes of a split, of both orientations with ``flip``; None on other processes than the first.

    Every process takes its share of the encoding. ``weights`` is the checkpoint's fingerprint.
    """
    from dbae import distributed
    from eval.arrays import read_arrays
    from eval.latents import Codes, Store
    from scripts.encoding import encode_to_file, identity, statistics

    paths = []
    for mirrored in (False, True) if flip else (False,):
        settings = identity(weights, data.dataset, len(data.dataset), mirrored)
        key = Store("", settings, 1).key
        path = result_folder(options.model_path, "latents", f"{split}{'_flip' * mirrored}_{key}.npz")
        encode_to_file(
            path, statistics(model), data.dataset, settings, device, options.batch_size, options.num_workers,
            desc=f"encode {split}{' mirrored' * mirrored}",
        )  # fmt: skip
        paths.append(path)
    if distributed.rank():
        return None
    return Codes(*(read_arrays(path)[0] for path in paths), sample=options.latent == "sample", seed=options.seed)


def baseline_codes(
    splits: dict[str, "Labelled"], features: str, latent_dim: int, flips: bool, options: ProbeOptions
) -> dict[str, "Codes"]:
    """Pixels at 16x16, or as many pixels or principal components of pixels as the model's code has numbers."""
    from math import ceil, sqrt

    from eval.baselines import pca, reduced
    from eval.latents import Codes, encode_dataset

    if features == "pca":
        pixels = encode_dataset(
            lambda x, index: {"z": reduced(x, 32)}, splits["train"].dataset, options.batch_size, desc="read pixels"
        )
        project = pca(pixels["z"], latent_dim, seed=options.seed)
    encode = {
        "pixels": lambda x, index: {"z": reduced(x, 16)},
        "thumbnail": lambda x, index: {"z": reduced(x, ceil(sqrt(latent_dim / 3)))},
        "pca": lambda x, index: {"z": project(reduced(x, 32))},
    }

    def codes(split: str) -> Codes:
        orientations = (False, True) if flips and split == "train" else (False,)
        data = splits[split].dataset
        return Codes(
            *(
                encode_dataset(encode[features], data, options.batch_size, flip=flip, desc=f"{features} of {split}")
                for flip in orientations
            )
        )

    return {split: codes(split) for split in splits}


def fit(parts: "Parts", names: tuple[str, ...], task: Task, options: ProbeOptions, device: "torch.device") -> "Result":
    """Probe the codes with the chosen solver."""
    from eval.exact import classify_exact, classify_neighbours, regress_exact
    from eval.probe import classify, regress

    settings = {
        "epochs": options.epochs,
        "batch_size": options.probe_batch_size or task.batch_size,
        "lr": options.probe_lr,
        "seed": options.seed,
    }
    if options.solver == "adam":
        protocol = {"classification": classify, "regression": regress}[task.name]
        return protocol(**parts, names=names, **settings, device=device, progress=print_epoch)
    if options.solver == "knn":
        return classify_neighbours(parts["train"], parts["test"], names, device=device)
    solve = {"classification": classify_exact, "regression": regress_exact}[task.name]
    return solve(**parts, names=names, device=device)


def print_epoch(entry: dict[str, float]) -> None:
    """One line per epoch."""
    print("  ".join(f"{name} {value:.4f}" if name != "epoch" else f"epoch {value:2d}" for name, value in entry.items()))


def with_fractions(
    result: "Result", parts: "Parts", names: tuple[str, ...], task: Task, options: ProbeOptions, device: "torch.device"
) -> dict[str, Any]:
    """The result's report, and what the same probe reads from shares of the labels."""
    from eval.probe import Part
    from eval.solvers import label_fractions

    if not options.fractions():
        return result.report
    train = parts["train"]

    def score(rows: Any) -> float:
        part = Part(lambda epoch: train.draw(epoch)[rows], train.targets[rows])
        return next(iter(summary(fit(parts | {"train": part}, names, task, options, device).report).values()))

    targets = train.targets if task.name == "classification" else None
    shares = label_fractions(score, len(train.targets), options.fractions(), options.repeats, options.seed, targets)
    return result.report | {"label_fractions": shares}


def summary(report: dict[str, Any]) -> dict[str, float]:
    """The headline scores: on test for classification, of the last epoch for regression."""
    scores = report["test"] if report["task"] == "classification" else report["last"]
    return {name: value for name, value in scores.items() if name != "epoch"}


def read_baseline(options: ProbeOptions, task: Task) -> dict[str, Any] | None:
    """The report to draw beside, if any. Raises UserError for a file that is none, or one with another score."""
    from scripts.probe_figure import score_of

    if not options.baseline:
        return None
    expected = "accuracy" if options.solver == "knn" else {"classification": "ap", "regression": "r"}[task.name]
    try:
        with open(options.baseline) as file:
            report = json.load(file)
        found = score_of(report)
    except (ValueError, TypeError, AttributeError, StopIteration):
        raise UserError(f"baseline: expected the results.json of a probe, got {options.baseline}") from None
    if found != expected:
        raise UserError(f"baseline: expected a probe scored by {expected}, {options.baseline} is by {found}")
    return report


def about_codes(result: "Result", train: "Part") -> dict[str, Any]:
    """What editing wants to know of a classifier's training codes: their spread, and the logits of real positives."""
    import torch

    from eval.probe import predict
    from eval.scores import json_safe

    logits = torch.as_tensor(predict(result.best, "train", train, 0))
    medians = [column[has > 0].nanmedian().item() for column, has in zip(logits.T, train.targets.T, strict=True)]
    return {"std": train.draw(0).std(dim=0).tolist(), "median_logit_of_positives": [json_safe(m) for m in medians]}


def write(
    folder: str,
    result: "Result",
    report: dict[str, Any],
    beside: dict[str, Any],
    options: ProbeOptions,
    baseline: dict[str, Any] | None,
) -> str:
    """Write the report, the picture and, where there is one, the layer and what stands ``beside`` it.

    Returns the report's path. The official probe of the model's codes takes the official names, others carry theirs.
    """
    from dbae.checkpoint import write_tensors
    from dbae.io import atomic_write
    from scripts.probe_figure import draw

    tag = "" if (options.features, options.solver) == ("model", "adam") else f"_{options.features}_{options.solver}"
    path = os.path.join(folder, f"results{tag}.json")
    with atomic_write(path, "w") as file:
        file.write(json.dumps(report, indent=2) + "\n")
    if result.layer is not None:
        write_tensors(os.path.join(folder, f"best{tag}.pt"), result.best.state_dict())
        with atomic_write(os.path.join(folder, f"best{tag}.json"), "w") as file:
            file.write(json.dumps(beside, indent=2) + "\n")
    with atomic_write(os.path.join(folder, f"test{tag}.txt"), "w") as file:
        best = report["best"] if report["task"] == "regression" and "best" in report else {}
        lines = summary(report) | {f"{name} of the best epoch": best[name] for name in ("r", "mse") if best}
        file.write("".join(f"{name}: {value}\n" for name, value in lines.items()))
    draw(os.path.join(folder, f"attributes{tag}.png"), report, baseline)
    return path


def main(task_name: str, doc: str) -> None:
    """Parse, encode what is not cached, probe, write."""
    task = TASKS[task_name]
    options, about, _ = parse(Parser(doc), ProbeOptions, "probe", None)
    folder, data_name = output_folder(options, task), probe_data(options, task)
    if options.solver == "knn" and task.name == "regression":
        raise UserError("solver: expected adam or exact for regression, got knn")
    if options.dry_run:
        return print_dry_run(options, about, probe_data=data_name, output=folder)

    baseline = read_baseline(options, task)

    from datasets.labelled import labelled_splits
    from dbae import distributed
    from dbae.checkpoint import fingerprint
    from eval.probe import Part

    device = distributed.setup(options.device)
    model = load(options, about, device)
    splits = labelled_splits(
        data_name, task.name, model.config.image_size, options.data_root, options.data_dir, options.labels
    )
    if options.check:
        return None
    weights = fingerprint(options.model_path)
    flips = task.flips and options.solver == "adam"
    if options.features == "model":
        codes = {
            split: model_codes(model, weights, data, split, flips and split == "train", options, device)
            for split, data in splits.items()
        }
    elif distributed.rank() == 0:
        codes = baseline_codes(splits, options.features, model.config.latent_dim, flips, options)
    if distributed.rank() == 0:
        names = splits["train"].names
        parts = {split: Part(codes[split].draw, data.values) for split, data in splits.items()}
        result = fit(parts, names, task, options, device)
        report = {
            "checkpoint": options.model_path,
            "weights": weights,
            "data": data_name,
            "features": options.features,
            "solver": options.solver,
            "latent_mode": options.latent if model.config.stochastic else "deterministic",
            **with_fractions(result, parts, names, task, options, device),
        }
        beside = {"attributes": list(names), "normalisation": "none: the layer takes the code as it is"}
        if task.name == "classification" and result.layer is not None:
            beside["codes"] = about_codes(result, parts["train"])
        path = write(folder, result, report, beside, options, baseline)
        print("  ".join(f"{name} {value:.4f}" for name, value in summary(report).items()), f"({path})")
    distributed.cleanup()
    return None
