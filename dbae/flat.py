"""Many tensors as one vector, so that what is done to each of them is done to all at once."""

import torch
from torch import Tensor

ALIGNMENT = 16  # elements; the padding between tensors is 0


def flatten(tensors: list[Tensor]) -> Tensor:
    """A new vector that holds the values of ``tensors``, all of one dtype and dense; they become views of it.

    Shapes, memory formats and identities of the tensors stay.
    """
    vector = tensors[0].new_zeros(_layout(tensors)[1])
    for tensor, part in zip(tensors, parts(vector, tensors), strict=True):
        part.copy_(tensor.detach())
        tensor.data = part
    return vector


def parts(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The parts of a vector laid out as ``flatten`` does, each with the shape and strides of its tensor."""
    return [vector.as_strided(t.shape, t.stride(), start) for t, start in zip(like, _layout(like)[0], strict=True)]


def _layout(tensors: list[Tensor]) -> tuple[list[int], int]:
    """Where each tensor starts in the vector, and the vector's length."""
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
    return starts, end


class Kept:
    """The values that some tensors had before a step, to go back to without asking the host."""

    def __init__(self, tensors: list[Tensor]) -> None:
        kinds = {tensor.dtype for tensor in tensors}
        self.vectors = [flatten([t for t in tensors if t.dtype == kind]) for kind in kinds]
        self.values = [vector.clone() for vector in self.vectors]

    def keep(self) -> None:
        """Note the tensors as they are now."""
        for value, vector in zip(self.values, self.vectors, strict=True):
            value.copy_(vector)

    def restore_unless(self, condition: Tensor) -> None:
        """Go back to what was noted where ``condition`` (bool, one value) is false."""
        for value, vector in zip(self.values, self.vectors, strict=True):
            vector.copy_(torch.where(condition, vector, value))
