"""Presets: rows of a method's options, by data set or configuration, and by the size of the networks.

The sizes are for data sets that have no published row: folders of own images, first of all. The same rows serve every
image size: multipliers of the channels go by it (``UNET_MULT`` and ``ENCODER_MULT``).
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from dbae.config import UserError

SIZES = ("tiny", "small", "base")
# Data sets without a published row, and the image size that they are trained at unless told otherwise
UNPUBLISHED = {"folder": 64, "cifar10": 32, "cifar100": 32, "tiny": 64, "ffhq64": 64}
ENOUGH = 5_000 * 64**2  # pixels of all images together from which the base network is worth its time

# What differs from the defaults of the networks of ADM's kind, and of TrainConfig, in all methods
SHARED: dict[str, dict[str, Any]] = {
    "tiny": {
        "num_channels": 16, "num_res_blocks": 1, "attention_sizes": (8,), "encoder_attention_sizes": (8,),
        "norm_groups": 4, "latent_dim": 128, "dropout": 0.0,
        "total_steps": 10_000, "batch_size": 16, "microbatch": 16,
        "log_interval": 25, "sample_interval": 250, "save_interval": 2_500, "save_interval_for_preemption": 100,
    },
    "small": {
        "num_channels": 32, "num_res_blocks": 1, "attention_sizes": (16, 8), "encoder_attention_sizes": (16, 8),
        "norm_groups": 8, "latent_dim": 256,
        "total_steps": 100_000, "batch_size": 64,
        "sample_interval": 1_000, "save_interval": 10_000, "save_interval_for_preemption": 500,
    },
    "base": {"num_channels": 64},
}  # fmt: skip


def by_size(**own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by size: the shared ones with a method's ``own`` on top."""
    return {size: {**SHARED[size], **own[size]} for size in SIZES}


def unpublished(rows: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of the data sets that have none among the published ``rows``: the base network at their image size."""
    return {name: {"image_size": pixels, **sizes["base"]} for name, pixels in UNPUBLISHED.items() if name not in rows}


def choose(image_size: int, device: str, images: int) -> str:
    """The size that suits ``images`` images of ``image_size`` pixels on a kind of ``device``.

    On a CPU it is tiny. On a GPU it is base from 5,000 images of 64 px, or as many pixels of another size (1,250
    images of 128 px), and small below: a network of 100 million parameters would only learn so few by heart.
    """
    if device == "cpu":
        return "tiny"
    return "base" if images * image_size**2 >= ENOUGH else "small"


class Presets:
    """Rows of the options of a method, which is a subclass."""

    method: ClassVar[str]  # its name in config.json and on the command line
    Config: ClassVar[type]  # a frozen dataclass of options, with ``image_size``, and ``name`` of a run's folder
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]]  # data set or configuration -> fields of Config and TrainConfig
    ROWS: ClassVar[str] = "dataset"  # what names the rows of PRESETS: data sets, or configurations ("config")
    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})  # size of the networks -> the same fields
    SIZED: ClassVar[tuple[str, ...]] = ()  # rows of PRESETS that are not published: a size takes their place
    SIZE_DEPENDENT: ClassVar[tuple[str, ...]] = ()  # of Config: their values in a preset belong to its image size
    CHECKED: ClassVar[tuple[str, ...]] = ("image_size",)  # of Config: evaluation compares them with the checkpoint
    OVERRIDABLE: ClassVar[tuple[str, ...]] = ()  # those of them that evaluation may change

    @classmethod
    def variant(cls, row: str | None) -> "type[Presets]":
        """The class that a row of presets is of, where a method has several: this one or a subclass."""
        return cls

    @classmethod
    def preset_row(cls, name: str, size: str | None = None) -> Mapping[str, Any]:
        """The row of PRESETS for a data set: of its name, or ``folder`` for ``folder:PATH``. UserError for others.

        With a ``size`` the networks and their training are those of SIZES, at the data set's image size.
        """
        row = "folder" if name.startswith("folder:") else name
        if row not in cls.PRESETS or name == "folder":
            known = ", ".join(row for row in cls.PRESETS if row != "folder")
            raise UserError(f"dataset: expected one of {known} or folder:PATH, got {name!r}")
        if size is None:
            return cls.PRESETS[row]
        if size not in cls.SIZES:
            raise UserError(
                f"preset: expected {' or '.join(cls.SIZES) or f'none, {cls.method} has no sizes'}, got {size!r}"
            )
        kept = {field: value for field, value in cls.PRESETS[row].items() if field in ("image_size", "flip")}
        return {**kept, **cls.SIZES[size]}


def preset(
    method: type[Presets], cls: type, dataset: str, overrides: Mapping[str, Any], size: str | None = None
) -> Any:
    """A ``cls`` (the method's Config or TrainConfig) from a ``preset_row`` and the overrides, which win."""
    row = method.preset_row(dataset, size)
    values = {**row, **overrides}
    if values.get("image_size") != row.get("image_size"):
        for name in set(method.SIZE_DEPENDENT) - overrides.keys():
            values.pop(name, None)
    names = {f.name for f in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in names})
