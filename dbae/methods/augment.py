"""The augmentation pipe of EDM (Karras et al., NeurIPS 2022, appendix F.2), with labels that tell the network of it.

An image is flipped, scaled, rotated, stretched and shifted, each with a small probability. A network that is told how
much does not leak this into its samples. The resampling by wavelets is that of Karras et al., Training Generative
Adversarial Networks with Limited Data, NeurIPS 2020.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dbae.io import to_device

LABELS = 9
PROBABILITY = 0.12  # of each transform but the horizontal flip, which half of the images have
SIGMA = 0.2  # of the binary logarithms of scale and stretch
SHIFT = 0.125  # standard deviation of shifts, of the image's size
SYM6 = (  # low-pass filter of the wavelet sym6
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263751278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
MARGIN = 6  # pixels around the result that the filters need


def draw_parameters(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Parameters [n, 8] of n transforms, on the CPU, 0 where one is off; in the order of the official random numbers.

    They are the flips in x and y (0 or 1), the logarithm of scale, the angle of rotation, logarithm and axis of
    stretch, and the shifts in x and y, all but flips and angles in standard deviations.
    """

    def opened(p: float, *shape: int) -> Tensor:
        return torch.rand(*shape or (n,), generator=generator) < p

    def angles() -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * math.pi

    x_flip = torch.randint(2, (n,), generator=generator) * opened(1)
    y_flip = torch.randint(2, (n,), generator=generator) * opened(PROBABILITY)
    scale = torch.randn(n, generator=generator) * opened(PROBABILITY)
    rotation = angles() * opened(PROBABILITY)
    stretch, axis = torch.randn(n, generator=generator), angles()
    stretch, axis = stretch * opened(PROBABILITY), axis * opened(0.5)
    shift = torch.randn(2, n, generator=generator) * opened(PROBABILITY, 1, n)
    return torch.stack([x_flip.float(), y_flip.float(), scale, rotation, stretch, axis, *shift], dim=1)


def augment(x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Images x [N, C, H, W] after their transforms [N, 8], and labels [N, 9]: 0 where a transform is off.

    Parameters on the CPU spare a GPU the wait for how far the transforms reach.
    """
    x_flip, y_flip, scale, rotation, stretch, axis, *shift = parameters.to(x.dtype).unbind(1)
    flips = to_device(torch.stack([x_flip, y_flip]).view(2, -1, 1, 1, 1), x.device) == 1
    turned = torch.where(flips[0], x.flip(3), x)
    turned = torch.where(flips[1], turned.flip(2), turned)
    labels = [x_flip, y_flip, scale, rotation.cos() - 1, rotation.sin(), stretch * axis.cos(), stretch * axis.sin()]
    height, width = x.shape[2:]
    s, a = 2 ** (SIGMA * scale), 2 ** (SIGMA * stretch)
    G = _stretched(1 / s, 1 / s) @ _rotated(rotation) @ _rotated(-axis) @ _stretched(1 / a, a) @ _rotated(axis)
    G = G @ _shifted(-SHIFT * width * shift[0], -SHIFT * height * shift[1])
    return resampled(turned, G), to_device(torch.stack([*labels, *shift], dim=1), x.device)


def resampled(x: Tensor, G: Tensor) -> Tensor:
    """x [N, C, H, W] under affine maps G [N, 3, 3] from places in the result to places in x, by a wavelet's filters.

    Places are in pixels from the centre, x to the right, y down. What lies outside of x is its reflection.
    """
    channels, height, width = x.shape[1:]

    # Pad by how far the batch's corners reach out
    half = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=G.device)
    signs = half.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = (G @ F.pad(signs * half, (0, 1), value=1.0).T.to(G))[:, :2]  # [N, 2, 4]
    reach = torch.stack([(-corners).amax((0, 2)), corners.amax((0, 2))])  # left, top; right, bottom
    (left, top), (right, bottom) = (reach + MARGIN - half).ceil().tolist()
    left, right = (int(min(max(side, 0), width - 1)) for side in (left, right))
    top, bottom = (int(min(max(side, 0), height - 1)) for side in (top, bottom))
    x = F.pad(x, (left, right, top, bottom), mode="reflect")
    G = _shifted(*G.new_tensor([left - right, top - bottom]).div(2)) @ G

    # Sample the image of twice the resolution, and halve the result
    x = _doubled(x)
    half_pixel, two = G.new_tensor(0.5), G.new_tensor(2.0)
    G = _shifted(-half_pixel, -half_pixel) @ _stretched(two, two) @ G
    G = G @ _stretched(1 / two, 1 / two) @ _shifted(half_pixel, half_pixel)
    size = (2 * (height + MARGIN), 2 * (width + MARGIN))
    into = _stretched(*G.new_tensor([2 / x.shape[3], 2 / x.shape[2]]))
    G = into @ G @ _stretched(*G.new_tensor([size[1] / 2, size[0] / 2]))
    grid = F.affine_grid(to_device(G[:, :2], x.device), [len(x), channels, *size], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    cut = MARGIN // 2
    return _halved(x)[:, :, cut:-cut, cut:-cut]


def _doubled(x: Tensor) -> Tensor:
    """Both axes of length L to 2 L: zeros between the pixels, and the reversed filter."""
    n, channels, height, width = x.shape
    sparse = x.new_zeros(n, channels, 2 * height - 1, 2 * width - 1)
    sparse[:, :, ::2, ::2] = x
    return _filtered(sparse, SYM6[::-1], padding=6, stride=1)


def _halved(x: Tensor) -> Tensor:
    return _filtered(x, SYM6, padding=5, stride=2)


def _filtered(x: Tensor, taps: Sequence[float], padding: int, stride: int) -> Tensor:
    """Correlation of both axes with ``taps``."""
    channels = x.shape[1]
    kernel = to_device(torch.tensor(taps, dtype=x.dtype), x.device).expand(channels, 1, 1, -1)
    x = F.conv2d(x, kernel, padding=(0, padding), stride=(1, stride), groups=channels)
    return F.conv2d(x, kernel.mT, padding=(padding, 0), stride=(stride, 1), groups=channels)


def _matrix(*rows: tuple[Tensor, ...]) -> Tensor:
    """[..., 3, 3] of the first two rows; what is 0 is one element of the others' kind."""
    last = (torch.zeros_like(rows[0][0]), torch.zeros_like(rows[0][0]), torch.ones_like(rows[0][0]))
    return torch.stack([torch.stack(row, dim=-1) for row in (*rows, last)], dim=-2)


def _rotated(angle: Tensor) -> Tensor:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _matrix((cos, -sin, zero), (sin, cos, zero))


def _stretched(x: Tensor, y: Tensor) -> Tensor:
    zero = torch.zeros_like(x)
    return _matrix((x, zero, zero), (zero, y, zero))


def _shifted(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix((one, zero, x), (zero, one, y))
