"""The linear classifier of attributes that a probe wrote, as editing reads it: each row is a direction among codes."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import blobfile as bf
import torch
from torch import Tensor

from dbae.config import UserError
from dbae.io import fingerprint, require_finite
from dbae.tensors import read_tensors

MEDIANS = {"median_logits": "median_logit_of_positives", "negative_logits": "median_logit_of_negatives"}  # in best.json


@dataclass(frozen=True)
class AttributeClassifier:
    """``logit = weight z + bias``, and what the probe knew of the codes it was trained on (None in official files)."""

    path: str
    names: tuple[str, ...]
    weight: Tensor  # [attributes, latent]
    bias: Tensor  # [attributes]
    std: Tensor | None = None  # [latent], of the training codes
    median_logits: Tensor | None = None  # [attributes], over the training images that have the attribute
    negative_logits: Tensor | None = None  # [attributes], over those that have it not
    weights: str | None = None  # fingerprint of the weights it was trained on, empty where its JSON states none

    def index(self, attribute: str) -> int:
        """Row of an attribute given by name (case and spaces do not matter) or number. Raises UserError otherwise."""
        plain = [name.lower() for name in self.names]
        wanted = attribute.strip().lower().replace(" ", "_")
        if wanted in plain:
            return plain.index(wanted)
        if wanted.isdecimal() and int(wanted) < len(plain):
            return int(wanted)
        known = ", ".join(self.names)
        raise UserError(f"attributes: expected a number under {len(plain)} or one of {known}, got {attribute!r}")

    def scale_to_median(self, z: Tensor, row: int, direction: Tensor, positives: bool = True) -> Tensor:
        """Scales [N] by which codes z go along ``direction`` [latent] to the median logit of positives (DiffAE).

        Or against it to that of negatives. 0 for a code that is beyond. Raises UserError where that median is unknown.
        """
        logit = z @ self.weight[row] + self.bias[row]
        median = self.known("median_logits" if positives else "negative_logits")[row]
        if not median.isfinite():
            which = "no training image has it" if positives else "all training images have it"
            raise UserError(f"{self.path}: {self.names[row]}: {which}, so its strength is unknown")
        scale = (median - logit) / (direction @ self.weight[row])
        return scale.clamp(min=0) if positives else scale.clamp(max=0)

    def scales(self, z: Tensor, row: int, direction: Tensor, strengths: Tensor) -> Tensor:
        """Scales [N, F] of codes z along ``direction`` [latent] for ``strengths`` [F].

        0 leaves a code as it is, 1 takes it to the median logit of positives, -1 to that of negatives, and other
        strengths go that part of the way. Raises UserError where a median that it takes is unknown.
        """
        scales = torch.zeros(len(z), len(strengths), device=z.device)
        for positives, parts in ((True, strengths.clamp(min=0)), (False, -strengths.clamp(max=0))):
            if parts.any():
                scales += self.scale_to_median(z, row, direction, positives)[:, None] * parts
        return scales

    def to(self, device: torch.device | str) -> "AttributeClassifier":
        """The same with its tensors on a device."""
        moved = {f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **moved)

    def known(self, name: str) -> Tensor:
        """The statistic of that name. Raises UserError where the file has none."""
        value = getattr(self, name)
        if value is None:
            raise UserError(
                f"{self.path}: expected beside it the best.json that infer_class_dbae.sh writes now, with {name}"
            )
        return value


def read_classifier(path: str | os.PathLike[str], latent_dim: int, names: Sequence[str] = ()) -> AttributeClassifier:
    """Read ``best.pt`` and, where it is there, ``best.json`` beside it; ``names`` stand in for missing names.

    DiffAE's official file, whose classifier is of normalised codes, becomes one of codes as they are. Raises UserError
    for a file that is missing, is no ``Linear(latent_dim, attributes)`` of finite numbers, or does not match its JSON.
    """
    path = os.fspath(path)
    state, about = read_tensors(path), {}
    if isinstance(state.get("state_dict"), Mapping):
        state, about["std"] = _of_plain_codes(state["state_dict"], path)
    weight, bias = state.get("weight"), state.get("bias")
    tensors = set(state) == {"weight", "bias"} and all(isinstance(part, Tensor) for part in state.values())
    if not tensors or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        names = ", ".join(map(str, state))
        raise UserError(f"classifier: {path}: expected the weight and bias of a linear layer, got {names}")
    require_finite(f"classifier: {path}", torch.cat([weight.flatten(), bias]))
    if weight.shape[1] != latent_dim:
        raise UserError(f"classifier: {path} reads codes of {weight.shape[1]} numbers, the model's have {latent_dim}")
    about |= _read_about(path.removesuffix(".pt") + ".json", len(weight), latent_dim)
    if about.pop("layer", None) not in (None, fingerprint(path)):
        raise UserError(
            f"classifier: {path}: it is not the file that its JSON is of; copy both, or run the probe again"
        )
    if "names" not in about:
        about["names"] = tuple(names if len(names) == len(weight) else map(str, range(len(weight))))
    return AttributeClassifier(path, weight=weight.float(), bias=bias.float(), **about)


def _of_plain_codes(state: Mapping[str, Any], path: str) -> tuple[dict[str, Tensor], Tensor]:
    """Weight and bias for codes z, and their std, of the official classifier, which reads ``(z - mean) / std``.

    Of its weights those as trained: their average still holds much of the random start.
    """
    official = ("classifier.weight", "classifier.bias", "conds_mean", "conds_std")
    found = [state.get(name) for name in official]
    sizes = [tuple(each.shape) for each in found if isinstance(each, Tensor)]
    if len(sizes) < 4 or len(sizes[0]) != 2 or sizes[1:] != [sizes[0][:1], *[(1, sizes[0][1])] * 2]:
        raise UserError(f"classifier: {path}: expected {', '.join(official)} that fit together")
    weight, bias, mean, std = (each.float() for each in found)
    weight = weight / std
    return {"weight": weight, "bias": bias - weight @ mean[0]}, std[0]


def _read_about(path: str, attributes: int, latent_dim: int) -> dict[str, Any]:
    """Names and statistics in ``best.json``, as fields of the classifier; none where there is no such file."""
    if not bf.exists(path):
        return {}
    try:
        with bf.BlobFile(path, "r") as file:
            content = json.load(file)
        about: dict[str, Any] = {"names": tuple(str(name) for name in content["attributes"])}
        about["weights"] = str(content.get("weights", ""))
        about["layer"] = content.get("layer")  # fingerprint of best.pt; earlier versions noted none
        if "codes" in content:
            codes = dict(content["codes"])
            about["std"] = torch.tensor(codes.pop("std"), dtype=torch.float32)
            codes.setdefault("median_logit_of_negatives", None)  # earlier versions noted none
            for name, key in MEDIANS.items():
                if (medians := codes[key]) is not None:
                    values = [float("nan") if m is None else m for m in medians]
                    about[name] = torch.tensor(values, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: expected what infer_class_dbae.sh writes beside best.pt ({error})") from None
    expected = {"names": attributes, "std": latent_dim, **dict.fromkeys(MEDIANS, attributes)}
    if any(len(about[name]) != length for name, length in expected.items() if name in about):
        raise UserError(f"{path}: expected {attributes} attributes and codes of {latent_dim} numbers, as in best.pt")
    return about
