"""How much a probe gains by encoding once: 15 epochs on cached codes against encoding anew every epoch.

example:
  python -m benchmarks.probe --dataset toyfaces --images 1000 --epochs 15

Both ways give the same layer (checked). Rounds alternate; medians and the range are shown.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable

from dbae.config import ModelConfig, preset, require_positive
from scripts.cli import Parser, run


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds that ``work`` took, and its result."""
    start = time.monotonic()
    result = work()
    return time.monotonic() - start, result


def main() -> None:
    """Encode random images with an untrained preset, probe, time, print."""
    parser = Parser(__doc__)
    parser.add_argument("--dataset", default="toyfaces", metavar="NAME", help="preset of the model (default: toyfaces)")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="training images (default: 1000)")
    parser.add_argument("--epochs", type=int, default=15, metavar="N", help="epochs (default: 15)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="alternating rounds (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--json", default="", metavar="PATH", help="also write the figures there")
    options = parser.parse_args()
    for name in ("images", "epochs", "rounds"):
        require_positive(name, getattr(options, name))

    import torch

    from dbae.distributed import setup
    from dbae.model import DBAE
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

    def codes() -> Codes:
        return Codes(*(encode_dataset(encode, data, device=device, flip=flip) for flip in (False, True)), seed=0)

    def probe(draw: Callable[[int], torch.Tensor]) -> torch.Tensor:
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        *_, layer = train_linear(Part(draw, targets), loss, options.epochs, device=device)
        return layer.weight.detach()

    def every_epoch() -> torch.Tensor:
        return probe(lambda epoch: codes().draw(epoch))

    def cached_codes() -> torch.Tensor:
        return probe(codes().draw)

    kept = codes()
    ways = {"encode every epoch": every_epoch, "encode once": cached_codes, "codes on disk": lambda: probe(kept.draw)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        weights = []
        for name, work in ways.items():
            elapsed, weight = timed(work)
            seconds[name].append(elapsed)
            weights.append(weight)
        assert all(torch.equal(weights[0], weight) for weight in weights), "the ways must agree"

    plain = statistics.median(seconds["encode every epoch"])
    rows = {
        name: {
            "median_s": statistics.median(s),
            "min_s": min(s),
            "max_s": max(s),
            "ratio": plain / statistics.median(s),
        }
        for name, s in seconds.items()
    }
    about = f"{options.dataset}, {options.images} images x 2 orientations, {options.epochs} epochs, {device.type}"
    print(f"{about}, torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    print("| way | median s | range s | ratio |\n|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['median_s']:.2f} | {row['min_s']:.2f} to {row['max_s']:.2f} | {row['ratio']:.1f}x |")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"about": about, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    run(main)
