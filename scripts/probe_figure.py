"""The picture of a probe: a bar per attribute, beside another probe's where one is given."""

from typing import Any

from eval.probe import coverage, summary
from scripts.figures import plain_text, save_figure

SCORES = {"ap": "average precision", "r": "Pearson r", "accuracy": "accuracy"}
FEATURES = {"model": "code", "pixels": "16x16 pixels", "thumbnail": "pixels", "pca": "PCA"}


def score_of(report: dict[str, Any]) -> str:
    """Name of the score that a report is drawn by."""
    return next(score for score in SCORES if score in summary(report))


def bars(report: dict[str, Any]) -> tuple[dict[str, float], str]:
    """The score of every attribute that has one (of the last epoch for regression), and a line on what was probed."""
    score, features = score_of(report), FEATURES.get(report["features"], report["features"])
    found = {name: entry.get("last", entry)[score] for name, entry in report["attributes"].items()}
    label = f"{features}, {report['solver']}: mean {summary(report)[score]:.3f}{coverage(report)}"
    return {name: value for name, value in found.items() if value is not None}, label


def draw(path: str, report: dict[str, Any], baseline: dict[str, Any] | None = None) -> None:
    """Write the picture; the baseline must have the same kind of score."""
    from matplotlib.figure import Figure

    scores, label = bars(report)
    names = sorted(scores, key=scores.__getitem__)
    figure = Figure(figsize=(7.5, 1.6 + 0.21 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.barh(range(len(names)), [scores[name] for name in names], label=plain_text(label))
    if baseline:
        other, label = bars(baseline)
        shown = [name for name in names if name in other]
        rows = [names.index(name) for name in shown]
        axis.plot([other[name] for name in shown], rows, "kd", ms=4, label=plain_text(label))
    axis.set_yticks(range(len(names)), [plain_text(name.replace("_", " ")) for name in names])
    axis.set(xlabel=SCORES[score_of(report)], xlim=(min(0, *scores.values()), 1), ylim=(-0.7, len(names) - 0.3))
    axis.set_title(f"{plain_text(report['data'])}: {report['images']['test']:,} test images", loc="left", fontsize=11)
    axis.tick_params(axis="y", labelsize=8, length=0)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(loc="lower right", fontsize=9)
    save_figure(path, figure)
