"""Attributes as directions in the space of codes: the rows of a linear classifier that a probe wrote."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import blobfile as bf
import torch
from torch import Tensor

from dbae.checkpoint import read_tensors
from dbae.config import UserError
from dbae.methods.editing import normalised_step, step


@dataclass(frozen=True)
class AttributeClassifier:
    """``logit = weight z + bias``, and what the probe knew of the codes it was trained on (None in official files)."""

    path: str
    names: tuple[str, ...]
    weight: Tensor  # [attributes, latent]
    bias: Tensor  # [attributes]
    std: Tensor | None = None  # [latent], of the training codes
    typical: Tensor | None = None  # [attributes], median logit of the training images that have the attribute

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

    def step(self, row: int, normalised: bool = False) -> Tensor:
        """What scale 1 adds to a code [latent]: the official step, or DiffAE's among normalised codes."""
        if not normalised:
            return step(self.weight[row])
        return normalised_step(self.weight[row], self._known("std"))

    def strength(self, z: Tensor, row: int, normalised: bool = False) -> Tensor:
        """Scale [N] that raises each code's logit to the median of real positives (DiffAE); 0 where it is above."""
        logit = z @ self.weight[row] + self.bias[row]
        gain = self.step(row, normalised) @ self.weight[row]
        typical = self._known("typical")[row]
        if not typical.isfinite():
            raise UserError(f"{self.path}: {self.names[row]}: no training image has it, so its strength is unknown")
        return ((typical - logit) / gain).clamp(min=0)

    def to(self, device: torch.device | str) -> "AttributeClassifier":
        """The same with its tensors on a device."""
        moved = {f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **moved)

    def _known(self, name: str) -> Tensor:
        value = getattr(self, name)
        if value is None:
            raise UserError(f"{self.path}: expected beside it the best.json that infer_class_dbae.sh writes")
        return value


def read_classifier(path: str, latent_dim: int, names: Sequence[str] = ()) -> AttributeClassifier:
    """Read ``best.pt`` and, where it is there, ``best.json`` beside it; ``names`` stand in for missing names.

    Raises UserError for a file that is missing, is no ``Linear(latent_dim, attributes)``, or does not match its JSON.
    """
    state = read_tensors(path)
    weight, bias = state.get("weight"), state.get("bias")
    if set(state) != {"weight", "bias"} or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise UserError(f"classifier: {path}: expected the weight and bias of a linear layer, got {', '.join(state)}")
    if weight.shape[1] != latent_dim:
        raise UserError(f"classifier: {path} reads codes of {weight.shape[1]} numbers, the model's have {latent_dim}")
    about = _about(path.removesuffix(".pt") + ".json", len(weight), latent_dim)
    fallback = names if len(names) == len(weight) else map(str, range(len(weight)))
    names = tuple(about.get("attributes", fallback))
    return AttributeClassifier(path, names, weight.float(), bias.float(), about.get("std"), about.get("typical"))


def _about(path: str, attributes: int, latent_dim: int) -> dict:
    """Names and statistics in ``best.json``; empty where there is no such file."""
    if not bf.exists(path):
        return {}
    try:
        with bf.BlobFile(path, "r") as file:
            content = json.load(file)
        names = content["attributes"]
        found = {"attributes": [str(name) for name in names]}
        lengths = {"attributes": len(names)}
        if "codes" in content:
            found["std"] = torch.tensor(content["codes"]["std"], dtype=torch.float32)
            medians = [float("nan") if m is None else m for m in content["codes"]["median_logit_of_positives"]]
            found["typical"] = torch.tensor(medians, dtype=torch.float32)
            lengths |= {"std": len(found["std"]), "typical": len(found["typical"])}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: expected what infer_class_dbae.sh writes beside best.pt ({error})") from None
    if lengths.items() - {"attributes": attributes, "std": latent_dim, "typical": attributes}.items():
        raise UserError(f"{path}: expected {attributes} attributes and codes of {latent_dim} numbers, as in best.pt")
    return found
