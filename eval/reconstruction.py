"""Reconstruction metrics over batches of uint8 images, averaged over images.

MSE and SSIM are computed on [0, 1], LPIPS (AlexNet, v0.1) on [-1, 1]. ``SSIM`` treats colour as channels.
``SSIM_official`` is what the official evaluation script computes: the same function fed NHWC arrays, so that image
height is taken for channels and the window slides over width x RGB. It is there to be compared with published numbers.
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.config import UserError
from dbae.tensors import read_tensors

TRUNKS = {
    "alex": ("AlexNet", "alexnet-owt-7be5be79.pth"),
    "vgg": ("VGG16", "vgg16-397923af.pth"),
}  # torchvision's files
_DECLARED = torch.library.Library("torchvision", "FRAGMENT")  # must outlive what it declares


def mse(real: Tensor, fake: Tensor) -> Tensor:
    """Mean squared error [N] of images [N, 3, H, W] in [0, 1]."""
    return (real - fake).square().mean(dim=(1, 2, 3))


def psnr(real: Tensor, fake: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [N] in dB, ``-10 log10(MSE)``; of equal images 100."""
    return -10 * mse(real, fake).clamp(min=1e-10).log10()


def ssim(real: Tensor, fake: Tensor) -> Tensor:
    """Structural similarity [N] of images [N, C, H, W] in [0, 1] (Wang et al., 2004), mean over the whole map.

    11x11 Gaussian window of standard deviation 1.5, zero padding, per channel, C1 = 0.01^2, C2 = 0.03^2.
    """
    mu_r, mu_f = _blur(real), _blur(fake)
    var_r = _blur(real * real) - mu_r**2
    var_f = _blur(fake * fake) - mu_f**2
    covariance = _blur(real * fake) - mu_r * mu_f
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mu_r * mu_f + c1) / (mu_r**2 + mu_f**2 + c1)
    return (luminance * (2 * covariance + c2) / (var_r + var_f + c2)).mean(dim=(1, 2, 3))


def ssim_official(real: Tensor, fake: Tensor) -> Tensor:
    """SSIM [N] of images [N, 3, H, W] fed as NHWC: for comparison with the published table only."""
    return ssim(real.permute(0, 2, 3, 1), fake.permute(0, 2, 3, 1))


FUNCTIONS = {"MSE": mse, "PSNR": psnr, "SSIM": ssim, "SSIM_official": ssim_official}
METRICS = (*FUNCTIONS, "LPIPS")


class ReconstructionMetrics:
    """Running means of chosen metrics. Raises UserError for an unknown name, or LPIPS without its weights."""

    def __init__(
        self, names: Sequence[str] = METRICS, device: torch.device | str = "cpu", lpips_backbone: str | None = None
    ) -> None:
        known = {name.lower(): name for name in METRICS}
        if not names or any(name.lower() not in known for name in names):
            raise UserError(f"metrics: expected some of {', '.join(METRICS)}, got {', '.join(names) or 'none'}")
        self.device, self.images = device, 0
        self.sums = {known[name.lower()]: np.zeros(2) for name in names}  # of values, and of their squares
        self.functions = dict(FUNCTIONS)
        if "LPIPS" in self.sums:
            self.functions["LPIPS"] = load_lpips(lpips_backbone, device)

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Add a batch: uint8 NHWC, as the sample files hold it.

        Raises UserError where the shapes differ, and where a metric is not finite.
        """
        if real.shape != fake.shape or real.ndim != 4:
            raise UserError(f"samples: expected equal shapes [N, H, W, 3], got {list(real.shape)}, {list(fake.shape)}")
        real, fake = (x.to(self.device).permute(0, 3, 1, 2).float() / 255 for x in (real, fake))
        for name in self.sums:
            values = self.functions[name](real, fake).double().cpu().numpy()
            if not np.isfinite(values).all():
                raise UserError(f"{name}: expected finite values, got {values.sum()}; are its weights damaged?")
            self.sums[name] += values.sum(), np.square(values).sum()
        self.images += len(real)

    def merge(self, parts: Sequence[tuple[int, dict[str, np.ndarray]]]) -> None:
        """Replace the state by the union of several processes' (images, sums)."""
        self.images = sum(images for images, _ in parts)
        self.sums = {name: sum(sums[name] for _, sums in parts) for name in self.sums}

    def means(self) -> dict[str, float]:
        """Mean over all images so far, by name. Raises UserError before the first."""
        if not self.images:
            raise UserError("metrics: expected at least one image, got none")
        return {name: float(total / self.images) for name, (total, _) in self.sums.items()}

    def standard_errors(self) -> dict[str, float]:
        """Standard error of each mean, over images; of a single image 0."""
        n, found = self.images, {}
        for name, (total, squares) in self.sums.items():
            found[name] = math.sqrt(max(squares - total**2 / n, 0) / max(n - 1, 1) / n)
        return found


