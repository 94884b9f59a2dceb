"""A network that tells faces apart: MobileNet 1.0 trained to name persons in photos, from files of TensorFlow.js."""

import os
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.config import UserError
from dbae.io import read_json

# Channels after each of the 13 separable convolutions, and which of these halve the image (Howard et al., 2017)
WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
HALVING = (2, 4, 6, 12)
DTYPES = {"float32": "<f4", "int32": "<i4"}


class FaceNet(nn.Module):
    """Embeddings [n, 1024] of faces [n, 3, s, s], red, green, blue, less the means of their channels, s = 224.

    Batch normalisation is part of weights and biases. The network takes blue first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, stride=2)
        pairs = list(zip((32, *WIDTHS[:-1]), WIDTHS, strict=True))
        strides = [1 + (number in HALVING) for number in range(1, len(pairs) + 1)]
        self.depthwise = nn.ModuleList(
            nn.Conv2d(inner, inner, 3, stride, groups=inner) for (inner, _), stride in zip(pairs, strides, strict=True)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(inner, outer, 1) for inner, outer in pairs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.first(padded(x.flip(1), 2)))
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = F.relu6(depthwise(padded(x, depthwise.stride[0])))
            x = F.relu6(pointwise(x))
        return x.mean((2, 3))


def padded(x: Tensor, stride: int) -> Tensor:
    """TensorFlow's padding "same" for 3 x 3: what is odd of it comes behind."""
    rows, columns = (max(0, (-(-size // stride) - 1) * stride + 3 - size) for size in x.shape[2:])
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def facenet_tensors(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The graph's tensors under the network's names: factors and offsets of normalisation become weights and biases."""
    found = {}

    def put(name: str, weight: str, layer: str, order: tuple[int, ...]) -> None:
        if weight in tensors and tensors[weight].ndim == len(order):
            scale = tensors.get(f"{layer}_bn/batchnorm_1/mul", torch.ones(()))
            found[f"{name}.weight"] = tensors[weight].permute(order) * scale.view(-1, 1, 1, 1)
        if (offset := f"{layer}_bn/batchnorm_1/sub") in tensors:
            found[f"{name}.bias"] = tensors[offset]

    put("first", "conv1/convolution/merged_input", "conv1", (3, 2, 0, 1))
    for i in range(len(WIDTHS)):
        put(f"depthwise.{i}", f"conv_dw_{i + 1}/depthwise_kernel", f"conv_dw_{i + 1}", (2, 3, 0, 1))
        put(f"pointwise.{i}", f"conv_pw_{i + 1}/convolution/merged_input", f"conv_pw_{i + 1}", (3, 2, 0, 1))
    return found


def read_tensorflow_js(path: str) -> dict[str, Tensor]:
    """Tensors of a ``.bin`` whose names and shapes the ``.json`` of the same name tells, as TensorFlow.js keeps them.

    Raises UserError where one of the files is missing, or they do not fit.
    """
    manifest = f"{os.path.splitext(path)[0]}.json"
    if not os.path.exists(manifest):
        raise UserError(f"{path}: expected {os.path.basename(manifest)} beside it, which names its tensors")
    try:
        (group,) = read_json(manifest)["weightsManifest"]
        entries = [(each["name"], each["shape"], DTYPES[each["dtype"]]) for each in group["weights"]]
        sizes = [4 * prod(shape) for _, shape, _ in entries]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{manifest}: expected the weightsManifest of one file of float32 and int32") from None
    content = np.fromfile(path, np.uint8)
    if len(content) != sum(sizes):
        raise UserError(f"{path}: expected {sum(sizes)} bytes as in {manifest}, got {len(content)}")
    parts = np.split(content, np.cumsum(sizes)[:-1])
    return {
        name: torch.from_numpy(part.view(dtype).reshape(shape).copy())
        for part, (name, shape, dtype) in zip(parts, entries, strict=True)
    }
