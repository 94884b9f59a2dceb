"""The picture of alignment and uniformity: over the checkpoints of a run, or over the blocks of one."""

from collections.abc import Sequence
from typing import Any

from scripts.figures import plain_text, save_figure

PANELS = {  # measure -> what its axis says
    "alignment": "alignment (0: both draws agree)",
    "uniformity": "uniformity (lower: more even)",
}
LABELLED = 16  # blocks that a legend names one by one; of more, the first and the last


def draw(path: str, settings: dict[str, Any], entries: Sequence[dict[str, Any]]) -> None:
    """Write a panel for each measure, with a line per block, from the deepest (dark) to the last (light)."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    blocks, many = settings["blocks"], len(entries) > 1
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axis, (measure, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        if many:
            values, where = _positions(entries)
            for k, name in enumerate(blocks):
                colour = colormaps["viridis"](0.92 * k / max(1, len(blocks) - 1))
                named = len(blocks) <= LABELLED or k in (0, len(blocks) - 1)
                line = [entry[measure][k] for entry in entries]
                axis.plot(values, line, "o-", ms=3, lw=1.4, color=colour, label=plain_text(name) if named else None)
            axis.set_xlabel(where)
        else:
            axis.plot(range(len(blocks)), entries[0][measure], "o-", ms=5, lw=1.4, color="#31688e")
            axis.set_xticks(range(len(blocks)), [plain_text(name) for name in blocks], rotation=60, ha="right")
            axis.tick_params(axis="x", labelsize=8)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if many:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    about = f"{settings['images']:,} images in batches of {settings['batch_size']}, noise of time {settings['time']:g}"
    figure.suptitle(about, x=0.01, ha="left", fontsize=11)
    save_figure(path, figure)


def _positions(entries: Sequence[dict[str, Any]]) -> tuple[list[int], str]:
    """Where checkpoints stand on the axis, and what it says: images seen, else the numbers of the files."""
    for name, label in (("images_seen", "training images seen"), ("step", "checkpoint")):
        found = [entry[name] for entry in entries]
        if None not in found:
            return found, label
    return list(range(1, len(entries) + 1)), "checkpoint"