def describe(means: dict[str, float]) -> str:
    """One line: ``MSE 0.00249  SSIM 0.8210 ...``."""
    return "  ".join(f"{name} {value:.3g}" if name == "MSE" else f"{name} {value:.4f}" for name, value in means.items())


def _blur(x: Tensor) -> Tensor:
    """Gaussian window per channel, separable, zero-padded."""
    channels = x.shape[1]
    offsets = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = (window / window.sum()).to(x).expand(channels, 1, 1, 11)
    x = F.conv2d(x, window, padding=(0, 5), groups=channels)
    return F.conv2d(x, window.transpose(2, 3), padding=(5, 0), groups=channels)


# LPIPS (Zhang et al., CVPR 2018): the package lpips, with a choice of where the trunk's features come from


def load_lpips(
    backbone: str | None = None, device: torch.device | str = "cpu", net: str = "alex"
) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (alex or vgg, v0.1): images [N, 3, H, W] in [0, 1], twice -> distances [N].

    ``backbone`` is a file with the tensors ``features.*`` of torchvision's AlexNet or VGG16; by default the one in
    torch's hub cache, downloaded if need be. Raises UserError, before any work, where the features or the package
    cannot be had.
    """
    path = backbone or _hub_file(net)
    if not os.path.exists(path):
        raise UserError(f"lpips_backbone: no such file: {path}")
    features = read_tensors(path)
    model = empty_lpips(net)
    for part in model.net.children():  # slices of torchvision's sequence, whose layers keep their numbers
        for name, value in part.state_dict().items():
            if getattr(features.get(f"features.{name}"), "shape", None) != value.shape:
                raise UserError(
                    f"lpips_backbone: {path} has no tensor 'features.{name}' {list(value.shape)}; "
                    f"expected torchvision's {TRUNKS[net][0]}"
                )
        part.load_state_dict({name: features[f"features.{name}"] for name in part.state_dict()})
    model = model.to(device).eval().requires_grad_(False)
    return lambda real, fake: model(real * 2 - 1, fake * 2 - 1).flatten()


def empty_lpips(net: str = "alex") -> nn.Module:
    """LPIPS with its trained linear heads and an untrained trunk."""
    import_torchvision()
    try:
        import lpips
    except ImportError:
        raise UserError("LPIPS needs the package lpips: pip install lpips, or leave LPIPS out of --metrics") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips passes torchvision arguments that are deprecated
        return lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)


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


def _hub_file(net: str) -> str:
    """Path of the trunk in torch's hub cache, fetched where it is not there."""
    trunk, file = TRUNKS[net]
    path = os.path.join(torch.hub.get_dir(), "checkpoints", file)
    if not os.path.exists(path):
        url = f"https://download.pytorch.org/models/{file}"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.hub.download_url_to_file(url, path, hash_prefix=file[-12:-4], progress=True)
        except OSError:
            raise UserError(
                f"LPIPS needs {trunk}'s features and {url} cannot be reached: put that file at {path}, "
                "or give --lpips_backbone PATH, or leave LPIPS out of --metrics"
            ) from None
    return path
