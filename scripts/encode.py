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

from dbae import distributed
from dbae.config import UserError, option
from dbae.io import fingerprint
from eval.arrays import Arrays, read_arrays
from scripts.bad_images import FILE, left_out, noted, report
from scripts.cli import Parser, run
from scripts.encoding import code_encoder, encode_to_file, identity
from scripts.inputs import SweepInputs, build_data, load, parse, print_dry_run


@dataclass(frozen=True)
class EncodeOptions(SweepInputs):
    """What to encode, and where to write it."""

    out: str = option("codes.npz", "file to write, .npz or .safetensors")
    flip: bool = option(False, "encode the mirrored images")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out.endswith((".npz", ".safetensors")):
            raise UserError(f"out: expected a name that ends in .npz or .safetensors, got {self.out!r}")


def main() -> None:
    """Parse, load, encode, write."""
    options, about, _ = parse(Parser(__doc__), EncodeOptions, "encoding", None)
    if options.dry_run:
        return print_dry_run(options, about)
    device = distributed.setup(options.device)
    model = load(options, about, device)
    data = build_data(options, model.config.image_size, options.whole)
    if options.check:
        return None

    def beside(arrays: Arrays) -> tuple[Arrays, dict[str, str]]:
        """Labels and names of the images that were kept."""
        kept = arrays["index"]
        text = {"names": json.dumps([data.name_of(i) for i in kept.tolist()])}
        if not data.has_labels:
            return {}, text
        return {"labels": data.labels.numpy()[kept]}, text | {"label_names": json.dumps(data.label_names)}

    images = min(len(data), options.limit or len(data))
    settings = identity(fingerprint(options.model_path), data, images, options.flip)
    settings |= {"latent": options.latent, "seed": options.seed} if model.config.stochastic else {}
    encode_to_file(
        options.out, code_encoder(model, options.latent, options.seed), data, settings, device, options.batch_size,
        options.num_workers, beside=beside, bad=noted(options.on_bad_image),
    )  # fmt: skip
    if distributed.rank() == 0:
        kept = read_arrays(options.out)[0]["index"].tolist()
        report(f"{os.path.splitext(options.out)[0]}_{FILE}", left_out(data, images, kept), images, "left out")
        print(f"wrote the codes of {len(kept)} images to {options.out}")
    distributed.cleanup()
    return None


if __name__ == "__main__":
    run(main)
