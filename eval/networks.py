"""Feature networks of the measures of generated images: named rows, whose weights are files of tensors.

The definitions are those of the packages that the field uses, with the file's tensors put in: nothing is downloaded,
and nothing in a file is executed. A Frechet distance in any other space than that of ``inception`` is no FID.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.config import UserError
from dbae.io import fingerprint
from dbae.tensors import read_tensors
from eval.faces import FaceNet, facenet_tensors, read_tensorflow_js
from eval.reconstruction import empty_lpips, import_torchvision

Levels = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of red, green, blue in 0..255
HALF: Levels = ((127.5,), (127.5,))  # to [-1, 1]
TENSORFLOW: Levels = ((128.0,), (128.0,))
LITE: Levels = ((127.0,), (128.0,))
UNIT: Levels = ((0.0,), (255.0,))
CAFFE: Levels = ((123.68, 116.779, 103.939), (1.0,))
IMAGENET: Levels = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@dataclass(frozen=True)
class Row:
    """A network: how it is built without weights and run, and what its input is."""

    build: Callable[[], nn.Module]
    forward: Callable[[nn.Module, Tensor], Tensor]  # normalised images [n, 3, s, s] -> features [n, d]
    size: int | None  # of the input; None: images as they are
    levels: dict[str, Levels]  # by resizing, the default first
    file: str  # the usual name of the weights
    tensors: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]] = lambda net, tensors: tensors
    read: Callable[[str], dict[str, Any]] = read_tensors


@dataclass(frozen=True)
class FeatureNetwork:
    """Features of images: ``network(images)`` of uint8 [n, 3, H, W] is float32 [n, d] on the CPU.

    ``about`` is all that the features depend on beside the images, ready for JSON.
    """

    name: str
    about: dict[str, Any]
    row: Row
    net: nn.Module
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        x = resize(images.to(self.device).float(), self.row.size, self.about["resizing"])
        mean, std = (x.new_tensor(values)[:, None, None] for values in self.row.levels[self.about["resizing"]])
        return self.row.forward(self.net, (x - mean) / std).float().cpu()


def load_network(
    name: str, path: str | None = None, device: torch.device | str = "cpu", resizing: str | None = None
) -> FeatureNetwork:
    """The network ``name``, a row of NETWORKS, with the weights of the file ``path``; ``pixels`` has none.

    ``resizing`` takes the place of the network's own. Raises UserError for what is unknown, a missing package, and a
    file that is missing or holds anything but this network's tensors.
    """
    if name not in NETWORKS:
        raise UserError(f"features: expected one of {', '.join(NETWORKS)}, got {name!r}")
    row = NETWORKS[name]
    resizing = resizing or next(iter(row.levels))
    if resizing not in row.levels:
        raise UserError(f"resizing: {name} has {', '.join(row.levels)}, got {resizing!r}")
    if path and not row.file:
        raise UserError(f"weights: expected none for {name}, got {path}")
    if row.file and not (path and os.path.exists(path)):
        raise UserError(
            f"weights: {name} needs a file such as {row.file}, {f'no such file: {path}' if path else 'got none'}"
        )
    about = {"name": name, "resizing": resizing, "input_size": row.size, "weights": None}
    net = row.build()
    if row.file:
        about["weights"] = fingerprint(path)
        _fill(net, row, path)
    device = torch.device(device)
    return FeatureNetwork(name, about, row, net.to(device).eval().requires_grad_(False), device)


def resize(x: Tensor, size: int | None, how: str) -> Tensor:
    """Images [n, 3, H, W] in 0..255 -> [n, 3, size, size], not rounded; None leaves them as they are.

    ``bilinear`` is torch's without antialiasing, as in pytorch-fid; ``bicubic`` PIL's, antialiased and clipped, as in
    clean-fid; ``tensorflow`` the bilinear one of TensorFlow 1 without aligned centres, as in the original FID.
    """
    if size is None:
        return x
    if how == "tensorflow":
        rows, columns = (_tensorflow_weights(n, size).to(x) for n in x.shape[2:])
        return rows @ x @ columns.T
    if how == "bicubic":
        return F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(0, 255)
    return F.interpolate(x, size=(size, size), mode="bilinear")


def _tensorflow_weights(n: int, size: int) -> Tensor:
    """Matrix [size, n] of linear interpolation at ``i n / size``, the last pixel repeated."""
    at = torch.arange(size, dtype=torch.float64) * n / size
    first = at.floor().long()
    weights = torch.zeros(size, n, dtype=torch.float64)
    weights.scatter_add_(1, first[:, None], (1 - at + first)[:, None])
    return weights.scatter_add_(1, (first + 1).clamp(max=n - 1)[:, None], (at - first)[:, None])


def _fill(net: nn.Module, row: Row, path: str) -> None:
    """Put the tensors of a file into the network; further ones, such as another head's, are left."""
    found = {name: value for name, value in row.read(path).items() if isinstance(value, Tensor)}
    found = row.tensors(net, found)
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):  # of training, and old files lack it
            continue
        if name not in found or found[name].shape != value.shape:
            got = f"has {list(found[name].shape)}" if name in found else "has none"
            raise UserError(f"weights: expected a tensor {name!r} {list(value.shape)} as in {row.file}, {path} {got}")
        if not found[name].isfinite().all():
            raise UserError(f"weights: {path}: {name!r} has values that are not finite")
    net.load_state_dict({name: found.get(name, value) for name, value in net.state_dict().items()})


