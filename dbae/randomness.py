"""Random numbers as functions of a seed and an index, so that no result depends on batch size or process count."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def seed_for(*key: int) -> int:
    """A well-mixed 63-bit seed from non-negative integers such as (run seed, image index)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def image_generators(seed: int, indices: Iterable[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per image, seeded by (seed, index in the data set)."""
    return [torch.Generator(device).manual_seed(seed_for(seed, index)) for index in indices]


def randn_like(x: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal values like ``x`` [N, ...]; from a sequence of N generators, each image draws from its own."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    if len(generator) != len(x):
        raise ValueError(f"generator: expected one per image ({len(x)}), got {len(generator)}")
    return torch.stack([torch.randn(x.shape[1:], generator=g, dtype=x.dtype, device=x.device) for g in generator])
