"""Write the codes of a data set or folder to one .npz or .safetensors file.

example:
  python -m scripts.encode --dataset celeba --schedule vp --model_path ckpt/celeba/sto/ema_0.9999_980000.pt \\
      --split test --out celeba_test.npz

The file holds z [n, d], for stochastic encoders also mu and log_sigma, index [n], labels [n, k] where the data set has
some, and as JSON text the settings, the images' names and the labels' names. An interrupted run goes on when it is
started again; torchrun spreads it over processes. With --on_bad_image skip, images that cannot be read are left out of
all arrays and listed in OUT_bad_images.json.
"""

import json
import os
from dataclasses import dataclass

import torch

from datasets.tolerant import FILE, POLICIES, Tolerant
from dbae import runtime
from dbae.config import PRECISIONS, RuntimeConfig, UserError, option
from dbae.io import check_outputs, fingerprint
from eval.arrays import Arrays, read_arrays
from scripts.cli import Parser, run
from scripts.common import build_data, compile_for, load, parse, print_dry_run
from scripts.encoding import encode_to_file, noise_settings, precision_setting
from scripts.options import DataOptions
from scripts.trained import TrainedModel


@dataclass(frozen=True)
class EncodeOptions(DataOptions, RuntimeConfig):
    """What to encode, and where to write it."""

    precision: str = option("fp32", "precision of the encoder; half precision changes codes a little", PRECISIONS)

    on_bad_image: str = option("fail", "end at a bad image, or skip it and list it at the end", POLICIES)
    out: str = option("codes.npz", "file to write, .npz or .safetensors")
    flip: bool = option(False, "encode the mirrored images")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out.endswith((".npz", ".safetensors")):
            raise UserError(f"out: expected a name that ends in .npz or .safetensors, got {self.out!r}")


def main(args: list[str] | None = None) -> None:
    """Parse, load, encode, write."""
    options, about, _ = parse(Parser(__doc__), EncodeOptions, "encoding", args)
    if options.dry_run:
        return print_dry_run(options, about)
    trained = TrainedModel.of(load(options, about, runtime.setup(options.device)), options)
    size = trained.model.config.image_size
    data = build_data(options, size, whole=options.on_bad_image == "fail")
    targets = data.targets() if data.has_labels else None  # wrong labels are an error now
    bad = f"{os.path.splitext(options.out)[0]}_{FILE}"
    labels = data.labels_path if data.has_labels else None
    runtime.on_first(
        lambda: check_outputs([options.out, bad], [options.model_path, *data.files(), *([labels] if labels else [])])
    )
    if options.check:
        return None

    def beside(arrays: Arrays) -> tuple[Arrays, dict[str, str]]:
        """Labels and names of the images that could be read."""
        kept = arrays["index"]
        text = {"names": json.dumps([data.name_of(i) for i in kept.tolist()])}
        if targets is None:
            return {}, text
        return {"labels": targets.values.numpy()[kept]}, text | {"label_names": json.dumps(targets.names)}

    settings = runtime.on_first(lambda: {"weights": fingerprint(options.model_path), **data.identity()})
    settings |= {"flip": options.flip} | precision_setting(trained) | noise_settings(trained, None)
    if data.has_labels:
        settings["labels"] = data.labels_digest()
    example = trained.encode_arrays(torch.zeros(1, 3, size, size, dtype=torch.uint8), [0])
    if "mu" in example:  # the code depends on random numbers
        settings |= {"latent": options.latent, "seed": options.seed}
    readable = Tolerant(data, options.on_bad_image)
    compile_for(trained.model, options, len(data))
    computed = encode_to_file(
        *(options.out, trained.encode_arrays, readable, settings, options.batch_size, options.num_workers),
        beside=beside,
        overwrite=options.overwrite,
    )
    if runtime.rank() == 0:
        kept = read_arrays(options.out)[0]["index"].tolist()
        readable.check_kept(kept, len(data))  # those that are there may be of a command that left bad images out
        if computed:
            readable.report(bad, len(data))
            print(f"wrote the codes of {len(kept)} images to {options.out}")
    return runtime.cleanup()


if __name__ == "__main__":
    run(main)
