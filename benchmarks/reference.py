"""The baseline of the speed benchmarks: the same networks and steps in the official code's manner, written anew.

Contiguous tensors, no compiler; images are doubled before they are convolved; attention with einsum and softmax; one
parameter after the other in optimizer and average; losses, and every state of a sampler, are copied to the host. On a
GPU the U-Net alone is in half precision, fp16.
"""

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.config import TrainConfig
from dbae.methods.dbae import DBAE
from dbae.nn.layers import Attention, UpConv2d
from dbae.nn.spectral import SpectralConv2d, SpectralUpConv2d
from dbae.performance import use_half
from dbae.sampler import sample, time_grid


class PlainUpConv2d(UpConv2d):
    """Doubles the image, then convolves it."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)


class PlainSpectralUpConv2d(SpectralConv2d, PlainUpConv2d):
    """The same with a normalised weight."""


class PlainAttention(Attention):
    """Attention that holds the whole matrix of weights, normalised in float32."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        shape = (batch, channels, height, width) if self.spatial else (batch, channels, height * width)
        qkv = self.qkv(self.norm(x).reshape(shape)).reshape(batch * self.heads, -1, height * width)
        q, k, v = qkv.chunk(3, dim=1)
        scale = q.shape[1] ** -0.25
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale).float().softmax(dim=-1).to(v.dtype)
        return x + self.proj_out(torch.einsum("bts,bcs->bct", weight, v).reshape(shape)).reshape(x.shape)


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    UpConv2d: PlainUpConv2d,
    SpectralUpConv2d: PlainSpectralUpConv2d,
    Attention: PlainAttention,
}


def plain(model: DBAE) -> DBAE:
    """A copy of a model with the same weights that computes the plain way."""
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    use_half(model, torch.float16 if next(model.parameters()).is_cuda else None, "unet")
    return model


def plain_step(model: DBAE, config: TrainConfig, batches: Iterator[Tensor]) -> Callable[[], float]:
    """A function that takes one step over the next of ``batches`` (uint8 [m, 3, H, W] on the host): the mean loss."""
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in trained]
    optimizer = torch.optim.RAdam(trained, lr=config.lr, weight_decay=config.weight_decay, foreach=False)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**20, enabled=bool(model.half))
    micro_batches = config.batch_size // config.microbatch

    def step() -> float:
        losses = []
        for _ in range(micro_batches):
            x0 = next(batches).float() / 127.5 - 1
            x0 = torch.where(torch.rand(len(x0), 1, 1, 1) < 0.5, x0.flip(3), x0).to(device)
            loss = model.loss(x0)
            scaler.scale(loss.mean() / micro_batches).backward()
            losses += loss.detach().cpu().tolist()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average, parameter in zip(averages, trained, strict=True):
                average.mul_(config.ema_rate).add_(parameter, alpha=1 - config.ema_rate)
        return sum(losses) / len(losses)

    return step


@torch.no_grad()
def plain_reconstruct(model: DBAE, x0: Tensor, steps: int) -> Tensor:
    """Reconstructions by Euler's method of images x0 [N, 3, H, W] in [-1, 1], each state of which goes to the host."""
    z = model.encode(x0)
    x_T = model.decode(z)
    path, estimates = [], []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        D_x = model.denoise(x_t, t, x_T, z).clamp(-1, 1)
        path.append(x_t.cpu())
        estimates.append(D_x.cpu())
        return D_x

    return sample(denoise, model.bridge, x_T, time_grid(model.bridge, steps)).clamp(-1, 1)
