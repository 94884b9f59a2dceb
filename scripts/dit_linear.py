"""Linear probe of DiT: how well linear layers tell the classes of images from features of noised codes.

The codes are those of `bash ddae/dit_latents.sh`, or a folder of the official code. Every access draws one of the
copies of an image and fresh noise; a feature is the mean over the tokens of a layer's output, and the network runs to
the last layer asked for. Adam with a cosine over the epochs; the accuracy is that on the test codes after the last one.

examples:
  bash ddae/dit_linear.sh cifar10 DiT-XL-2-256x256.pt
  python -m scripts.dit_linear --dataset tiny --dit_path DiT-XL-2-256x256.pt --layers layer-12 layer-13 --time 81

Batch size and learning rate are those of all processes together: officially 128 and 1e-3 for each of 4.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dbae import runtime
from dbae.config import PRECISIONS, UserError, check_choices, check_numbers, option
from dbae.diffusion import Diffusion, LinearBeta
from dbae.io import Generators, fingerprint, randn_like, with_command, write_json
from dbae.nn.dit import DiT
from dbae.tensors import write_tensors
from scripts.classifiers import Inputs, Recipe, Training, accuracies, cosine, logits
from scripts.cli import options_of, print_options, run
from scripts.common import result_folder
from scripts.dit import CodeFolder, folder_of, load_dit, precision_name, read_folder
from scripts.options import ProgramOptions, check_given
from scripts.results import begin
from scripts.tables import write_table

CHAIN = 1000  # times of DiT's noise, from 0
TIMES = {"tiny": 81}  # whose noise the codes get; other sets: 121
PREFIX = "layer-"
WRITTEN = ("results.json", "linear.pt", "training.pt")


@dataclass(frozen=True)
class DiTProbeOptions(ProgramOptions):
    """What is probed, and how. Raises UserError for values out of range."""

    dataset: str = option("", "data set whose codes are there, by the name given to dit_latents")
    dit_path: str = option("", "weight file of DiT, .pt or .safetensors")
    codes: str = option("latent_codes", "folder in which dit_latents wrote, in one of the data set's name")
    copies: int = option(0, "copies of the training images that are used; 0: all that are there")
    layers: tuple[str, ...] = option(("layer-13",), "layers of DiT, from layer-0, each with a classifier of its own")
    time: int = option(-1, "time of the noise, 0 to 999; -1: 81 for tiny, 121 for others")
    heads: int = option(0, "attention heads of DiT, which the file does not tell; 0: as published for its width")
    epochs: int = option(30, "passes over the training images")
    batch_size: int = option(512, "codes per step over all processes (officially 128 on each of 4)")
    lr: float = option(4e-3, "learning rate of Adam (officially 1e-3 times 4 processes)")
    test_batch_size: int = option(256, "test codes that pass through the network together, on each process")
    precision: str = option("auto", "auto: bf16, fp16 or fp32, the best the device has", PRECISIONS)
    out: str | None = option(None, "folder to write to in place of the weight file's")

    def __post_init__(self) -> None:
        check_choices(self)
        check_given(self, "dataset", "dit_path", "layers")
        check_numbers(self, ["epochs", "batch_size", "lr", "test_batch_size"], ["copies", "heads", "seed"])
        if not -1 <= self.time < CHAIN:
            raise UserError(f"time: expected 0 to {CHAIN - 1}, got {self.time}")

    @property
    def t(self) -> int:
        return TIMES.get(self.dataset, 121) if self.time < 0 else self.time

    def path(self, name: str) -> str:
        """Where a result is written."""
        which = f"{os.path.basename(folder_of('', self.dataset))}_t{self.t}"
        return os.path.join(result_folder(self.dit_path, "linear", which, out=self.out), name)


def features(net: DiT, layers: Sequence[str], time: int, dtype: torch.dtype | None) -> Inputs:
    """Codes [n, C, h, w] -> by layer its mean token [n, width], for no class and codes with fresh noise of a time."""
    process = Diffusion(LinearBeta(CHAIN))

    @torch.no_grad()
    def noised(x: Tensor, generator: Generators) -> Mapping[str, Sequence[Tensor]]:
        t = torch.full((len(x),), time, device=x.device)
        x_t = process.marginal(x, t, randn_like(x, generator))
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            return {layer: (mean,) for layer, mean in net(x_t, t, blocks=layers).items()}

    return noised


def check_layers(net: DiT, layers: Sequence[str]) -> list[str]:
    """The layers, each once. Raises UserError for one that DiT does not have."""
    known = [f"{PREFIX}{i}" for i in range(len(net.blocks))]
    for layer in layers:
        if layer not in known:
            raise UserError(f"layers: expected {known[0]} to {known[-1]}, got {layer!r}")
    return sorted(set(layers), key=known.index)


def check_codes(net: DiT, codes: CodeFolder, folder: str) -> None:
    """Raise UserError where the network takes codes of another size."""
    channels, patch = net.x_embedder.proj.weight.shape[1:3]
    side = round(net.pos_embed.shape[1] ** 0.5) * patch
    found = tuple(codes.codes["train"].copies[0].shape[1:])
    if found != (channels, side, side):
        expected = f"expected codes of {channels}x{side}x{side} for this DiT, got {'x'.join(map(str, found))}"
        raise UserError(f"codes: {folder}: {expected}; dit_latents --size decides")


def show(report: dict[str, Any], options: DiTProbeOptions) -> None:
    made, images = report["made_from"], report["images"]
    print(f"time {made['time']}, {images['train']} training and {images['test']} test images, seed {made['seed']}\n")
    rows = [(layer, f"{100 * value:.2f}") for layer, value in report["accuracy"].items()]
    write_table(("layer", "test accuracy, %"), rows)
    print(f"\n({options.path('results.json')})")


def main(args: list[str] | None = None) -> None:
    """Parse, check, train, test, write."""
    options = options_of(__doc__, "probe", DiTProbeOptions, args)
    if options.dry_run:
        return print_options(options, time=options.t, output=options.path("results.json"))

    # Everything that can be wrong
    device = runtime.setup(options.device)
    dtype = runtime.amp_dtype(options.precision, device)
    folder = folder_of(options.codes, options.dataset)
    data = read_folder(folder, options.copies)
    net = load_dit(options.dit_path, options.heads)
    layers = check_layers(net, options.layers)
    check_codes(net, data, folder)
    adam = partial(torch.optim.Adam, lr=options.lr)
    recipe = Recipe(options.epochs, options.batch_size, adam, cosine(options.epochs), seed=options.seed)
    settings = with_command({
        "weights": runtime.on_first(lambda: fingerprint(options.dit_path)),
        "heads": net.blocks[0].attn.heads, "layers": layers, "time": options.t, "codes": data.digest,
        "copies": len(data.codes["train"].copies), "precision": precision_name(options.precision, dtype),
        **{name: getattr(options, name) for name in ("epochs", "batch_size", "lr", "seed")},
    })  # fmt: skip
    torch.manual_seed(options.seed)
    classifiers = {layer: nn.Linear(net.pos_embed.shape[2], len(data.names)) for layer in layers}
    result, weights, state = map(options.path, WRITTEN)
    training = Training(classifiers, recipe, device, state, settings)
    report = begin(training, result, [weights], [options.dit_path], options)
    if options.check:
        return None
    if report:
        if runtime.rank() == 0:
            show(report, options)
        return runtime.cleanup()

    # Train
    del net.blocks[int(layers[-1].removeprefix(PREFIX)) + 1 :]  # what is never run need not be in memory
    inputs = features(net.to(device), layers, options.t, dtype)
    training.run(data.codes["train"], data.classes["train"].to(device), inputs)

    # Test and report
    test = logits(training.classifiers, data.codes["test"], inputs, device, options.test_batch_size, options.seed)
    if runtime.rank() == 0:
        report = {
            "checkpoint": options.dit_path, "accuracy": accuracies(test, data.classes["test"]),
            "images": {split: len(codes) for split, codes in data.codes.items()}, "classes": data.names,
            "made_from": settings, "codes": {"folder": folder, "made_from": data.made_from},
        }  # fmt: skip
        tensors = {f"{n}.{k}": v for n, c in training.classifiers.items() for k, v in c.state_dict().items()}
        write_tensors(weights, tensors)
        write_json(result, report)
        os.remove(state)
        show(report, options)
    return runtime.cleanup()


if __name__ == "__main__":
    run(main)
