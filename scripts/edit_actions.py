"""Interpolation and manipulation of images, from codes to the pictures on disk."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datasets.toyfaces import ATTRIBUTES
from dbae.attributes import AttributeClassifier, read_classifier
from dbae.config import UserError
from dbae.methods.editing import PATHS, along
from scripts.edit_figure import Row, animation, check_rows, sheet, strip, tile
from scripts.edit_options import OFFICIAL_SCALES, find_classifier, stem
from scripts.editing import Editor

if TYPE_CHECKING:
    from scripts.edit_options import AttributeOptions, WayOptions

THIRDS = ("reconstruction", "one third", "two thirds", "median")


@dataclass(frozen=True)
class Edit:
    """One attribute's row of a figure: its name, what its columns are called, codes before [n, latent] and after."""

    name: str
    columns: tuple[str, ...]
    z: Tensor
    codes: Tensor  # [n, columns, latent]


def interpolate(editor: Editor, z: Tensor, frames: int, path: str) -> tuple[Tensor, Tensor]:
    """Endpoints and images, uint8 [n - 1, frames, 3, H, W], between neighbours of the codes z [n, latent]."""
    between = PATHS[path](z[:-1], z[1:], torch.linspace(0, 1, frames, device=z.device))
    return editor.frames(between, desc="interpolate")


def manipulate(editor: Editor, edits: Sequence[Edit], fix_xT: bool) -> list[tuple[Tensor, Tensor]]:
    """Endpoints and images, uint8 [n, columns, 3, H, W], of each of some edits of the same codes.

    All are sampled together, whatever their numbers of columns. ``fix_xT``: from the unedited endpoints, decoded once.
    """
    with torch.no_grad():
        x_T = editor.model.decode(edits[0].z) if fix_xT else None
    made = editor.frames(torch.cat([edit.codes for edit in edits], dim=1), x_T, desc="manipulate")
    columns = [edit.codes.shape[1] for edit in edits]
    return list(zip(*(part.split(columns, dim=1) for part in made), strict=True))


def attributes_of(
    editor: Editor, model_path: str, options: "AttributeOptions"
) -> tuple[AttributeClassifier, list[int]]:
    """The linear classifier and the rows asked for; 40 unnamed rows are CelebA's attributes, as officially."""
    path = find_classifier(model_path, options.classifier)
    classifier = read_classifier(path, editor.model.config.latent_dim, ATTRIBUTES).to(editor.device)
    return classifier, [classifier.index(attribute) for attribute in options.attributes.split(",")]


def plan(z: Tensor, classifier: AttributeClassifier, rows: Sequence[int], options: "AttributeOptions") -> list[Edit]:
    """One edit per attribute, of codes z [n, latent]."""
    edits = []
    for row in rows:
        name = classifier.names[row]
        if options.strength == "median":
            ways = torch.linspace(0, 1, len(THIRDS), device=z.device)
            scales = classifier.strength(z, row, options.normalised)[:, None] * ways
            columns = THIRDS
        else:
            values = options.scales or OFFICIAL_SCALES.get(name, OFFICIAL_SCALES["Male"])
            scales = torch.tensor(values, device=z.device)
            columns = tuple(f"{scale:+g}" if scale else "0" for scale in values)
        codes = along(z, classifier.step(row, options.normalised), scales)
        edits.append(Edit(name.replace("_", " "), columns, z, codes))
    return edits


def draw_interpolation(
    editor: Editor, names: Sequence[str], images: Tensor, options: "WayOptions", folder: str
) -> list[str]:
    """Strip and animation from image to image, uint8 [n, 3, H, W]; returns their paths. UserError for one image."""
    if len(images) < 2:
        raise UserError(f"images: expected at least two to go between, got {len(images)}")
    check_rows(2 * (len(images) - 1))
    endpoints, frames = interpolate(editor, editor.encode(images), options.frames, options.path)
    fractions = [f"{i / (options.frames - 1):.2g}" for i in range(options.frames)]
    rows = []
    for pair, (ends, made) in enumerate(zip(endpoints, frames, strict=True)):
        first, last = tile(names[pair], images[pair]), tile(names[pair + 1], images[pair + 1])
        rows.append(Row("image $x_0$", [first, *map(tile, fractions, made), last]))
        rows.append(Row("endpoint $x_T$", [("", None), *map(tile, [""] * len(ends), ends), ("", None)]))
    path = os.path.join(folder, stem(names, options.path, str(options.frames)))
    strip(f"{path}.png", rows, f"{options.path} interpolation between codes")
    animation(f"{path}.gif", sheet(frames.flatten(0, 1)[None, None]))
    return [f"{path}.png", f"{path}.gif"]


def draw_manipulation(
    editor: Editor,
    names: Sequence[str],
    images: Tensor,
    edits: Sequence[Edit],
    options: "AttributeOptions",
    folder: str,
) -> tuple[list[str], list[Tensor]]:
    """Strip and animation of edits of images, uint8 [n, 3, H, W]; returns paths, and edited images per attribute."""
    check_rows(len(images) * len(edits) * (1 if options.fix_xT else 2))
    made = manipulate(editor, edits, options.fix_xT)
    rows = []
    for i, name in enumerate(names):
        for edit, (endpoints, edited) in zip(edits, made, strict=True):
            rows.append(Row(edit.name, [tile(name, images[i]), *map(tile, edit.columns, edited[i])]))
            if not options.fix_xT:
                rows.append(Row("endpoint $x_T$", [("", None), *map(tile, [""] * len(edit.columns), endpoints[i])]))
    attributes = "-".join(edit.name.replace(" ", "") for edit in edits)
    how = (
        "median" * (options.strength == "median"),
        "normalised" * options.normalised,
        "moved_xT" * (not options.fix_xT),
    )
    path = os.path.join(folder, stem(names, attributes, *how))
    strip(f"{path}.png", rows, "codes moved along a linear classifier")
    paths = [f"{path}.png"]
    if len({len(edit.columns) for edit in edits}) == 1:
        animation(f"{path}.gif", sheet(torch.stack([edited for _, edited in made])))
        paths.append(f"{path}.gif")
    return paths, [edited for _, edited in made]
