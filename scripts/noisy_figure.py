"""Recognition rate over noise of classifiers that are told the noise, in one picture.

The horizontal axis is noise over signal, so that the levels of DDPM and of EDM are comparable.

example:
  python -m scripts.noisy_figure --results workdir --out recognition.png     # all that lie below a folder
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from dbae.config import UserError
from dbae.io import read_json
from scripts.cli import Parser, run
from scripts.figures import plain_text, save_figure

RESULT = "noisy_classifier.json"  # of every classifier, in its own folder
MARKERS = {"DDPM": "o", "EDM": "s"}


def _files(words: Sequence[str]) -> Iterator[str]:
    for path in (path for word in words for path in word.split(",") if path):
        if not os.path.isdir(path):
            yield path
            continue
        found = [os.path.join(root, RESULT) for root, _, names in sorted(os.walk(path)) if RESULT in names]
        if not found:
            raise UserError(f"results: expected files {RESULT} below {path}, there are none")
        yield from found


def read_results(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reports by path, of files and of folders that are searched, separated by commas or not.

    Raises UserError for what is no result of these classifiers, and for a folder without any.
    """
    reports = {}
    for path in _files(words):
        if not os.path.isfile(path):
            raise UserError(f"results: no such file: {path}")
        report = reports[path] = read_json(path)
        try:
            levels = [(float(level["noise_to_signal"]), float(level["accuracy"])) for level in report["levels"]]
            known = bool(levels) and isinstance(report["title"], str) and report["framework"] in MARKERS
            known = known and 0 <= float(report["chance"]) <= 1
        except (KeyError, TypeError, ValueError):
            known = False
        if not known:
            raise UserError(f"results: expected those of a noise-conditional classifier, got {path}")
    return reports


def draw(path: str, reports: Sequence[dict[str, Any]]) -> None:
    """Write the picture of some reports, each a curve, with what always naming the most frequent class would give."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for report in reports:
        levels = [level for level in report["levels"] if level["noise_to_signal"] > 0]
        noise, rate = ([level[name] for level in levels] for name in ("noise_to_signal", "accuracy"))
        axis.plot(noise, rate, marker=MARKERS[report["framework"]], ms=4, lw=1.5, label=plain_text(report["title"]))
    for chance in sorted({round(report["chance"], 2): report["chance"] for report in reports}.values()):
        axis.axhline(chance, color="0.5", ls=":", lw=1.2)
        axis.annotate(
            f"chance {chance:.3g}", (0, chance), (4, -4), ("axes fraction", "data"), "offset points", va="top",
            color="0.4", fontsize=8,
        )  # fmt: skip
    axis.set(xscale="log", ylim=(0, 1), xlabel="noise over signal, $\\sigma$", ylabel="recognised test images")
    axis.set_title("Recognition of noisy images by classifiers that are told the noise", loc="left", fontsize=11)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="best", fontsize=8)
    save_figure(path, figure)


def main(args: list[str] | None = None) -> None:
    """Draw the results that are named."""
    parser = Parser(__doc__)
    parser.add_argument("--results", required=True, nargs="+", metavar="PATH", help="files, or folders to search")
    parser.add_argument("--out", required=True, metavar="PATH", help="picture to write, .png")
    parser.add_argument("--overwrite", action="store_true", default=False, help="replace a file that is there")
    options = parser.parse_args(args)
    if not options.out.endswith(".png"):
        raise UserError(f"out: expected a name that ends in .png, got {options.out!r}")
    reports = read_results(options.results)
    if os.path.exists(options.out) and not options.overwrite:
        raise UserError(f"out: {options.out} is there already; give --overwrite to replace it, or another name")
    draw(options.out, list(reports.values()))
    print(f"wrote {len(reports)} curves to {options.out}")


if __name__ == "__main__":
    run(main)
