"""Measure disentanglement: how attributes, and factors of variation where they are known, lie in the numbers of a code.

examples:
  bash disentangle_dbae.sh toyfaces vp RUN/ema_0.9999_001000.pt true --baselines
  bash disentangle_dbae.sh celeba vp CKPT true --limit 10000           TAD and ATTRS alone
  bash disentangle_dbae.sh sprites vp CKPT false --stages 10           a faster DCI

Attributes give TAD and ATTRS by two published protocols; factors, which toyfaces and sprites have, give DCI, MIG, SAP
and the FactorVAE score: docs/disentanglement.md. Writes sample_STEP/disentanglement_DATASET.json. Codes are computed
once and kept in sample_STEP/latents/. It works for the models of every method.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.base import ImageDataset
from datasets.labels import Factors, Targets
from dbae import runtime
from dbae.config import UserError, option, require_positive
from dbae.io import fingerprint, to_float, with_command, write_json
from dbae.progress import progress_bar
from eval.arrays import Arrays, read_arrays
from eval.factors import STAGES, factor_scores
from eval.features import CachedFeatures, encode_dataset, pca, reduced
from eval.representation import BATCH, tad_by_batches, tad_by_folds
from scripts.cli import Parser, run
from scripts.common import build_data, load, parse, print_dry_run, result_folder
from scripts.encoding import array_encoder, drawn_code, noise_settings, write_features
from scripts.options import DataOptions
from scripts.results import check_report
from scripts.tables import markdown
from scripts.trained import TrainedModel

PIXELS = 32  # height and width of what principal components are taken of
COLUMNS = {  # of the printed table -> where a row has it
    "TAD 1k": ("attributes", "batches", "tad"),
    "ATTRS 1k": ("attributes", "batches", "attrs"),
    "TAD 5-fold": ("attributes", "folds", "tad"),
    "ATTRS 5-fold": ("attributes", "folds", "attrs"),
    "D": ("factors", "disentanglement"),
    "C": ("factors", "completeness"),
    "I": ("factors", "informativeness"),
    "MIG": ("factors", "mig"),
    "SAP": ("factors", "sap"),
    "FactorVAE": ("factors", "factor_vae"),
}


@dataclass(frozen=True)
class DisentangleOptions(DataOptions):
    """Whose codes, of which images, and what beside them."""

    latent: str = option("mean", "code of a stochastic encoder", ("mean", "sample"))
    limit: int | None = option(15_000, "only the first N images")
    stages: int = option(STAGES, "stages of DCI's gradient boosting; fewer are faster and give other scores")
    baselines: bool = option(False, "also measure an untrained encoder, principal components, and the truth itself")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("stages", self.stages)

    @property
    def path(self) -> str:
        """Path of the report."""
        name = os.path.basename(os.path.normpath(self.dataset.partition(":")[2] or self.dataset))
        return os.path.join(result_folder(self.model_path, out=self.out), f"disentanglement_{name}.json")


def known(data: ImageDataset) -> tuple[Targets | None, Factors | None]:
    """What is known of the images: attributes and factors. Raises UserError for neither, and for too few images."""
    attributes = data.targets("binary") if data.has_labels and "binary" in data.kinds else None
    factors = data.factors
    if attributes is None and factors is None:
        raise UserError(f"{data.title}: expected binary attributes or known factors, there are neither")
    if attributes and len(data) < BATCH:
        raise UserError(f"limit: expected {BATCH} images or more for TAD, got {len(data)}")
    return attributes, factors


def settings_of(trained: TrainedModel, data: ImageDataset, options: DisentangleOptions) -> dict[str, Any]:
    """All that the report depends on; another report is refused unless it is to be overwritten."""
    settings = {"weights": fingerprint(options.model_path), **data.identity(), **noise_settings(trained, None)}
    if data.has_labels:
        settings["labels"] = data.labels_digest("binary")
    settings |= {name: getattr(options, name) for name in ("split", "latent", "seed", "stages", "baselines")}
    check_report(options.path, [], settings, [options.model_path], "measures", options.overwrite)
    return settings


def drawn(trained: TrainedModel, arrays: Arrays) -> np.ndarray:
    """Codes [n, d] from what the encoder gave."""
    return CachedFeatures(arrays, code=drawn_code(trained), seed=trained.seed).draw(0).numpy()


def untrained(trained: TrainedModel, data: ImageDataset, options: DisentangleOptions) -> np.ndarray:
    """Codes of the same networks as they are before training."""
    fresh = trained.untrained(options.seed)
    return drawn(fresh, encode_dataset(array_encoder(fresh), data, options.batch_size, desc="untrained encoder"))


def components(data: ImageDataset, dim: int, options: DisentangleOptions) -> np.ndarray:
    """The ``dim`` principal components of the images, at most 32 pixels high."""

    def pixels(images: Tensor, index: Any) -> dict[str, Tensor]:
        return {"z": reduced(to_float(images), PIXELS)}

    rows = encode_dataset(pixels, data, options.batch_size, desc="read pixels")["z"]
    return pca(rows, dim, seed=options.seed)(torch.from_numpy(rows)).numpy()


def measure(
    name: str,
    codes: Mapping[str, np.ndarray],
    truth: tuple[Targets | None, Factors | None],
    options: DisentangleOptions,
) -> dict[str, Any]:
    """All scores that the data allow, of the codes that are compared with attributes and with factors."""
    attributes, factors = truth
    report: dict[str, Any] = {}
    if attributes:
        z, y = codes["attributes"], attributes.values.numpy()
        batches = tad_by_batches(y, z, attributes.names, options.seed)
        folds = tad_by_folds(y, z, attributes.names)
        report["attributes"] = {"dimensions": z.shape[1], "batches": batches, "folds": folds}
    if factors:
        z, y = codes["factors"], factors.values
        with progress_bar(2 * y.shape[1] + 2, "part", name) as bar:
            scores = factor_scores(z, y, options.stages, options.seed, lambda: bar.update())
        scores["accuracy"] = dict(zip(factors.names, scores["accuracy"], strict=True))
        report["factors"] = {"dimensions": z.shape[1], **scores}
    return report


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as a Markdown table, of the columns that there are."""
    kinds = next(iter(rows.values()))
    columns = {title: path for title, path in COLUMNS.items() if path[0] in kinds}
    lines = []
    for name, row in rows.items():
        dimensions = dict.fromkeys(str(row[kind]["dimensions"]) for kind in kinds)
        lines.append([name, " / ".join(dimensions), *(_cell(row, path) for path in columns.values())])
    return markdown(("codes", "dimensions", *columns), lines)


