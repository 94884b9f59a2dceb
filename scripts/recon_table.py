"""Collect the reconstructions of checkpoints, as ``metrics.json`` has them, into one table by sampler and calls.

example:
  python -m scripts.recon_table --runs workdir/diffae_ffhq128_128_512d,ckpt/ffhq/det --out table.md

A run is a folder below which reconstructions lie that were evaluated; rows of the papers (FFHQ, tested on CelebA-HQ at
128 pixels) stand above ours. An SSIM of the DBAE paper is SSIM_official here. A .csv name writes CSV.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from dbae.config import SampleConfig, UserError
from eval.samples import read_report
from scripts.cli import run
from scripts.tables import collect

METRICS = {"SSIM": ".3f", "SSIM_official": ".3f", "LPIPS": ".4f", "MSE": ".2e", "PSNR": ".2f"}
HEADER = ("method", "sampler", "x_T", "calls", *METRICS, "images", "source")

# SSIM and LPIPS (and MSE) at T = 10, 20, 50, 100 of DiffAE's Table 1; then SSIM_official, LPIPS and MSE of DBAE's
STEPS = (10, 20, 50, 100)
BY_STEPS = {
    ("DiffAE", "inferred"): (".827 .927 .978 .991", ".078 .050 .023 .011", "   "),
    ("DiffAE", "random"): (".707 .695 .683 .677", ".085 .078 .074 .073", ".006 .007 .007 .007"),
    ("DDIM", "inferred"): (".600 .760 .878 .917", ".227 .148 .087 .063", ".019 .008 .003 .002"),
}
# Settings that a row names where they differ from these
NAMED = ("sampler", "steps", "grid", "xT")
BESIDE = {name: value for name, value in asdict(SampleConfig()).items() if name not in NAMED} | {"latent": "sample"}
DBAE = {"DBAE": ("0.920", "0.094", "4.81e-3"), "DBAE-d": ("0.953", "0.072", "2.49e-3")}


def published_rows() -> Iterator[tuple[str, ...]]:
    """The papers' rows."""
    for (method, start), columns in BY_STEPS.items():
        for steps, *values in zip(STEPS, *(column.split(" ") for column in columns), strict=True):
            ssim, lpips, mse = (f"0{value}" if value else "" for value in values)
            calls = str(steps if start == "random" else 2 * steps)
            yield (method, f"ddim {steps}", start, calls, ssim, "", lpips, mse, "", "30,000", "DiffAE paper")
    for method, (ssim, lpips, mse) in DBAE.items():
        yield (method, "", "decoded", "", "", ssim, lpips, mse, "", "30,000", "DBAE paper")


def rows_of(run_dir: str) -> Iterator[tuple[str, ...]]:
    """A row per folder of complete and evaluated reconstructions, by their calls. UserError where there is none."""
    found: list[tuple[str, dict[str, Any]]] = []
    for root, folders, names in os.walk(run_dir):
        folders.sort()
        if "metrics.json" in names and (report := read_report(root)).get("metrics") and report.get("complete"):
            found.append((root, report))
    if not found:
        raise UserError(f"runs: expected reconstructions with metrics below {run_dir} (recon --evaluate), none there")
    for root, report in sorted(found, key=lambda each: (each[1].get("nfe", 0), each[0])):
        where, folder = os.path.split(root)
        step = os.path.basename(where).removeprefix("sample_")
        settings, metrics = report["settings"], report["metrics"]
        values = [format(metrics[name], form) if name in metrics else "" for name, form in METRICS.items()]
        data = f"{report['images_evaluated']:,} {settings['split']} of {settings['dataset']}"
        start = settings.get("xT", "") if "_xT=" in folder else "decoded"
        label = f"{settings['sampler']} {settings['steps']}, {settings['grid']}"
        others = [f"{name} {settings[name]}" for name in BESIDE if settings.get(name, BESIDE[name]) != BESIDE[name]]
        label = ", ".join([label, *others])
        run_name = os.path.basename(run_dir.rstrip("/"))
        yield (f"{run_name}, step {step}", label, start, str(report["nfe"]), *values, data, "ours")


main = partial(collect, __doc__, "evaluated reconstructions", HEADER, published_rows, rows_of)

if __name__ == "__main__":
    run(main)
