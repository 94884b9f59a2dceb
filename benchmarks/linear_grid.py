"""What a grid of linear probes costs: the official procedure next to features that are computed once.

official: every epoch and time anew, of crops, flips and fresh noise, all training images through the network, and the
test images once per time; cached: one pass per time over all images, and an exact solution for every cell. Network
calls are counted by image while they run; GFLOP are those of one call, times their number. The ratio compares with the
first variant.

examples:
  python -m benchmarks.linear_grid --dataset DDPM_toyfaces --images 60 --test_images 20
  python -m benchmarks.linear_grid --dataset DDPM_ddpm --rounds 0            counted alone, for 50,000 and 10,000 images
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import Benchmark
from benchmarks.timing import COLUMNS, Work, measure, report, table
from datasets import labelled_splits
from datasets.sets import TOY_SPLITS
from dbae import runtime
from dbae.config import UserError, option
from dbae.methods import METHODS, DiffusionModel
from scripts.cli import options_of, run
from scripts.labelled import drawn, read
from scripts.linear_cached import CachedProbe, by_time
from scripts.linear_official import OnTheFly, features_of
from scripts.linear_options import LinearOptions, cells_of
from scripts.trained import TrainedModel

SHOWN = {
    "variant": "{variant}",
    "network calls": "{calls:,}",
    "GFLOP": "{gflop:,.0f}",
    "calls ratio": "{calls_ratio:.1f}x",
    **{name: COLUMNS[name] for name in ("median s", "range s", "ratio", "ratio in rounds")},
}


@dataclass(frozen=True)
class Grid(Benchmark):
    """Compare the official grid with that of cached features, on toy faces for a network with random weights."""

    method: str = option("ddae", f"method whose preset it is: {', '.join(METHODS)}")
    dataset: str = option("DDPM_toyfaces", "configuration or data set whose preset says what the model is")
    rounds: int = option(3, "timed rounds, in each of which every variant runs once; 0: count alone")
    images: int = option(50_000, "training images, a tenth of them held out by the grid of cached features")
    test_images: int = option(10_000, "test images")
    epochs: int = option(15, "epochs of the official procedure")

    VARIANTS = ("official", "cached")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is int and value < (0 if name == "rounds" else 1):
                raise UserError(f"{name}: expected a number above 0, got {value}")
        if self.method not in METHODS:
            raise UserError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        for name, value, split in (("images", self.images, "train"), ("test_images", self.test_images, "test")):
            if self.rounds and value > (most := len(TOY_SPLITS[split])):
                raise UserError(f"{name}: expected at most {most} to be timed (--rounds 0 counts alone), got {value}")

    @property
    def variant(self) -> type[DiffusionModel]:
        return METHODS[self.method].variant(self.dataset)

    def build_model(self) -> DiffusionModel:
        method = self.variant
        torch.manual_seed(0)
        fields = {k: v for k, v in method.preset_row(self.dataset).items() if k in method.Config.__dataclass_fields__}
        return method(method.Config(**fields)).eval()

    def counted(self, model: DiffusionModel) -> dict[str, int]:
        """Images through the network by variant, from the procedures alone."""
        times = len(by_time(cells_of(model, self.settings("", "exact"))))
        train = {"official": self.epochs * self.images, "cached": self.images}
        return {name: times * (number + self.test_images) for name, number in train.items()}

    def settings(self, folder: str, probe: str) -> LinearOptions:
        row = {"config": self.dataset} if self.variant.ROWS == "config" else {}
        path = f"{folder}/ema_0.9999_000001.pt"
        return LinearOptions(
            method=self.variant.method,
            dataset="toyfaces",
            model_path=path,
            grid=True,
            probe=probe,
            epochs=self.epochs,
            **row,
        )

    def work(self, device_name: str, variant: str) -> Work:
        """Return the number of calls, by image; every run begins in a folder of its own."""
        device, model = runtime.setup(device_name), self.build_model()
        model = model.to(device).requires_grad_(False)
        trained, calls, network = TrainedModel(model, model.SAMPLING), [], model.network
        model.network = lambda x, *args, **how: calls.append(len(x)) or network(x, *args, **how)
        splits = labelled_splits("toyfaces", "class", model.config.image_size)
        held_out = self.images // 10
        sizes = {"train": self.images - held_out, "valid": held_out, "test": self.test_images}
        splits = {split: drawn(each, sizes[split], 0) for split, each in splits.items()}

        def grid() -> int:
            calls.clear()
            with tempfile.TemporaryDirectory() as folder:
                options = self.settings(folder, "official" if variant == "official" else "exact")
                cells = cells_of(model, options)
                if variant == "official":
                    names = [f"{cell.time}/{cell.block}" for cell in cells]
                    data = {split: read([each], device) for split, each in splits.items()}
                    fly = OnTheFly(options, device, data, len(splits["train"].targets.names), f"{folder}/grid", {})
                    inputs = features_of(trained, cells, names)
                    x = torch.zeros(1, 3, model.config.image_size, model.config.image_size, device=device)
                    widths = {name: z.shape[1] for name, (z,) in inputs(x, None).items()}
                    calls.clear()
                    fly.fit(inputs, widths, ["train", "valid"], ["test"], "")
                else:
                    probe = CachedProbe(trained, options, splits, {split: {} for split in splits})
                    probe.encode(cells)
                    probe.fit(cells)
            return sum(calls)

        return Work(grid)

    def compare(self) -> None:
        """Count, time, print and write."""
        device, model, names = runtime.setup(self.device), self.build_model(), list(self.VARIANTS)
        counted, cost = self.counted(model), flops(model, model.block_names())
        rows: list[dict[str, Any]] = [{"variant": name} for name in names]
        if self.rounds:
            timings, made = measure(self.work, {name: (device.type, name) for name in names}, self.rounds)
            if made != counted:
                raise RuntimeError(f"expected {counted} calls of the network, it was called {made} times")
            rows = table(timings, self.images)
        for row in rows:
            calls = counted[row["variant"]]
            row |= {"calls": calls, "gflop": calls * cost, "calls_ratio": counted[names[0]] / calls}
        title = f"{self.dataset}, {self.images:,} training and {self.test_images:,} test images"
        report(title, device, rows, self.json, SHOWN, options=asdict(self))
        block = getattr(model, "FEATURES", (model.block_names()[0],))[0]
        costs = f"whole network {flops(model):.2f}, all blocks {cost:.2f}, up to {block} {flops(model, [block]):.2f}"
        print(f"GFLOP of a call: {costs}")


@torch.no_grad()
def flops(model: DiffusionModel, blocks: Sequence[str] | None = None) -> float:
    """GFLOP (a multiplication and an addition are 2) of a call for one image: of the whole network, or up to blocks."""
    size = model.config.image_size
    x, t = torch.zeros(1, 3, size, size), torch.ones(1)
    cond = model.condition(x)
    with FlopCounterMode(display=False) as counter:
        model.network(x, t, blocks=blocks and tuple(blocks), **cond)
    return counter.get_total_flops() / 1e9


def main(args: list[str] | None = None) -> None:
    """Read the options, and run it."""
    options_of(__doc__, "options", Grid, args).compare()


if __name__ == "__main__":
    run(main)