def _cell(row: Any, path: tuple[str, ...]) -> str:
    for name in path:
        row = row[name]
    if isinstance(row, float):
        return f"{row:.3f}"
    return f"{row['mean']:.3g}" + ("" if row["std"] is None else f" ± {row['std']:.2g}")


def main(args: list[str] | None = None) -> None:
    """Parse, encode what is not cached, measure, write."""
    options, about, _ = parse(Parser(__doc__), DisentangleOptions, "disentanglement", args)
    if options.dry_run:
        return print_dry_run(options, about, output=options.path)
    trained = TrainedModel.of(load(options, about, runtime.setup(options.device)), options)
    data = build_data(options, trained.model.config.image_size, whole=True)
    truth = known(data)
    settings = runtime.on_first(lambda: settings_of(trained, data, options))
    if options.check:
        return None

    whose = {"weights": settings["weights"], **data.identity()}
    path = write_features(trained, options, whose, data, options.split)
    if runtime.rank() == 0:
        arrays = read_arrays(path)[0]
        z = drawn(trained, arrays)
        codes: dict[str, Any] = {"model": dict.fromkeys(("attributes", "factors"), z)}
        if options.baselines:
            attributes, factors = truth
            codes["untrained encoder"] = dict.fromkeys(codes["model"], untrained(trained, data, options))
            codes["PCA"] = dict.fromkeys(codes["model"], components(data, z.shape[1], options))
            codes["truth"] = {
                "attributes": attributes and attributes.values.numpy(),
                "factors": factors and factors.values.astype(np.float64),
            }
        rows = {name: measure(name, each, truth, options) for name, each in codes.items()}
        report = {"checkpoint": options.model_path, "data": options.dataset, "made_from": with_command(settings)}
        report["rows"] = rows
        if "log_sigma" in arrays:  # whether the noise of a code drowns what it says
            spread = np.exp(arrays["log_sigma"]).mean() / arrays["mu"].std(axis=0).mean()
            report["mean sigma over mean std of mu"] = float(spread)
        write_json(options.path, report)
        print(f"{table(rows)}({options.path}: {len(data)} images of {data.title}, {options.split})")
    return runtime.cleanup()


if __name__ == "__main__":
    run(main)
