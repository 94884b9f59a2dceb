"""How fast the measures of generated images are on drawn features, next to a plain reference, and whether they agree.

Features have the spread of directions ``i^-power``, i from 1: 0 is the same in all, which is the most work. The
reference holds whole matrices of distances and kernels in float64, so that it is for a few thousand rows. Each variant
is a process of its own, in which every measure is timed apart; memory is the peak of the whole process.

examples:
  python -m benchmarks.measures --rows 2000
  python -m benchmarks.measures --rows 50000 --variants default --rounds 1
"""

from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from scipy.linalg import sqrtm

from benchmarks.timing import COLUMNS, Work, measure, report, table
from dbae import runtime
from dbae.config import UserError, option, require_from_zero, require_positive
from eval.generation import frechet_distance, kernel_distance, precision_recall
from scripts.cli import Parser, given, run

METRICS = ("FD", "KID", "PR")
VARIANTS = ("reference", "default")


@dataclass(frozen=True)
class MeasureBenchmark:
    """What is measured. Raises UserError for a value that cannot be used."""

    rows: int = option(2000, "real and as many generated features")
    width: int = option(2048, "numbers of each")
    power: float = option(1.0, "how fast the variance falls from direction to direction")
    k: int = option(3, "neighbours that balls reach to")
    metrics: tuple[str, ...] = option(METRICS, "some of FD, KID, and PR: precision, recall, density, coverage")
    variants: tuple[str, ...] = option(VARIANTS, "reference, default or both")
    device: str = option("auto", "auto, cpu or cuda; only PR uses a GPU")
    rounds: int = option(3, "timed rounds, after one that is not timed")
    json: str = option("", "file to write the rows to as well")

    def __post_init__(self) -> None:
        for name in ("rows", "width", "k", "rounds"):
            require_positive(name, getattr(self, name))
        require_from_zero("power", self.power)
        for name, known in (("metrics", METRICS), ("variants", VARIANTS)):
            if not getattr(self, name) or set(getattr(self, name)) - set(known):
                raise UserError(f"{name}: expected some of {', '.join(known)}, got {', '.join(getattr(self, name))}")
        if self.rows <= self.k:
            raise UserError(f"rows: expected more than k = {self.k}, got {self.rows}")


def drawn(rows: int, width: int, power: float, seed: int, scale: float = 1.0) -> np.ndarray:
    """Features [rows, width], float32, from a Gaussian off the origin with the variance ``scale^2 i^-power``."""
    x = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    x *= (scale * np.arange(1, width + 1) ** (-power / 2)).astype(np.float32)
    x += np.float32(0.4)
    return x


def work(device_name: str, variant: str, metric: str, options: MeasureBenchmark) -> Work:
    """One measure of drawn features, as a variant takes it: an array of its numbers."""
    device = runtime.setup(device_name)
    real, fake = (drawn(options.rows, options.width, options.power, seed, 1 - 0.05 * seed) for seed in (0, 1))
    ours = {
        "FD": lambda: [frechet_distance(fake, real)],
        "KID": lambda: [kernel_distance(fake, real).mean],
        "PR": lambda: list(precision_recall(real, fake, options.k, device).values()),
    }
    plain = {"FD": reference_frechet, "KID": reference_kernel, "PR": partial(reference_balls, k=options.k)}
    chosen = ours[metric] if variant == "default" else partial(plain[metric], real, fake)
    return Work(lambda: np.array(chosen()))


def reference_frechet(real: np.ndarray, fake: np.ndarray) -> list[float]:
    """By the root of the product of both covariances."""
    mean, other = (each.mean(axis=0, dtype=np.float64) for each in (real, fake))
    a, b = (np.cov(each.astype(np.float64).T) for each in (real, fake))
    return [np.square(mean - other).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)]


def reference_kernel(real: np.ndarray, fake: np.ndarray, subsets: int = 100, size: int = 1000) -> list[float]:
    """By powers of whole matrices, over the same subsets as ``kernel_distance``'s."""
    size, rng, found = min(size, len(real)), np.random.default_rng(0), []
    for _ in range(subsets if size < len(real) else 1):
        a, b = (each[rng.choice(len(each), size, replace=False)].astype(np.float64) for each in (fake, real))
        aa, bb, ab = ((x @ y.T / x.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
        others = ~np.eye(size, dtype=bool)
        found.append(aa[others].mean() + bb[others].mean() - 2 * ab.mean())
    return [np.mean(found)]


def reference_balls(real: np.ndarray, fake: np.ndarray, k: int) -> list[float]:
    """By all distances in float64 and their order."""
    real, fake = (torch.from_numpy(each).double() for each in (real, fake))
    radius_real, radius_fake = (
        torch.cdist(each, each, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, k]
        for each in (real, fake)
    )
    between = torch.cdist(fake, real, compute_mode="donot_use_mm_for_euclid_dist")
    near_real, near_fake = between <= radius_real, between <= radius_fake[:, None]
    shares = near_real.any(1), near_fake.any(0), near_real.sum(1).double() / k, near_real.any(0)
    return [each.double().mean().item() for each in shares]  # precision, recall, density, coverage


def compare(options: MeasureBenchmark) -> None:
    """Time, print and write."""
    device = runtime.setup(options.device)
    place, rows = device.type if options.device == "auto" else options.device, []
    for metric in options.metrics:
        variants = {f"{metric}, {name}": (place, name, metric, options) for name in options.variants}
        timings, made = measure(work, variants, options.rounds)
        first = next(iter(made.values()))
        for row in table(timings, options.rows):
            values = made[row["variant"]]
            rows.append(row | {"values": values.tolist(), "difference": float(abs(values - first).max())})
    if "default" in options.variants:
        total = sum(row["median_s"] for row in rows if row["variant"].endswith("default"))
        print(f"default, {', '.join(options.metrics)}: {total:.1f} s in all")
    columns = {title: cell for title, cell in COLUMNS.items() if title != "images/s"}
    title = f"{options.rows} x {options.width} drawn features against as many, power {options.power:g}"
    report(title, device, rows, options.json, columns, options=asdict(options))


def main(args: list[str] | None = None) -> None:
    """Read the options and run."""
    parser = Parser(__doc__)
    parser.add_config("options", MeasureBenchmark)
    compare(MeasureBenchmark(**given(parser.parse_args(args), MeasureBenchmark)))


if __name__ == "__main__":
    run(main)
