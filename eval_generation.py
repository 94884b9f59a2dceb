"""Measures of generated images: Frechet and kernel distance, precision, recall, density and coverage.

example:
  python3 eval_generation.py --sample_path DIR --dataset toyfaces --features lite0 --weights FILE

A line says what each number depends on; DIR/generation.json (NAME.generation.json for an .npz) keeps it, with those of
earlier runs. docs/generation.md has the files of the networks, and how to read the numbers.
"""

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets import ImageDataset
from dbae import runtime
from dbae.config import UserError, option, require_positive
from dbae.io import read_json, write_json
from eval.generation import frechet_at_half, frechet_distance, kernel_distance, precision_recall
from eval.networks import load_network
from scripts.cli import options_of, run
from scripts.measures import FLIPS, ComparisonOptions, features_of, first, open_reals, open_samples

METRICS = ("FD", "KID", "PR")
FLOORS = ("none", "halves", "train", "valid", "test")
ENOUGH = 10_000  # images from which on the bias of a Frechet distance is customarily ignored


@dataclass(frozen=True)
class MeasureOptions(ComparisonOptions):
    """What is measured, and how."""

    metrics: tuple[str, ...] = option(METRICS, "some of FD (FID with inception), KID, and PR: precision, recall, ...")
    k: int = option(3, "precision and recall: each ball reaches to the k-th nearest neighbour")
    flip: str = option("none", "real images as they are, or each mirrored or not at random (DiffAE's FID)", FLIPS)
    floor: str = option(
        "none", "also real against real: halves of the real images, or those of this split as samples", FLOORS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("k", self.k)
        if unknown := set(self.metrics) - set(METRICS):
            raise UserError(f"metrics: expected some of {', '.join(METRICS)}, got {', '.join(sorted(unknown))}")
        if self.real and self.floor not in ("none", "halves"):
            raise UserError(f"floor: expected none or halves with --real, which has no splits, got {self.floor}")


def measure(options: MeasureOptions, real: np.ndarray, fake: np.ndarray, device: Any) -> dict[str, float]:
    """Numbers by name. Frechet distances of few images come with what they are at half as many, and extrapolated."""
    found = {}
    name = "FID" if options.features == "inception" else "FD"
    if "FD" in options.metrics:
        found[name] = frechet_distance(fake, real)
        if 4 <= min(len(fake), len(real)) < ENOUGH:
            found[f"{name}_at_half"] = half = frechet_at_half(fake, real, options.seed)
            found[f"{name}_extrapolated"] = 2 * found[name] - half
    if "KID" in options.metrics:
        kid = kernel_distance(fake, real, seed=options.seed)
        found |= {"KID": kid.mean, "KID_std": kid.std, "KID_subsets": kid.subsets, "KID_size": kid.size}
    if "PR" in options.metrics:
        found |= precision_recall(real, fake, options.k, device)
    return found


def line(settings: dict[str, Any], found: dict[str, float]) -> str:
    """One line with the numbers and all that they depend on."""
    network, parts = settings["network"], []
    for name, value in found.items():
        if "_" in name:  # part of another's text
            continue
        text = f"{name}({network['name']}) {value:.4g}" if name in ("FD", "FID", "KID") else f"{name} {value:.3f}"
        if f"{name}_at_half" in found:
            half, limit = found[f"{name}_at_half"], found[f"{name}_extrapolated"]
            text += f" (at N/2 {half:.4g}, extrapolated {limit:.4g})"
        if name == "KID":
            text += f" ± {found['KID_std']:.2g} ({found['KID_subsets']} x {found['KID_size']})"
        parts.append(text)
    size = network["input_size"]
    about = [
        f"{network['name']} ({network['resizing']}{f' {size}' if size else ''})",
        f"{settings['samples']['images']} {settings['samples']['what']}",
        f"against {settings['reals']['images']} {settings['reals']['what']}, {settings['samples']['size']} px",
        f"flip {settings['flip']}",
        f"k {settings['k']}",
        f"seed {settings['seed']}",
    ]
    return "  ".join(parts) + "  | " + ", ".join(about)


def report_path(sample_path: str) -> str:
    """File of the measures: in the folder of the samples, or beside their .npz."""
    if sample_path.endswith(".npz"):
        return f"{sample_path.removesuffix('.npz')}.generation.json"
    return os.path.join(sample_path, "generation.json")


def add(path: str, rows: list[dict[str, Any]]) -> None:
    """Put rows of settings and numbers into a file: in place of those of equal settings, beside all others."""
    earlier = entries(path)
    settings = [row["settings"] for row in json.loads(json.dumps(rows))]
    kept = [row for row in earlier if row["settings"] not in settings]
    write_json(path, {"measures": kept + rows})


def entries(path: str) -> list[dict[str, Any]]:
    """The rows so far. Raises UserError where the file is none of ours."""
    rows = read_json(path).get("measures") if os.path.exists(path) else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "settings" in row for row in rows):
        raise UserError(f"{path}: expected the measures that this program writes; move it away")
    return rows


def main(args: list[str] | None = None) -> None:
    """Read, encode what is not cached, measure, write."""
    options = options_of(__doc__, "measures", MeasureOptions, args)

    # Everything that can be wrong
    device = runtime.setup(options.device)
    samples = open_samples(options.sample_path, options.num)
    reals = first(open_reals(options, samples.size), options.num_real)
    least = max(2, options.k + 1 if "PR" in options.metrics else 0) * (2 if options.floor == "halves" else 1)
    for data in (samples, reals):
        if len(data) < least:
            raise UserError(f"{data.title}: expected {least} images or more for these measures, there are {len(data)}")
    held_out = open_reals(options, samples.size, options.floor) if options.floor in FLOORS[2:] else None
    if held_out:  # sets with one part have the same images in several splits
        held_out, names = first(held_out, min(len(held_out), len(samples))), set(map(reals.name_of, range(len(reals))))
        if any(held_out.name_of(i) in names for i in range(len(held_out))):
            raise UserError(f"floor: expected other images than the real ones, which are of {options.split}")
    path = report_path(options.sample_path)
    entries(path)
    network = load_network(options.features, options.weights, device, options.resizing)

    kind = f" ({options.class_name})" if options.class_name else ""
    split = f"of {options.real}" if options.real else f"of {options.dataset} {options.split}{kind}"
    fake = features_of(options, network, samples, "samples")  # first, as these may be bad
    real = features_of(options, network, reals, "real", options.flip)
    pairs = [(described(samples, "samples"), fake, described(reals, split), real)]
    if held_out:
        what = described(held_out, f"of {options.dataset} {options.floor}{kind}")
        pairs.append((what, features_of(options, network, held_out, "real"), pairs[0][2], real))
    elif options.floor == "halves":
        order = np.random.default_rng(options.seed).permutation(len(real))
        n = min(len(fake), len(real) // 2)
        parts = [{**described(reals, f"{split}, chosen at random"), "images": m} for m in (n, len(real) - n)]
        pairs.append((parts[0], real[order[:n]], parts[1], real[order[n:]]))

    rows = []
    for what, x, against, y in pairs:
        settings = {"network": network.about, "samples": what, "reals": against}
        settings |= {name: getattr(options, name) for name in ("flip", "k", "seed")}
        settings["metrics"] = list(options.metrics)
        rows.append({"settings": settings, "results": measure(options, y, x, device)})
        print(line(settings, rows[-1]["results"]))
    add(path, rows)


def described(data: ImageDataset, what: str) -> dict[str, Any]:
    """Which images: in words, and as a cache tells them apart."""
    return {"what": what, **data.identity()}


if __name__ == "__main__":
    run(main)
