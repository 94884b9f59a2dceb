"""Does moving an attribute in the code move it in the picture, and little else?

Test images are edited along each attribute of the model's linear classifier. A reader that never saw the model, a
linear classifier of 16x16 pixels trained on the training images, then reads all attributes from the edited pictures.
Its logits are in units of their spread over real test images, relative to the unedited reconstruction, and averaged
over the images; for the other attributes their absolute values at the two outermost scales are averaged.

example:
  python -m benchmarks.edit_response --model_path ckpt/toyfaces/det/ema_0.9999_016000.pt --attributes Smiling,Male
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbae.config import SampleConfig, option
from scripts.cli import Parser, given, run
from scripts.edit_options import AttributeOptions
from scripts.inputs import Inputs, load, parse, print_dry_run

if TYPE_CHECKING:
    from torch import Tensor

    from datasets.labelled import Labelled
    from scripts.edit_actions import Edit
    from scripts.editing import Editor


@dataclass(frozen=True)
class ResponseOptions(Inputs):
    """What to edit, and where the table goes."""

    dataset: str = option("toyfaces", "labelled data set")
    split: str = option("test", "part of it that is edited", ("valid", "test"))
    limit: int | None = option(100, "images to edit")
    json: str | None = option(None, "file to write the numbers to")


class PixelReader:
    """Attributes read from 16x16 pixels, by the official linear protocol."""

    def __init__(self, splits: "dict[str, Labelled]") -> None:
        import torch

        from eval.latents import Codes, encode_dataset
        from eval.probe import Part, classify, predict

        codes = {
            split: Codes(encode_dataset(lambda x, index: {"z": self.look(x)}, data.dataset, desc=f"pixels of {split}"))
            for split, data in splits.items()
        }
        parts = {split: Part(codes[split].draw, data.values) for split, data in splits.items()}
        self.names = splits["train"].names
        self.layer = classify(**parts, names=self.names).best
        self.spread = torch.from_numpy(predict(self.layer, "test", parts["test"], 0).std(axis=0))

    @staticmethod
    def look(x: "Tensor") -> "Tensor":
        """Pixels [n, 768] of float images [n, 3, H, W]."""
        from eval.baselines import reduced

        return reduced(x, 16)

    def __call__(self, images: "Tensor") -> "Tensor":
        """Logits [n, attributes] of uint8 images [n, 3, H, W], in units of their spread over real ones."""
        from dbae.io import to_float

        return self.layer(self.look(to_float(images))).detach() / self.spread


def response(editor: "Editor", edit: "Edit", fix_xT: bool, reader: PixelReader) -> dict[str, Any]:
    """What the reader sees of one attribute's edits."""
    import torch

    from scripts.edit_actions import manipulate

    before_too = torch.cat([edit.codes, edit.z[:, None]], dim=1)
    ((_, made),) = manipulate(editor, [dataclasses.replace(edit, codes=before_too)], fix_xT)
    *after, before = (reader(column) for column in made.unbind(1))
    moved = torch.stack([(logits - before).mean(dim=0) for logits in after])  # [scales, attributes]
    own = [name.replace("_", " ") for name in reader.names].index(edit.name)
    others = torch.cat([moved[[0, -1], :own], moved[[0, -1], own + 1 :]], dim=1)
    return {
        "attribute": edit.name,
        "response": moved[:, own].tolist(),
        "monotone": bool((moved[:, own].diff() > 0).all()),
        "others": others.abs().mean().item(),
    }


def main() -> None:
    """Edit, read back, print."""
    parser = Parser(__doc__.split("\n")[0], __doc__.split("\n", 1)[1])
    parser.add_config("sampling", SampleConfig)
    parser.add_config("edit", AttributeOptions)
    options, about, typed = parse(parser, ResponseOptions, "images", None)
    sampling = SampleConfig(**{"steps": 10} | given(typed, SampleConfig))
    how = AttributeOptions(**{"scales": (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)} | given(typed, AttributeOptions))
    if options.dry_run:
        return print_dry_run(options, about, sampling=dataclasses.asdict(sampling), edit=dataclasses.asdict(how))

    import torch

    from datasets.labelled import labelled_splits
    from dbae import distributed
    from dbae.io import atomic_write
    from scripts.edit_actions import attributes_of, plan
    from scripts.editing import Editor

    device = distributed.setup(options.device)
    editor = Editor(load(options, about, device), sampling, "mean", options.seed, options.batch_size)
    classifier, rows = attributes_of(editor, options.model_path, how)
    splits = labelled_splits(
        options.dataset, "classification", editor.model.config.image_size, options.data_root, options.data_dir
    )
    reader = PixelReader(splits)
    data = splits[options.split].dataset
    images = torch.stack([data[i][0] for i in range(min(options.limit or len(data), len(data)))])
    edits = plan(editor.encode(images), classifier, rows, how)
    table = [response(editor, edit, how.fix_xT, reader) for edit in edits]
    print(f"{len(images)} {options.split} images, {os.path.basename(options.model_path)}, reader: 16x16 pixels")
    print(
        "| attribute |", " | ".join(f"{scale:+g}" for scale in how.scales), "| rises | mean change of the 39 others |"
    )
    print("|---" * (len(how.scales) + 3) + "|")
    for line in table:
        cells = [line["attribute"], *(f"{value:+.2f}" for value in line["response"])]
        print("|", " | ".join([*cells, "yes" if line["monotone"] else "no", f"{line['others']:.2f}"]), "|")
    if options.json:
        with atomic_write(options.json, "w") as file:
            json.dump({"images": len(images), "scales": how.scales, "attributes": table}, file, indent=2)
    return None


if __name__ == "__main__":
    run(main)
