"""Draw the sample images of assets/: four toy faces that no model is trained on.

example:
  python -m scripts.sample_images --out assets
"""

import os

from datasets.sets import TOY_SEED
from datasets.toyfaces import describe, render
from dbae.io import atomic_write
from scripts.cli import Parser, run

FACES = {"img1": 11013, "img2": 11025, "img3": 11027, "img4": 11024}  # numbers in the data set; the test split
SIZE = 256


def main(args: list[str] | None = None) -> None:
    """Draw and write."""
    parser = Parser(__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write img1.png ... img4.png to")
    folder = parser.parse_args(args).out
    for name, index in FACES.items():
        with atomic_write(os.path.join(folder, f"{name}.png")) as file:
            render(describe(index, TOY_SEED), SIZE).save(file, format="PNG", optimize=True)
    print(f"wrote {', '.join(FACES)} to {folder}")


if __name__ == "__main__":
    run(main)
