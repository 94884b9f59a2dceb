"""How fast images reach the device in each way to read them, and whether that is enough for training.

"plain" is the official code's manner: one process reads, decodes and resizes each image, makes it float32 in [-1, 1],
flips it, and copies the batch to the device. The others are training_batches, without and with worker processes, and
with all images held in memory. One run delivers as many batches as hold all images, at random places. Starting the
workers and their first batches are not timed, nor is filling the caches, after which the system has the files in
memory as well.

examples:
  python -m benchmarks.data_loading --consumes 900
  python -m benchmarks.data_loading --dataset celeba --images 20000 --image_size 64 --num_workers 8
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.measure import RoundOptions, clocked, collect, read_options
from benchmarks.report import about, digits, print_table, table, write_json
from dbae.config import UserError, option, require_positive
from scripts.cli import run

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from datasets.base import ImageDataset

GENERATED = 2000  # images, where there is no data set
COLUMNS = (
    ("over consumption", ("feeds",), lambda ratio: f"{digits(ratio)}x"),
    ("at least 2x", ("enough",), lambda enough: "yes" if enough else "no"),
)

Stream = Callable[[], "Iterator[torch.Tensor]"]


@dataclass(frozen=True)
class LoadingOptions(RoundOptions):
    """What is read, and how."""

    dataset: str = option("", "data set (default: generated images in an LMDB)")
    data_root: str = option("data", "folder of the data sets")
    data_dir: str | None = option(None, "exact path of the data set instead")
    split: str = option("train", "part of the data set", ("train", "valid", "test"))
    images: int | None = option(None, f"the first N images (default: all, {GENERATED} generated)")
    image_size: int = option(64, "height and width in pixels")
    batch_size: int = option(128, "images per batch")
    num_workers: int = option(2, "worker processes of the way that has some")
    consumes: float | None = option(None, "images per second that training takes: say which ways feed twice as many")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "batch_size", "num_workers"):
            require_positive(name, getattr(self, name))
        for name in ("images", "consumes"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        if self.data_dir and not self.dataset:
            raise UserError("data_dir: expected only with a dataset")


# Data


@contextmanager
def images_to_read(options: LoadingOptions) -> "Iterator[ImageDataset]":
    """The data set that was asked for, or generated images that are there until the block ends."""
    from datasets import build

    if options.dataset:
        part = f"0:{options.images}" if options.images else None
        yield build(options.dataset, options.split, options.image_size, options.data_root, options.data_dir, part)
        return
    with TemporaryDirectory() as folder:
        generate(folder, options.images or GENERATED, options.image_size)
        yield build(f"folder:{folder}", "train", options.image_size)


def generate(folder: str, images: int, size: int) -> None:
    """Write an LMDB of images like photographs in that they are smooth with some noise, encoded as `prepare` does."""
    import numpy as np
    from PIL import Image

    from datasets.lmdb_writer import ENCODINGS, Job, write_lmdb
    from datasets.originals import Originals

    class Generated(Originals):
        def image(self, name: str) -> "Image.Image":
            rng = np.random.default_rng(int(name))
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
            return Image.fromarray((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))

    job = Job(Generated(""), f"{size}-%07d", size, next(iter(ENCODINGS)), keep_holes=False)
    write_lmdb(folder, job, [str(i) for i in range(images)], workers=1)


# Ways to read: each starts an endless stream of batches on the device


def plain(data: "ImageDataset", batch_size: int, device: "torch.device") -> "Iterator[torch.Tensor]":
    """Batches of float32 [n, 3, s, s] in [-1, 1], everything done image by image in this process."""
    import torch

    from datasets.loader import Order

    order = Order(len(data), seed=0)
    for first in count(0, batch_size):
        images = [plain_image(data, i) for i in order.indices(first, first + batch_size)]
        yield torch.stack(images).to(device)


def plain_image(data: "ImageDataset", i: int) -> "torch.Tensor":
    """Image ``i`` as float32 [3, s, s] in [-1, 1], flipped or not."""
    import numpy as np
    import torch

    image = torch.from_numpy(np.array(data.image(data.indices[i]))).permute(2, 0, 1)
    if torch.rand(()) < 0.5:
        image = image.flip(2)
    return image.float().div(255).sub(0.5).div(0.5)


def streams(data: "ImageDataset", options: LoadingOptions, device: "torch.device") -> dict[str, Stream]:
    """The ways by name; the caches are filled here."""
    from datasets.cache import cached
    from datasets.loader import training_batches

    def batches(source: Any, num_workers: int) -> Stream:
        size = options.batch_size
        return lambda: training_batches(source, size, size, 0, num_workers=num_workers, device=device)

    return {
        "plain": lambda: plain(data, options.batch_size, device),
        "0 workers": batches(data, 0),
        f"{options.num_workers} workers": batches(data, options.num_workers),
        "cache: host": batches(cached(data, "host", device), 0),
        "cache: device": batches(cached(data, "device", device), 0),
    }


def clocked_pass(stream: Stream, batches: int, warm_up: int, device: "torch.device") -> tuple[float, None]:
    """Seconds of ``batches`` batches after ``warm_up`` others. Memory is not told: other ways' caches are in it."""
    with closing(stream()) as running:
        deque(islice(running, warm_up), maxlen=0)
        seconds, _ = clocked(lambda: deque(islice(running, batches), maxlen=0), device)
    return seconds, None


def main() -> None:
    """Make or open the data, read, print."""
    options = read_options(__doc__, LoadingOptions)

    from dbae.distributed import setup

    device = setup(options.device)
    with images_to_read(options) as data:
        batches = -(-len(data) // options.batch_size)
        warm_up = 1 + options.num_workers
        ways = {
            way: partial(clocked_pass, stream, batches, warm_up, device)
            for way, stream in streams(data, options, device).items()
        }
        timings = collect(ways, options.rounds)
        title = f"{len(data)} images of {options.dataset or 'generated pictures'}, {options.image_size} px"
    rows = table(timings, "plain", batches * options.batch_size)
    if options.consumes:
        for row in rows:
            row["feeds"] = row["images_per_s"] / options.consumes
            row["enough"] = row["feeds"] >= 2
        title += f", training takes {digits(options.consumes)} images/s"
    print(f"{title}, batches of {options.batch_size}, {about(device)}")
    print_table(rows, COLUMNS)
    if options.json:
        write_json(options.json, title, device, rows, batch_size=options.batch_size, consumes=options.consumes)


if __name__ == "__main__":
    run(main)
