"""How a model computes, not what: precision, compilation, checkpointing.

The numbers stay, up to rounding; but compiled on a GPU, dropout draws other masks from the same seed.
"""

import warnings

import torch
from torch import nn

from dbae.config import HALVES, UserError
from dbae.distributed import warn0
from dbae.nn.layers import BlockSequential

COMPILE_MODES = {"true": "default", "graphs": "reduce-overhead"}  # our name -> that of torch.compile


def half_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The half precision that is meant, None for float32. ``auto`` is bf16 on GPUs that have it, fp16 on older ones.

    Raises UserError for one that the device does not compute in.
    """
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"precision: fp16 needs a GPU, the device is {device.type}; expected fp32, bf16 or auto")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def use_half(model: nn.Module, dtype: torch.dtype | None, networks: str = "all") -> None:
    """Compute ``networks`` (a name of HALVES) in a half precision, weights staying float32; None: all in float32."""
    model.half = dict.fromkeys(HALVES[networks], dtype) if dtype else {}


def precision_of(model: nn.Module) -> str:
    """What the networks compute in, as ``use_half`` set it: fp32, bf16 or fp16, and whether the U-Net alone does."""
    names = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return names[model.half.get("unet")] + " (U-Net alone)" * (len(model.half) == 1)


def use_compile(model: nn.Module, mode: str, device: torch.device) -> bool:
    """Compile the three networks, each at its first use and at each new shape.

    ``mode`` is ``true``, ``graphs`` (CUDA graphs: for networks so small that starting kernels takes longer than running
    them), ``false``, or ``auto``: true on GPUs. Where nothing can be compiled, a warning says why and nothing changes.
    Returns whether the networks are compiled now.
    """
    if mode == "false" or (mode == "auto" and device.type != "cuda"):
        return False
    problem = _cannot_compile(device)
    if problem:
        warn0(f"compile: not possible here, going on without: {problem}")
        return False
    torch._dynamo.config.optimize_ddp = False  # it cuts graphs by the storage of parameters, and here all share one
    for name in HALVES["all"]:
        model.get_submodule(name).compile(mode=COMPILE_MODES.get(mode, "default"), dynamic=False)
    return True


def use_checkpointing(model: nn.Module) -> None:
    """Keep only the inputs of the blocks of encoder and U-Net in training, and compute the rest twice: less memory."""
    for module in model.modules():
        if isinstance(module, BlockSequential):
            module.checkpointing = True


def _cannot_compile(device: torch.device) -> str | None:
    """Why a compiled function with a gradient fails on this machine; None where it works."""
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            x = torch.ones(16, device=device, requires_grad=True)
            torch.compile(lambda x: torch.nn.functional.silu(x * 2))(x).sum().backward()
    except Exception as error:  # a missing compiler, Triton, Python.h...: dozens of kinds
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None
