"""Linear probe of features: of a block at a time, or of all blocks at several noise levels (--grid).

examples:
  bash ddae/linear.sh DDPM_ddpm CKPT                      the official probe at the configuration's block and noise
  bash ddae/linear.sh DDPM_ddpm CKPT --grid --baselines   all blocks at t = 1, 11, 21, features computed once
  bash ddae/linear.sh EDM_ddpm CKPT --grid --probe official --edm_steps 3,4,5
  python -m scripts.linear --dataset toyfaces --model_path ckpt/toyfaces/det/ema_0.9999_016000.pt --grid

A cell of the grid is chosen on images held out from training; the official choice, on test, stands beside it. Writes
sample_STEP/linear/: a report (.json) and of a grid its picture (.png). Features that are computed once are kept in
sample_STEP/latents/. torchrun spreads the network's work over processes; an interrupted command goes on.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from datasets import Labelled, labelled_splits
from dbae import runtime
from dbae.io import fingerprint, with_command
from scripts import linear_baselines, linear_report
from scripts.cli import Parser, run
from scripts.common import load, parse, print_dry_run
from scripts.encoding import noise_settings
from scripts.labelled import drawn, read
from scripts.linear_cached import CachedProbe, Row
from scripts.linear_official import OfficialProbe, OnTheFly
from scripts.linear_options import Cell, LinearOptions, cells_of, time_axis, time_name
from scripts.results import check_report
from scripts.trained import TrainedModel

Splits = Mapping[str, Labelled]
Probe = CachedProbe | OfficialProbe


def settings_of(trained: TrainedModel, splits: Splits, cells: Sequence[Cell], options: LinearOptions) -> dict[str, Any]:
    """What a probe's results depend on: they stand in its report."""
    names = ["how", "targets", "draws", "flip", "limit", "test_limit", "refit", "baselines", "latent"]
    names += ["penalties"] if options.how in ("exact", "ridge") else ["epochs", "probe_batch_size", "probe_lr"]
    settings = {"weights": fingerprint(options.model_path), **noise_settings(trained, 0.0)}
    settings |= {"cells": [dataclasses.astuple(cell) for cell in cells], "precision": trained.model.precision}
    for split, each in splits.items():
        settings |= {f"{split} {name}": value for name, value in each.identity().items()}
    return settings | {name: getattr(options, name) for name in names}


def widths_of(trained: TrainedModel, cells: Sequence[Cell]) -> dict[str, int]:
    """How many features each block has, from one image."""
    size = trained.model.config.image_size
    x, found = torch.zeros(1, 3, size, size, device=trained.device), {}
    for cell in cells:
        if cell.time is not None and cell.block not in found:
            blocks = [each.block for each in cells if each.time == cell.time]
            found |= {name: z.shape[1] for name, z in trained.features(x, cell.time, blocks).items()}
    return found | {cell.block: trained.encode(x.byte()).shape[1] for cell in cells if cell.time is None}


def probe_of(
    trained: TrainedModel,
    fly: OnTheFly | None,
    splits: Splits,
    settings: Mapping[str, Any],
    options: LinearOptions,
    widths: Mapping[str, int],
    name: str = "",
) -> Probe:
    """What fits heads on the model's features; ``name`` is that of an untrained model, for its files."""
    if fly:
        return OfficialProbe(trained, fly, widths, options.whole, f"_{name}" if name else "")
    weights = {"weights": settings["weights"]}
    if name:
        config = dataclasses.asdict(trained.model.config)
        weights = {"weights": f"{name}, seed {options.seed}", "method": trained.model.method, "model": config}
    images = ("data", "size", "images", "digest of images")
    about = {split: weights | {each: settings[f"{split} {each}"] for each in images} for split in splits}
    return CachedProbe(trained, options, splits, about, f"{name}_" if name else "")


