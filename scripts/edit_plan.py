"""What the options of manipulation mean: attributes and strengths as shifts of codes."""

from typing import NamedTuple

import torch
from torch import Tensor

from dbae.methods.codes import attribute_step
from eval.classifier import AttributeClassifier
from scripts.edit_inputs import ManipulateOptions, OfficialManipulateOptions

OFFICIAL_SCALES = {"Male": (-0.3, -0.15, 0.0, 0.15, 0.3), "Young": (-0.2, -0.1, 0.0, 0.1, 0.2)}
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # from the median of negatives to that of positives
POSITIVE = (0.0, 0.25, 0.5, 0.75, 1.0)  # where that of negatives is unknown
TITLES = {
    "median": "0: as it is; 1: the median of real images with the attribute, -1: without",
    "scales": "codes moved along a linear classifier",
}


class Edit(NamedTuple):
    """One attribute of some codes: its name, what the columns of its figure are called, and what they add to z."""

    name: str
    columns: tuple[str, ...]
    shifts: Tensor  # [columns, latent], or [n, columns, latent] where each code has its own


def plan(z: Tensor, classifier: AttributeClassifier, options: ManipulateOptions) -> list[Edit]:
    """The edits of codes z [n, latent] that the options ask for, one per attribute."""
    std = classifier.known("std") if options.normalised else None
    edits = []
    for row in map(classifier.index, options.attributes.split(",")):
        name = classifier.names[row]
        step = attribute_step(classifier.weight[row], std)
        if options.strength == "median":
            values = options.scales or (POSITIVE if classifier.negative_logits is None else STRENGTHS)
            scales = classifier.scales(z, row, step, torch.tensor(values, device=z.device))
        else:
            values = options.scales or OFFICIAL_SCALES.get(name, OFFICIAL_SCALES["Male"])
            scales = torch.tensor(values, device=z.device)
        columns = tuple(f"{value:+g}" if value else "0" for value in values)
        edits.append(Edit(name.replace("_", " "), columns, scales[..., None] * step))
    return edits


def moves_more(how: ManipulateOptions, inverts: bool) -> str:
    """The options by which an edit under the official setting would move more; none for another setting.

    A DBAE's image follows its x_T, so that little changes while that is kept.
    """
    if not isinstance(how, OfficialManipulateOptions):
        return ""
    kept = " --fix_xT false" if how.fix_xT and not inverts else ""
    return f"--strength median{kept}" if how.strength == "scales" and not how.scales else kept.strip()
