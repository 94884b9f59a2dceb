"""How much a probe gains by encoding once: 15 epochs on cached codes against encoding anew every epoch.

example:
  python -m benchmarks.probe --dataset toyfaces --images 1000 --epochs 15

Both ways give the same layer (checked). Rounds alternate; medians and the range are shown. An image counts once per
epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.measure import SpeedOptions, alternate, read_options
from benchmarks.report import about, print_table, table, write_json
from dbae.config import ModelConfig, option, preset, require_positive
from scripts.cli import run


@dataclass(frozen=True)
class ProbeOptions(SpeedOptions):
    """What is probed, and how long."""

    rounds: int = option(3, "alternating rounds")
    images: int = option(1000, "training images")
    epochs: int = option(15, "epochs")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("images", "epochs"):
            require_positive(name, getattr(self, name))


def main() -> None:
    """Encode random images with an untrained preset, probe, time, print."""
    options = read_options(__doc__, ProbeOptions)

    import torch

    from dbae.distributed import setup
    from dbae.methods.dbae import DBAE
    from eval.latents import Codes, encode_dataset
    from eval.probe import Part, train_linear
    from scripts.encoding import statistics as encoder

    device = setup(options.device)
    torch.manual_seed(0)
    config = preset(ModelConfig, options.dataset, {})
    encode = encoder(DBAE(config).to(device).eval())
    size = config.image_size
    data = [(torch.randint(0, 256, (3, size, size), dtype=torch.uint8), i) for i in range(options.images)]
    targets = (torch.rand(options.images, 40) < 0.3).float()
    weights: dict[str, torch.Tensor] = {}

    def codes() -> Codes:
        return Codes(*(encode_dataset(encode, data, device=device, flip=flip) for flip in (False, True)), seed=0)

    def probe(way: str, draw: Callable[[], Callable[[int], torch.Tensor]]) -> None:
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        *_, layer = train_linear(Part(draw(), targets), loss, options.epochs, device=device)
        weights[way] = layer.weight.detach()

    kept = codes()
    draws = {
        "encode every epoch": lambda: lambda epoch: codes().draw(epoch),
        "encode once": lambda: codes().draw,
        "codes on disk": lambda: kept.draw,
    }
    timings = alternate({way: partial(probe, way, draw) for way, draw in draws.items()}, options.rounds, device)
    if not all(torch.equal(weights["codes on disk"], weight) for weight in weights.values()):
        raise RuntimeError("the ways must agree")

    title = f"{options.dataset}, {options.images} images x 2 orientations, {options.epochs} epochs"
    rows = table(timings, "encode every epoch", options.images * options.epochs)
    print(f"{title}, {about(device)}")
    print_table(rows)
    if options.json:
        write_json(options.json, title, device, rows)


if __name__ == "__main__":
    run(main)
