"""Convert a weight file to .safetensors, which carries its configuration, or back to .pt and config.json.

examples:
  python -m scripts.convert --model_path ckpt/ffhq/det/ema_0.9999_1020000.pt --schedule vp --out ffhq.safetensors
  python -m scripts.convert --model_path ffhq.safetensors --out ckpt/again/ema_0.9999_1020000.pt
  python -m scripts.convert --model_path ffhq128_autoenc_latent/last.ckpt --method prior --out prior.safetensors

The tensors keep their names and values, which are those of the released files. A released file has no config.json, so
of DBAE its --schedule is needed; the rest is read from the tensors. DiffAE's last.ckpt (--method diffae, ddim or prior)
holds live and averaged weights, of which the average is taken, and in that of a prior the autoencoder as well; so does
a model_EPOCH.pth of DDAE (--method ddae --dataset EDM_ddpm, or the path of its yaml file).
"""

import dataclasses
import os
from dataclasses import dataclass

import blobfile as bf

from dbae.checkpoint import config_content, load_model, save_weights, stated_config, write_config
from dbae.config import UserError, option
from dbae.io import check_outputs
from dbae.methods import METHODS
from scripts.cli import Parser, given, peek, run


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert. Raises UserError for names of the wrong kind."""

    method: str = option("dbae", "method of an official file, which has no config.json")
    model_path: str = option("", "weight file to read: .safetensors, or any other of torch", alias="model")
    out: str = option("", "file to write: .safetensors or .pt")
    dataset: str | None = option(
        None, "data set that a released file was trained on (checked against its size); of DDAE the configuration"
    )
    overwrite: bool = option(False, "replace files that are there already")

    def __post_init__(self) -> None:
        ending = ".pt" if self.model_path.endswith(".safetensors") else ".safetensors"
        if not self.model_path:
            raise UserError("model_path: expected a weight file, got none")
        if not self.out.endswith(ending):
            raise UserError(f"out: expected a name that ends in {ending} for this weight file, got {self.out!r}")
        if ending == ".pt" and os.path.realpath(os.path.dirname(self.out)) == os.path.realpath("."):
            name = os.path.basename(self.out)
            expected = (
                f"a folder for it, such as {os.path.splitext(name)[0]}/{name}, as config.json is written beside it"
            )
            raise UserError(f"out: expected {expected}, got {self.out!r}")


def main(args: list[str] | None = None) -> None:
    """Parse, load, which checks everything, and write."""
    parser = Parser(__doc__)
    method = METHODS[peek(args, "method", "dbae", METHODS)].variant(peek(args, "dataset"))
    parser.add_config("conversion", ConvertOptions)
    parser.add_config("model (of a released file)", method.Config, method.CHECKED)
    typed = parser.parse_args(args)
    options = ConvertOptions(**given(typed, ConvertOptions))
    plain = options.out.endswith(".pt")
    folder = bf.dirname(options.out)
    for path in [options.out] + [bf.join(folder, "config.json")] * plain:
        if bf.exists(path) and not options.overwrite:
            raise UserError(f"out: {path} is there already; give --overwrite true to replace it, or another name")

    check_outputs([options.out, *([bf.join(folder, "config.json")] * plain)], [options.model_path])
    found = stated_config(options.model_path)
    if found and options.dataset not in (None, found.get("dataset", "")):
        raise UserError(f"dataset: {options.model_path} is of {found.get('dataset')!r}, got {options.dataset!r}")
    model = load_model(
        options.model_path,
        None if found and "method" not in given(typed, ConvertOptions) else options.method,
        options.dataset,
        **given(typed, method.Config, method.CHECKED),
    )
    content = {**(found or config_content(model, options.dataset or "")), "model": dataclasses.asdict(model.config)}
    save_weights(options.out, model, content)
    if plain:
        write_config(folder, content)
    print(f"wrote {len(model.state_dict())} tensors and their configuration to {options.out}")


if __name__ == "__main__":
    run(main)
