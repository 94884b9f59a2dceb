"""LPIPS (Zhang et al., CVPR 2018; the ``lpips`` package) with a choice of where AlexNet's features come from."""

import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from dbae.config import UserError

HUB_FILE = "alexnet-owt-7be5be79.pth"
_DECLARED = torch.library.Library("torchvision", "FRAGMENT")  # must outlive what it declares
TRUNK = tuple(f"features.{i}.{kind}" for i in (0, 3, 6, 8, 10) for kind in ("weight", "bias"))


def load_lpips(backbone: str | None = None, device: torch.device | str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (alex, v0.1): images [N, 3, H, W] in [0, 1], twice -> distances [N].

    ``backbone`` is a file with torchvision's AlexNet tensors ``features.*``; by default the one in torch's hub cache,
    downloaded if need be. Raises UserError, before any work, where the features or the package cannot be had.
    """
    features = _read_features(backbone or _hub_file())
    model = _empty_lpips()
    for part in (model.net.slice1, model.net.slice2, model.net.slice3, model.net.slice4, model.net.slice5):
        for index, layer in part.named_children():
            if f"features.{index}.weight" in features:
                layer.load_state_dict({kind: features[f"features.{index}.{kind}"] for kind in ("weight", "bias")})
    model = model.to(device).eval().requires_grad_(False)
    return lambda real, fake: model(real * 2 - 1, fake * 2 - 1).flatten()


def _empty_lpips() -> torch.nn.Module:
    """LPIPS with its trained linear heads and an untrained trunk."""
    import_torchvision()
    try:
        import lpips
    except ImportError:
        raise UserError("LPIPS needs the package lpips: pip install lpips, or leave LPIPS out of --metrics") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips passes torchvision arguments that are deprecated
        return lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)


def import_torchvision() -> None:
    """Import torchvision, also where a CPU build of torch meets torchvision's CUDA build.

    There two operators that torchvision decorates at import time do not exist; declaring their signatures is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in ("nms", "qnms"):
            _DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


def _read_features(path: str) -> dict[str, Tensor]:
    try:
        features = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"lpips_backbone: no such file: {path}") from None
    except Exception:
        raise UserError(f"lpips_backbone: {path} is not a file of tensors; expected AlexNet's features") from None
    missing = [name for name in TRUNK if not isinstance(features, dict) or name not in features]
    if missing:
        raise UserError(f"lpips_backbone: {path} has no tensor {missing[0]!r}; expected torchvision's AlexNet")
    return features


def _hub_file() -> str:
    """Path of AlexNet in torch's hub cache, fetched where it is not there."""
    path = os.path.join(torch.hub.get_dir(), "checkpoints", HUB_FILE)
    if not os.path.exists(path):
        url = f"https://download.pytorch.org/models/{HUB_FILE}"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.hub.download_url_to_file(url, path, hash_prefix="7be5be79", progress=True)
        except OSError:
            raise UserError(
                f"LPIPS needs AlexNet's features and {url} cannot be reached: put that file at {path}, "
                "or give --lpips_backbone PATH, or leave LPIPS out of --metrics"
            ) from None
    return path
