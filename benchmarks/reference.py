"""The reference implementation of the speed benchmarks: the same work in the official code's manner, written anew.

Contiguous tensors, no compiler; images are doubled before they are convolved; attention with einsum and softmax; one
parameter after the other in optimizer and average; losses, and every state of a sampler, are copied to the host. On a
GPU the U-Net alone is in half precision, fp16.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbae.config import TrainConfig
from dbae.diffusion import sample, time_grid
from dbae.methods import AutoEncoder, DiffusionModel
from dbae.nn.layers import Attention, UpConv2d
from dbae.training import Batches, micro_batches


class ReferenceUpConv2d(UpConv2d):
    """Doubles the image, then convolves it."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)


class ReferenceAttention(Attention):
    """Attention that holds the whole matrix of weights, normalised in float32."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        shape = x.shape if self.spatial else (batch, channels, height * width)
        qkv = self.qkv(self.norm(x).reshape(shape)).reshape(batch * self.heads, -1, height * width)
        q, k, v = qkv.chunk(3, dim=1)
        scale = q.shape[1] ** -0.25
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale).float().softmax(dim=-1).to(v.dtype)
        return x + self.proj_out(torch.einsum("bts,bcs->bct", weight, v).reshape(shape)).reshape(x.shape)


REFERENCE: dict[type[nn.Module], type[nn.Module]] = {UpConv2d: ReferenceUpConv2d, Attention: ReferenceAttention}


def reference(model: DiffusionModel) -> DiffusionModel:
    """A copy of a model with the same weights that computes as the official code does."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.__class__ = REFERENCE.get(type(module), type(module))
    model.use_amp(torch.float16 if next(model.parameters()).is_cuda else None, "unet")
    return model.to(memory_format=torch.contiguous_format)


def reference_step(model: DiffusionModel, config: TrainConfig, batches: Batches) -> Callable[[], float]:
    """A function that takes one step over the next of ``batches`` (uint8 on the host, targets): the mean loss."""
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in trained]
    optimizer = torch.optim.RAdam(trained, lr=config.lr, weight_decay=config.weight_decay, foreach=False)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**20, enabled=bool(model.amp))
    sizes = micro_batches(config, 1)

    def step() -> float:
        losses = []
        for _ in sizes:
            images, y = next(batches)
            x0 = images.float() / 127.5 - 1
            x0 = torch.where(torch.rand(len(x0), 1, 1, 1) < 0.5, x0.flip(3), x0).to(device)
            loss = model.loss(x0, y)
            scaler.scale(loss.sum() / config.batch_size).backward()
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
def reference_reconstruct(model: AutoEncoder, x0: Tensor, steps: int) -> Tensor:
    """Reconstructions of images x0 [N, 3, H, W] in [-1, 1] by the method's own sampler; all states go to the host."""
    z = model.encode(x0)
    x_T = model.infer_xT(x0, z, steps=steps)
    cond, sampling = model.condition(z=z, x_T=x_T), model.sampling(steps=steps)
    path: list[Tensor] = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        D_x = model.denoise(x_t, t, **cond).clamp(-1, 1)
        path.extend([x_t.cpu(), D_x.cpu()])
        return D_x

    ts = time_grid(model.process, steps, sampling.rho, sampling.grid)
    return sample(denoise, model.process, x_T, ts, sampling.sampler, **sampling.solver_settings).clamp(-1, 1)
