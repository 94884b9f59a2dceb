"""Write the codes of a data set or folder to one .npz or .safetensors file.

example:
  python -m scripts.dbae_encode --dataset celeba --schedule vp --model_path ckpt/celeba/sto/ema_0.9999_980000.pt \\
      --split test --out celeba_test.npz

The file holds z [n, d], for stochastic encoders also mu and log_sigma, index [n], labels [n, k] where the data set has
some, and as JSON text the settings, the images' names and the labels' names. An interrupted run goes on when it is
started again; torchrun spreads it over processes.
"""

import json
from dataclasses import dataclass

from dbae.config import option
from dbae.errors import UserError
from scripts.cli import Parser, run
from scripts.inputs import Inputs, build_data, load, parse, print_dry_run


@dataclass(frozen=True)
class EncodeOptions(Inputs):
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

    from dbae import distributed
    from dbae.checkpoint import fingerprint
    from scripts.encoding import encode_to_file, identity, with_codes

    device = distributed.setup(options.device)
    model = load(options, about, device)
    data = build_data(options, model.config.image_size)
    if options.check:
        return None
    images = min(len(data), options.limit or len(data))
    settings = identity(fingerprint(options.model_path), data, images, options.flip)
    settings |= {"latent": options.latent, "seed": options.seed} if model.config.stochastic else {}
    text = {"names": json.dumps([data.name_of(i) for i in range(images)])}
    labels = {"labels": data.labels[:images].numpy()} if data.has_labels else {}
    if labels:
        text["label_names"] = json.dumps(data.label_names)
    encode = with_codes(model, options.latent, options.seed)
    encode_to_file(
        options.out, encode, data, settings, device, options.batch_size, options.num_workers, extra=labels, about=text
    )
    distributed.print0(f"wrote the codes of {images} images to {options.out}")
    distributed.cleanup()
    return None


if __name__ == "__main__":
    run(main)
