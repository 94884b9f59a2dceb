"""What training needs: memory, the micro-batch that fits a GPU, and hours, for the published presets. Computed.

Shapes alone are followed (benchmarks/fake_gpu.py), in bf16 with float32 weights: nothing here was measured on a GPU.

example:
  python -m benchmarks.memory
"""

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.fake_gpu import fake_gpu, fake_model, saved_bytes
from benchmarks.timing import Row, markdown
from dbae.config import TrainConfig
from dbae.methods import METHODS, DiffusionModel, preset
from scripts.cli import Parser, run

PUBLISHED = (
    ("dbae", "celeba"), ("dbae", "ffhq"), ("dbae", "ffhq256"),
    ("diffae", "celeba"), ("diffae", "ffhq"), ("diffae", "ffhq256"),
    ("ddae", "DDPM_ddpm"), ("ddae_edm", "EDM_ddpmpp"),
)  # fmt: skip
GPUS = (24, 48, 80)  # GB of memory
# Bytes a parameter: weight, gradient, average and two moments in float32, a copy in half precision, and what several
# processes exchange gradients in
PER_PARAMETER = 5 * 4 + 2 + 4
RESERVE, USABLE = 1.5e9, 0.9  # bytes of CUDA itself and of libraries; the part of the rest that fragments leave
COMPILED = 1 / 3  # of the activations are left when compiled: 0.30 to 0.33 in DBAE's presets, not computed for others
GPU, PEAK, UTILISATION = "H100 SXM", 989e12, 0.4  # its dense bf16 FLOP/s, and the part of them that is assumed
LARGEST = 256  # micro-batch

COLUMNS = {
    "preset": "{preset}",
    "parameters": "{parameters_m:.0f} M",
    "weights and optimizer": "{fixed_gb:.1f} GB",
    "activations per image, eager / compiled": "{eager_mb:,.0f} / {compiled_mb:,.0f} MB",
    **{f"micro-batch in {size} GB": f"{{eager_{size}}} / {{compiled_{size}}}" for size in GPUS},
    "GFLOP per image": "{gflop:,.0f}",
    "published images": "{images_m:,.0f} M",
    "hours": "{hours:,.0f}",
}


def needs(method: type[DiffusionModel], name: str, overrides: Mapping[str, Any] | None = None) -> Row:
    """A row of the table for one preset. Raises UserError for an unknown one."""
    config, training = (preset(method, cls, name, overrides or {}) for cls in (method.Config, TrainConfig))
    with fake_gpu() as watch:
        model = fake_model(method, config)
        model.use_amp(torch.bfloat16)
        one = saved_bytes(model, 1)
        watch.clear()
        activations = saved_bytes(model, 2) - one
        flops = 3 * watch.flops / 2  # of an image, the backward pass counting twice
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fixed, images = PER_PARAMETER * parameters, training.total_steps * training.batch_size
    row: Row = {"preset": f"{method.method} {name}", "parameters_m": parameters / 1e6, "fixed_gb": fixed / 1e9}
    row |= {"eager_mb": activations / 1e6, "compiled_mb": COMPILED * activations / 1e6, "gflop": flops / 1e9}
    row |= {"images_m": images / 1e6, "hours": images * flops / (UTILISATION * PEAK) / 3600}
    for size in GPUS:
        row[f"eager_{size}"] = fitting(1e9 * size, fixed, activations)
        row[f"compiled_{size}"] = fitting(1e9 * size, fixed, COMPILED * activations)
    return row


def fitting(memory: float, fixed: float, activations: float) -> int:
    """The largest power of two of images, each with so many bytes of ``activations``, that fits; 0: not even one."""
    images = (USABLE * (memory - RESERVE) - fixed) / activations
    return min(LARGEST, 2 ** (int(images).bit_length() - 1)) if images >= 1 else 0


def main(args: list[str] | None = None) -> None:
    """Print the table."""
    Parser(__doc__).parse_args(args)
    rows = [needs(METHODS[method], name) for method, name in PUBLISHED]
    speed = f"one {GPU} at {UTILISATION:.0%} of its {PEAK / 1e12:.0f} TFLOP/s"
    print(f"Computed, not measured. Hours are those of {speed}.\n")
    print(markdown(rows, COLUMNS))


if __name__ == "__main__":
    run(main)
