"""Reconstruction metrics over batches of uint8 images, averaged over images.

MSE and SSIM are computed on [0, 1], LPIPS (AlexNet, v0.1) on [-1, 1]. ``SSIM`` treats colour as channels.
``SSIM_official`` is what the official evaluation script computes: the same function fed NHWC arrays, so that image
height is taken for channels and the window slides over width x RGB. It is there to be compared with published numbers.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dbae.config import UserError

Metric = Callable[[Tensor, Tensor], Tensor]


def mse(real: Tensor, fake: Tensor) -> Tensor:
    """Mean squared error [N] of images [N, 3, H, W] in [0, 1]."""
    return (real - fake).square().mean(dim=(1, 2, 3))


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


METRICS = ("MSE", "SSIM", "SSIM_official", "LPIPS")


class ReconstructionMetrics:
    """Running means of chosen metrics. Raises UserError for an unknown name, or LPIPS without its weights."""

    def __init__(
        self, names: Sequence[str] = METRICS, device: torch.device | str = "cpu", lpips_backbone: str | None = None
    ) -> None:
        known = {name.lower(): name for name in METRICS}
        unknown = [name for name in names if name.lower() not in known]
        if unknown or not names:
            raise UserError(f"metrics: expected some of {', '.join(METRICS)}, got {', '.join(names) or 'none'}")
        self.device, self.images = device, 0
        self.functions: dict[str, Metric] = {"MSE": mse, "SSIM": ssim, "SSIM_official": ssim_official}
        self.sums = {known[name.lower()]: 0.0 for name in names}
        if "LPIPS" in self.sums:
            from eval.perceptual import load_lpips

            self.functions["LPIPS"] = load_lpips(lpips_backbone, device)

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Add a batch: uint8 NHWC, as the sample files hold it. Raises UserError where the shapes differ."""
        if real.shape != fake.shape or real.ndim != 4:
            raise UserError(f"samples: expected equal shapes [N, H, W, 3], got {list(real.shape)}, {list(fake.shape)}")
        real, fake = (x.to(self.device).permute(0, 3, 1, 2).float() / 255 for x in (real, fake))
        for name in self.sums:
            self.sums[name] += self.functions[name](real, fake).double().sum().item()
        self.images += len(real)

    def merge(self, parts: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Replace the state by the union of several processes' (images, sums)."""
        self.images = sum(images for images, _ in parts)
        self.sums = {name: sum(sums[name] for _, sums in parts) for name in self.sums}

    def means(self) -> dict[str, float]:
        """Mean over all images so far, by name. Raises UserError before the first."""
        if not self.images:
            raise UserError("metrics: expected at least one image, got none")
        return {name: total / self.images for name, total in self.sums.items()}


def describe(means: dict[str, float]) -> str:
    """One line: ``MSE 0.00249  SSIM 0.8210 ...``."""
    return "  ".join(f"{name} {value:.3g}" if name == "MSE" else f"{name} {value:.4f}" for name, value in means.items())


def _blur(x: Tensor) -> Tensor:
    """Gaussian window per channel, separable, zero-padded."""
    channels = x.shape[1]
    window = _window().to(x).expand(channels, 1, 1, 11)
    x = F.conv2d(x, window, padding=(0, 5), groups=channels)
    return F.conv2d(x, window.transpose(2, 3), padding=(5, 0), groups=channels)


@lru_cache
def _window() -> Tensor:
    offsets = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    return window / window.sum()
