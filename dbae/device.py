"""Which device a process computes on, and what a GPU may do to float32."""

import os
import shutil
import subprocess

import torch

from dbae.config import UserError


def choose_device(name: str, local: int = 0) -> torch.device:
    """The device that ``name`` stands for: auto (a GPU where there is one), cpu, cuda (number ``local``) or cuda:N.

    Raises UserError for one that cannot be used. Under auto these are GPUs that are listed: with a torch without CUDA,
    or a driver too old for it, hours on the CPU would begin without a word.
    """
    unusable = name == "auto" and not torch.cuda.is_available() and gpus_are_listed()
    kind = ("cuda" if unusable or torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        chosen = torch.device(kind)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", local)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = f"({str(error).splitlines()[0]})"
        if unusable:
            raise UserError(
                f"device: nvidia-smi lists GPUs that torch {torch.__version__} cannot use {reason}; give --device cpu "
                "to go on without them"
            ) from None
        raise UserError(f"device: {name!r} cannot be used here {reason}") from None
    return chosen


def gpus_are_listed() -> bool:
    """Whether nvidia-smi lists GPUs, from which launchers count processes, and CUDA_VISIBLE_DEVICES does not hide them.

    CUDA reads that variable up to the first entry that names no GPU.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith("-") or first in ("", "NoDevFiles") or not shutil.which("nvidia-smi"):
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(line.startswith("GPU ") for line in listed.splitlines())


def allow_tf32(convolutions: bool, products: bool) -> None:
    """Whether a GPU may round the inputs of float32 convolutions, and of matrix products, to TF32's 10 bits.

    Tensor cores are then several times as fast. Torch's own default is to do so for convolutions alone.
    """
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = products
