"""The picture of a probe: a bar per attribute, beside another probe's where one is given."""

from typing import Any

from dbae.io import atomic_write
from eval.probe import summary

SCORES = {"ap": "average precision", "r": "Pearson r", "accuracy": "accuracy"}
FEATURES = {"model": "code", "pixels": "16x16 pixels", "thumbnail": "pixels", "pca": "PCA"}


def score_of(report: dict[str, Any]) -> str:
    """Name of the score that a report is drawn by."""
    return next(score for score in SCORES if score in summary(report))


def per_attribute(report: dict[str, Any]) -> dict[str, float | None]:
    """The score of every attribute: on test, of the last epoch for regression."""
    return {name: entry.get("last", entry)[score_of(report)] for name, entry in report["attributes"].items()}


def title(report: dict[str, Any]) -> str:
    """What was probed and how well, in a line."""
    features = FEATURES.get(report["features"], report["features"])
    return f"{features}, {report['solver']}: mean {summary(report)[score_of(report)]:.3f}"


def draw(path: str, report: dict[str, Any], baseline: dict[str, Any] | None = None) -> None:
    """Write the picture; the baseline must have the same kind of score."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
    from matplotlib import pyplot as plt

    scores = {name: value for name, value in per_attribute(report).items() if value is not None}
    names = sorted(scores, key=scores.__getitem__)
    figure, axis = plt.subplots(figsize=(7.5, 1.6 + 0.21 * len(names)), layout="constrained")
    axis.barh([name.replace("_", " ") for name in names], [scores[name] for name in names], label=title(report))
    if baseline:
        other = per_attribute(baseline)
        shown = [(name.replace("_", " "), other[name]) for name in names if other.get(name) is not None]
        axis.plot([value for _, value in shown], [name for name, _ in shown], "kd", ms=4, label=title(baseline))
    axis.set(xlabel=SCORES[score_of(report)], xlim=(min(0, *scores.values()), 1), ylim=(-0.7, len(names) - 0.3))
    axis.set_title(f"{report['data']}: {report['images']['test']:,} test images", loc="left", fontsize=11)
    axis.tick_params(axis="y", labelsize=8, length=0)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(loc="lower right", fontsize=9)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
