"""Codes of a data set by Stable Diffusion's image encoder, for the probe of DiT.

Of every training image there are several copies, each mirrored and cropped at random at the size of the data set,
before it is enlarged; of every test image one. A code is 0.18215 times a draw from the encoder's posterior. An
interrupted run goes on when it is started again; torchrun spreads it over processes.

examples:
  bash ddae/dit_latents.sh cifar10 sd-vae-ft-mse/diffusion_pytorch_model.safetensors
  python -m scripts.dit_latents --dataset toyfaces --vae_path VAE --size 64 --copies 2 --limit 200
"""

import os
import re
import shutil
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from datasets import DATASETS, Labelled, build, labelled_splits
from dbae import runtime
from dbae.config import PRECISIONS, UserError, check_choices, check_numbers, option
from dbae.io import (
    atomic_write,
    check_outputs,
    fingerprint,
    listdir,
    lock_folder,
    remove_unfinished,
    with_command,
    write_json,
)
from scripts.cli import options_of, print_options, run
from scripts.dit import REPORT, SPLITS, code_file, folder_of, label_file, load_vae, precision_name
from scripts.dit_encoding import MARGIN, SCALE, Enlarged, posterior_encoder, write_codes
from scripts.labelled import spread
from scripts.options import ImageOptions, ProgramOptions, check_given
from scripts.results import check_report

NATIVE = {"tiny": 64}  # pixels of a data set; others: 32
CODES = re.compile(r"(train|test)_code_\d+\.npy(\..+\.parts)?")  # and batches of those in the making


@dataclass(frozen=True)
class LatentOptions(ImageOptions, ProgramOptions):
    """What to encode, and where to write it. Raises UserError for values out of range."""

    dataset: str = option("", "cifar10, cifar100, tiny, toyfaces or folder:PATH; with classes")
    vae_path: str = option("", "weight file of the autoencoder in the format of diffusers, .safetensors or .bin")
    labels: str | None = option(None, "CSV with the classes of a folder of images (default: its labels.csv or folders)")
    out: str = option("latent_codes", "folder to write to, in one of the data set's name")
    copies: int = option(10, "augmented copies of every training image; more can be added later")
    native_size: int = option(0, "pixels at which images are mirrored and cropped; 0: 64 for tiny, 32 for others")
    size: int = option(256, "pixels to which they are enlarged then")
    limit: int | None = option(None, "only N images of each split, spread evenly over it")
    batch_size: int = option(16, "images that are encoded together, on each process")
    precision: str = option("auto", "auto: bf16, fp16 or fp32, the best the device has", PRECISIONS)

    def __post_init__(self) -> None:
        check_choices(self)
        check_given(self, "dataset", "vae_path")
        check_numbers(self, ["copies", "size", "batch_size", "limit"], ["native_size", "seed", "num_workers"])

    @property
    def native(self) -> int:
        return self.native_size or NATIVE.get(self.dataset, 32)

    @property
    def folder(self) -> str:
        return folder_of(self.out, self.dataset)


def class_splits(options: LatentOptions) -> dict[str, Labelled]:
    """Train and test with classes; what is held out of published sets for a choice stays in train, as officially."""
    where = {"size": options.native, "data_root": options.data_root, "data_dir": options.data_dir}
    splits = labelled_splits(options.dataset, "class", labels=options.labels, **where)
    if options.dataset in DATASETS:
        whole = build(options.dataset, "train", **where)
        splits["train"] = Labelled(whole, whole.targets("class"))
    return {split: splits[split] for split in SPLITS}


def stale_codes(settings: dict[str, Any], options: LatentOptions) -> list[str]:
    """Codes of other settings in the folder. Raises UserError for them unless they may be replaced."""
    folder, report = options.folder, os.path.join(options.folder, REPORT)
    codes = [os.path.join(folder, name) for name in listdir(folder) if CODES.fullmatch(name)]
    return [] if codes and check_report(report, codes, settings, [], "codes", options.overwrite) else codes


def begin(settings: dict[str, Any], splits: dict[str, Labelled], options: LatentOptions) -> None:
    """Clear the folder of what is to be replaced, and write the labels and what the codes are made from."""
    folder, report = options.folder, os.path.join(options.folder, REPORT)
    remove_unfinished(folder)
    for path in stale_codes(settings, options):
        (shutil.rmtree if os.path.isdir(path) else os.remove)(path)
    for split, each in splits.items():
        with atomic_write(label_file(folder, split)) as file:
            np.save(file, each.targets.values.numpy())
    made = {"made_from": with_command(settings), "data": options.dataset}
    write_json(report, made | {"classes": splits["train"].targets.names})


def main(args: list[str] | None = None) -> None:
    """Parse, check, encode."""
    options = options_of(__doc__, "codes", LatentOptions, args)
    if options.dry_run:
        return print_options(options, native_size=options.native, output=options.folder)

    # Everything that can be wrong
    device = runtime.setup(options.device)
    dtype = runtime.amp_dtype(options.precision, device)
    vae = load_vae(options.vae_path)
    factor = 2 ** (len(vae.encoder.down_blocks) - 1)
    if options.size % factor:
        raise UserError(f"size: expected a multiple of {factor}, got {options.size}")
    splits = {split: spread([each], options.limit)[0] for split, each in class_splits(options).items()}
    settings = {"scale": SCALE, "size": options.size, "margin": options.native // MARGIN, "seed": options.seed}
    settings |= {"weights": runtime.on_first(lambda: fingerprint(options.vae_path))}
    settings |= {"precision": precision_name(options.precision, dtype)}
    for split, each in splits.items():
        about = runtime.on_first(lambda data=each.dataset: data.identity())
        settings |= {f"{split} {name}": value for name, value in about.items()}
    inputs = [options.vae_path, *(path for each in splits.values() for path in each.files())]
    written = [os.path.join(options.folder, REPORT), *(label_file(options.folder, split) for split in SPLITS)]
    runtime.on_first(lambda: check_outputs(written, inputs))
    runtime.on_first(lambda: stale_codes(settings, options))
    if options.check:
        return None

    held: list[IO | None] = []  # the folder's lock, until the end
    runtime.on_first(lambda: held.append(lock_folder(options.folder)))
    runtime.on_first(lambda: begin(settings, splits, options))

    # Encode
    vae = vae.to(device)
    for split, copy in [("test", 0), *(("train", copy) for copy in range(options.copies))]:
        path, which = code_file(options.folder, split, copy), {"split": split, "copy": copy}
        images = Enlarged(splits[split].dataset, options.size, options.seed, copy if split == "train" else None)
        encode = posterior_encoder(vae, device, dtype, options.seed, split, copy)
        write_codes(path, encode, images, settings | which, options.batch_size, options.num_workers, f"{split} {copy}")
    sizes = ", ".join(f"{len(splits[split].dataset)} of {split}" for split in SPLITS)
    runtime.print0(f"codes of {sizes}, {options.copies} copies of the former: {options.folder}")
    for lock in filter(None, held):
        lock.close()
    return runtime.cleanup()


if __name__ == "__main__":
    run(main)