def _package(name: str, module: str) -> ModuleType:
    import_torchvision()
    try:
        return import_module(module)
    except ImportError:
        raise UserError(f"features: this network needs the package {name}: pip install {name}") from None


# The networks


def _inception() -> nn.Module:
    """The Inception of 2015-12-05, as pytorch-fid makes it of torchvision's."""
    fid = _package("pytorch-fid", "pytorch_fid.inception")
    net = import_module("torchvision").models.inception_v3(
        weights=None, num_classes=1008, aux_logits=False, init_weights=False
    )
    for name, channels, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        setattr(net, f"Mixed_{name}", fid.FIDInceptionA(channels, pool_features=pooled))
    for name, channels in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(net, f"Mixed_{name}", fid.FIDInceptionC(768, channels_7x7=channels))
    net.Mixed_7b, net.Mixed_7c = fid.FIDInceptionE_1(1280), fid.FIDInceptionE_2(2048)
    return net


def _pool3(net: nn.Module, x: Tensor) -> Tensor:
    """[n, 2048]: all up to the average pooling; dropout and the 1008 logits come after it."""
    return nn.Sequential(*list(net.children())[:-2])(x).flatten(1)


def _vgg16() -> nn.Module:
    """VGG16 up to the ReLU after its second linear layer."""
    import_torchvision()
    net = import_module("torchvision").models.vgg16(weights=None, init_weights=False)
    net.classifier = net.classifier[:5]
    return net


def _dinov2(size: str) -> nn.Module:
    timm = _package("timm", "timm")
    return timm.create_model(f"vit_{size}_patch14_dinov2", pretrained=False, img_size=224, num_classes=0)


def _dinov2_tensors(net: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official tensors, with position embeddings interpolated to 16 x 16 patches as in the official code."""
    there = tensors.get("pos_embed", torch.empty(0))
    if there.ndim != 3 or there.shape[1] != 1 + 37**2:
        return tensors
    grid = there[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    return tensors | {"pos_embed": torch.cat((there[:, :1], grid.flatten(2).transpose(1, 2)), 1)}


def _lite0() -> nn.Module:
    package = _package("efficientnet-lite-pytorch", "efficientnet_lite_pytorch")
    return package.EfficientNet.from_name("efficientnet-lite0")


class _AlexNet(nn.Module):
    """AlexNet's convolutions: activations [n, c, h, w] of its five layers."""

    def __init__(self) -> None:
        super().__init__()
        import_torchvision()
        self.features = import_module("torchvision").models.alexnet(weights=None).features[:12]

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in self.features:
            x = layer(x)
            found += [x] if isinstance(layer, nn.ReLU) else []
        return found


def _lpips() -> nn.Module:
    """The same, with the trained linear heads of LPIPS beside it, which the file does not have."""
    net = _AlexNet()
    for i, head in enumerate(empty_lpips().lins):
        net.register_buffer(f"head{i}", head.model[-1].weight.detach(), persistent=False)
    return net


def _pooled(net: nn.Module, x: Tensor) -> Tensor:
    """[n, 1152]: means over space of all five layers."""
    return torch.cat([layer.mean((2, 3)) for layer in net(x)], 1)


def _lpips_features(net: nn.Module, x: Tensor) -> Tensor:
    """[n, d], d growing with the image: their squared Euclidean distance is LPIPS (alex, v0.1)."""
    found = []
    for i, layer in enumerate(net(x)):
        weight = getattr(net, f"head{i}").clamp(min=0) / layer[0, 0].numel()
        found.append((layer / (layer.norm(dim=1, keepdim=True) + 1e-10) * weight.sqrt()).flatten(1))
    return torch.cat(found, 1)


def _run(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


ALEXNET = "alexnet-owt-7be5be79.pth"
NETWORKS = {
    # torch's resizing stands for pytorch-fid, as in DiffAE; the levels of the others are those of TensorFlow's graph
    "inception": Row(
        _inception,
        _pool3,
        299,
        {"bilinear": HALF, "bicubic": TENSORFLOW, "tensorflow": TENSORFLOW},
        "pt_inception-2015-12-05-6726825d.pth",
    ),
    "vgg16": Row(_vgg16, _run, 224, {"tensorflow": IMAGENET, "bicubic": IMAGENET}, "vgg16-397923af.pth"),
    "dinov2": Row(
        partial(_dinov2, "large"), _run, 224, {"bicubic": IMAGENET}, "dinov2_vitl14_pretrain.pth", _dinov2_tensors
    ),
    "dinov2_small": Row(
        partial(_dinov2, "small"), _run, 224, {"bicubic": IMAGENET}, "dinov2_vits14_pretrain.pth", _dinov2_tensors
    ),
    "lite0": Row(
        _lite0,
        lambda net, x: net.extract_features(x).mean((2, 3)),
        224,
        {"bicubic": LITE},
        "efficientnet-lite0-57934424.pth",
    ),
    "alexnet": Row(_AlexNet, _pooled, None, {"none": IMAGENET}, ALEXNET),
    "lpips": Row(_lpips, _lpips_features, None, {"none": IMAGENET}, ALEXNET),
    "faces": Row(FaceNet, _run, 224, {"bicubic": CAFFE}, "faceres-deep.bin", facenet_tensors, read_tensorflow_js),
    "pixels": Row(nn.Identity, lambda net, x: x.flatten(1), None, {"none": UNIT}, ""),
}
