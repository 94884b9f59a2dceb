"""Parity vectors of the official implementation, and the deterministic weights that they were computed with."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from dbae.methods.dbae import DBAE, DBAEConfig

FOLDER = Path(__file__).parent / "golden"
VECTORS = np.load(FOLDER / "parity.npz")


def vector(name: str) -> torch.Tensor:
    """A stored array."""
    return torch.from_numpy(VECTORS[name])


def keys(size: int, kind: str) -> dict[str, list[int]]:
    """Tensor names and shapes of a released checkpoint; ``kind`` is det or sto."""
    return json.loads((FOLDER / f"keys_{size}_{kind}.json").read_text())


def fill(name: str, shape: list[int]) -> torch.Tensor:
    """The value that stands under ``name``: a function of its name and shape alone."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7, dtype=torch.int64)
    if name.endswith("running_var"):
        return torch.from_numpy(rng.uniform(0.5, 1.5, shape).astype(np.float32))
    value = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith(("weight_u", "weight_v")):
        return torch.from_numpy(value / np.linalg.norm(value))
    if len(shape) == 1:
        gain = 3.0 if name.startswith("decoder.") else 1.0
        return torch.from_numpy((gain if name.endswith("weight") else 0.0) + 0.1 * value)
    return torch.from_numpy(value / math.sqrt(math.prod(shape[1:])))


def released_state(size: int, kind: str) -> dict[str, torch.Tensor]:
    """A full state dict under the released names; the spectral norms' right vectors follow from the left ones."""
    state = {name: fill(name, shape) for name, shape in keys(size, kind).items()}
    for name in [n for n in state if n.endswith("weight_orig")]:
        weight = state[name].transpose(0, 1) if name.startswith("decoder.init.") else state[name]
        stem = name.removesuffix("weight_orig")
        v = weight.flatten(1).T @ state[stem + "weight_u"]
        state[stem + "weight_v"] = v / v.norm()
    return state


def released_model(size: int, kind: str) -> DBAE:
    """A model with those weights, in evaluation mode."""
    model = DBAE(DBAEConfig(image_size=size, num_channels=size, stochastic=kind == "sto")).eval()
    model.load_state_dict(DBAE.from_official(released_state(size, kind)))
    return model


def images(n: int, size: int, seed: int = 0) -> torch.Tensor:
    """Smooth test images [n, 3, size, size] in [-1, 1]."""
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:size, 0:size] / size
    out = np.zeros((n, size, size, 3))
    for i in range(n):
        for c in range(3):
            for _ in range(6):
                fx, fy, phase = rng.uniform(0, 4), rng.uniform(0, 4), rng.uniform(0, 2 * np.pi)
                out[i, :, :, c] += np.cos(2 * np.pi * (fx * x + fy * y) + phase)
    out = ((out / 6 + 1) / 2 * 255).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 127.5 - 1


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()).item()