def probed(probe: Probe, cells: Sequence[Cell], refit: bool) -> tuple[dict[Cell, Row], dict[Cell, float]]:
    """Scores of all cells, and test scores of those fitted again: the best on validation, and the best on test.

    With a single official probe there is nothing to choose: it is fitted once, on all training images.
    """
    if len(cells) == 1 and refit and isinstance(probe, OfficialProbe):
        row = {"width": probe.widths[cells[0].block], "test": probe.refit(cells)[cells[0]]}
        return {cells[0]: row}, {}
    rows = probe.fit(cells)
    chosen = list(dict.fromkeys(linear_report.best(rows, split) for split in ("valid", "test"))) if refit else []
    return rows, probe.refit(chosen) if chosen else {}


def main(args: list[str] | None = None) -> None:
    """Parse, compute features, fit heads, choose, write."""
    options, about, _ = parse(Parser(__doc__), LinearOptions, "linear probe", args)
    if options.dry_run:
        return print_dry_run(options, about, probe_data=options.data, how=options.how, output=options.folder)
    trained = TrainedModel.of(load(options, about, runtime.setup(options.device)), options)
    cells = cells_of(trained.model, options)
    size, kind, stem = trained.model.config.image_size, options.targets, options.stem(cells)
    splits = labelled_splits(options.data, kind, size, options.data_root, options.data_dir, options.labels)
    limits = {"train": options.limit, "valid": options.test_limit, "test": options.test_limit}
    splits = {split: drawn(each, limits[split], options.seed) for split, each in splits.items()}

    def begin() -> dict[str, Any]:
        settings = with_command(settings_of(trained, splits, cells, options))
        inputs = chain([options.model_path], *(each.files() for each in splits.values()))
        check_report(f"{stem}.json", [f"{stem}.png"], settings, inputs, "a linear probe", options.overwrite)
        return settings

    settings = runtime.on_first(begin)
    if options.check:
        return None

    # Features, or images to compute them of: by all processes
    widths, refit, official = widths_of(trained, cells), bool(options.whole), options.how == "official"
    fly = None
    if official:
        data = {split: read([each], trained.device, options.num_workers) for split, each in splits.items()}
        fly = OnTheFly(options, trained.device, data, len(splits["train"].targets.names), stem, settings)
    models = {"": trained}
    if options.baselines:
        models["untrained"] = trained.untrained(options.seed)
    probes = {name: probe_of(m, fly, splits, settings, options, widths, name) for name, m in models.items()}
    if not official:
        for probe in probes.values():
            probe.encode(cells)

    # Heads: the official recipe is followed by all processes, what is solved is by the first
    names = {cell.time: time_name(trained.model, cell.time) for cell in cells}
    if official or runtime.rank() == 0:
        found = {name: linear_report.results(names, *probed(probe, cells, refit)) for name, probe in probes.items()}
        results = found[""]
        chosen = results.get("selected_on_valid", results["cells"][0])
        if options.baselines:
            dim = next(row["width"] for row in results["cells"] if row["key"] == chosen["key"])
            results["baselines"] = {
                **(
                    linear_baselines.of_drawn_pixels(fly, dim, options.whole, len(cells) == 1)
                    if fly
                    else linear_baselines.of_cached_pixels(splits, dim, refit, options, trained.device)
                ),
                "untrained": linear_report.baseline(found["untrained"]),
                "chance": linear_baselines.of_chance(splits),
            }
    if runtime.rank() == 0:
        report = {
            "checkpoint": options.model_path,
            "weights": settings["weights"],
            "made_from": settings,
            "data": options.data,
            "kind": kind,
            "score": linear_report.SCORES[kind],
            "probe": options.how,
            "images": {split: len(each.dataset) for split, each in splits.items()},
            "time_axis": time_axis(trained.model),
            "time_names": {f"{time:g}": name for time, name in names.items() if time is not None},
            "protocol": linear_report.protocol(options, len(cells)),
            **results,
        }
        linear_report.write(stem, report)
        print(linear_report.table(report), f"({stem}.json)", sep="\n")
    return runtime.cleanup()


if __name__ == "__main__":
    run(main)
