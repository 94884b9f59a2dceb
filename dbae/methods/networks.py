"""The networks of a model: what they compute in, their compiled forms, their blocks, and the images that they take."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dbae.config import UserError


class Networks(nn.Module):
    """Submodules that are called through ``compute``; the denoiser is ``unet`` unless a method says otherwise."""

    FLOAT32: ClassVar[tuple[str, ...]] = ()  # networks that autocast leaves alone

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.unstated: dict[str, Any] = {}  # method and configuration, where the weight file does not state them
        self.amp: dict[str, torch.dtype] = {}  # dtype of autocast by network; the others compute in float32
        self.compiled: dict[str, set[int]] = {}  # batch sizes that compiled networks have seen in evaluation

    def block_names(self) -> list[str]:
        """Names of the network's blocks, in the order in which they are computed."""
        return [name for name, _ in self.unet.named_blocks()]

    def check_blocks(self, blocks: Sequence[str]) -> None:
        """Raise UserError unless these are names of the network's blocks, one or more."""
        unknown = [name for name in blocks if name not in self.block_names()]
        if unknown or not blocks:
            raise UserError(f"blocks: expected some of {', '.join(self.block_names())}, got {', '.join(unknown)}")

    def use_amp(self, dtype: torch.dtype | None, networks: str = "all") -> None:
        """Compute in autocast's ``dtype`` (None: float32): all networks but those of FLOAT32, or the U-Net alone."""
        names = [name for name, _ in self.named_children() if name not in self.FLOAT32]
        chosen = names if networks == "all" else [name for name in names if name == networks]
        self.amp = dict.fromkeys(chosen, dtype) if dtype else {}
        on_cpu = next(self.parameters()).device.type == "cpu"  # whose GroupNorm in bf16 is slow channels last
        for name in chosen:
            layout = torch.contiguous_format if dtype and on_cpu else torch.channels_last
            self.get_submodule(name).to(memory_format=layout)

    @property
    def precision(self) -> str:
        """What the networks compute in, in a word or two."""
        names = {torch.bfloat16: "bf16", torch.float16: "fp16"}
        if not self.amp:
            return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "fp32"
        return names[next(iter(self.amp.values()))] + " (U-Net alone)" * (list(self.amp) == ["unet"])

    def compute(self, name: str, *inputs: Any, **options: Any) -> Any:
        """What the network ``name`` gives, in its inputs' precision, computed under autocast where that is on.

        A tensor is copied, because a CUDA graph writes its next result to the same place. In evaluation a compiled
        network is not compiled again for a smaller batch: that is filled up with its last image, and the result cut.
        """
        dtype, n = self.amp.get(name), len(inputs[0])
        if name in self.compiled and not self.training:
            size = min((seen for seen in self.compiled[name] if seen >= n), default=n)
            self.compiled[name].add(size)
            if size > n:
                whole = self.compute(name, *[_filled(x, n, size) for x in inputs], **options)
                return {block: h[:n] for block, h in whole.items()} if isinstance(whole, dict) else whole[:n]
        with torch.autocast(inputs[0].device.type, dtype) if dtype else nullcontext():
            output = self.get_submodule(name)(*inputs, **options)
        return output if isinstance(output, dict) else output.to(inputs[0].dtype, copy=True)

    def checked(self, x: Tensor) -> Tensor:
        """The images x, in the precision of the weights. Raises ValueError for another shape than the model's.

        In evaluation also for values far out of [-1, 1] or not finite; in training the loader is trusted.
        """
        size = self.config.image_size
        if x.ndim != 4 or x.shape[1:] != (3, size, size) or not x.is_floating_point():
            got = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
            raise ValueError(f"images: expected float [N, 3, {size}, {size}] in [-1, 1], got {got}")
        if not self.training and len(x) and not (peak := x.detach().abs().amax()) <= 1.5:
            raise ValueError(f"images: expected values in [-1, 1], got up to {peak.item():g}")
        return x.to(next(self.parameters()).dtype)


def _filled(x: Any, n: int, size: int) -> Any:
    """A batch [n, ...] as one of ``size`` that repeats its last row, in the same memory format; other inputs as is."""
    batch = isinstance(x, Tensor) and x.ndim > 0 and len(x) == n
    return torch.cat([x, *[x[-1:]] * (size - n)]) if batch else x
