"""Make LMDBs from original images, and inspect them.

    python -m datasets.prepare celeba   --source img_align_celeba.zip
    python -m datasets.prepare celebahq --source CelebAMask-HQ.zip --size 128
    python -m datasets.prepare ffhq     --source images1024x1024
    python -m datasets.prepare lsun     --source bedroom_train_lmdb --category bedroom
    python -m datasets.prepare folder   --source my_photos --size 128
    python -m datasets.prepare toyfaces --size 32
    python -m datasets.prepare inspect  data/celeba

An interrupted command goes on where it stopped when it is run again. Bad images are reported and left out: in celeba
and celebahq, where labels go by number, they leave a gap in the keys (which `inspect` finds); elsewhere the next image
takes the place. Sources are only read, and no existing file is overwritten.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from datasets.inspection import inspect_lmdb
from datasets.label_files import check_numbers, read_companions, read_own_labels, rekeyed_csv, write_new_files
from datasets.lmdb_writer import ENCODINGS, Job, Record, write_lmdb
from datasets.originals import DrawnFaces, Originals, open_originals
from datasets.sources import DATASETS, SIZES
from dbae.config import UserError

RAW = argparse.RawDescriptionHelpFormatter  # keeps the lines of descriptions and examples


@dataclass(frozen=True)
class Recipe:
    """How one sub-command differs from the others."""

    about: str
    example: str
    key: str  # printf format of the key, with {size}
    size: int | None = 256  # default; None: not resized
    sizes: tuple[int, ...] | None = SIZES  # to choose from; None: any
    encodings: tuple[str, ...] = tuple(ENCODINGS)  # to choose from, the first is the default
    subfolder: str | None = None  # the only one that counts, where the originals have it
    first: int | None = None  # number in the name of index 0, where labels go by number
    companions: tuple[tuple[str, str], ...] = ()  # label files to copy: option, usual name
    categories: tuple[str, ...] = ()


RECIPES = {
    "celeba": Recipe(
        "CelebA, aligned: img_align_celeba.zip or the unpacked folder; files are stored as they are, 178x218",
        "--source img_align_celeba.zip --attributes list_attr_celeba.txt --partition list_eval_partition.txt",
        key="None-%07d",
        size=None,
        encodings=("png",),
        subfolder="img_align_celeba",
        first=1,
        companions=(("attributes", DATASETS["celeba"].labels.name), ("partition", DATASETS["celeba"].partition)),
    ),
    "celebahq": Recipe(
        "CelebA-HQ: CelebAMask-HQ.zip or a folder with 0.jpg to 29999.jpg",
        "--source CelebAMask-HQ.zip --size 128",
        key="{size}-%05d",
        subfolder="CelebA-HQ-img",
        first=0,
        companions=(("attributes", DATASETS["celebahq"].labels.name),),
    ),
    "ffhq": Recipe(
        "FFHQ: the folder images1024x1024 or a zip of it",
        "--source images1024x1024 --size 256",
        key="{size}-%05d",
        subfolder="images1024x1024",
    ),
    "lsun": Recipe(
        "LSUN: the publisher's LMDB, or a folder or zip of the exported images",
        "--source bedroom_train_lmdb --category bedroom",
        key="{size}-%07d",
        categories=("bedroom", "horse"),
    ),
    "folder": Recipe(
        "Own images: any folder or zip; read the result as folder:OUT. A labels.csv is taken over",
        "--source my_photos --size 128 --out data/my_photos",
        key="{size}-%05d",
        sizes=None,
    ),
    "toyfaces": Recipe(
        "The embedded drawn faces, drawn once and for all: faster than drawing them in training",
        "--count 12000 --size 32",
        key="toy-%06d",
        size=32,
        sizes=None,
        encodings=("png",),
    ),
}


class Parser(argparse.ArgumentParser):
    """Errors are one line, as everywhere here."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 problems found by `inspect`, 2 wrong usage or input, 130 interrupted."""
    options = build_parser().parse_args(argv)
    try:
        return _inspect(options) if options.command == "inspect" else _prepare(RECIPES[options.command], options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to go on from here", file=sys.stderr)
        return 130


def build_parser() -> Parser:
    parser = Parser(prog="python -m datasets.prepare", description=__doc__, formatter_class=RAW)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, recipe in RECIPES.items():
        _add_recipe(commands, name, recipe)
    inspect = commands.add_parser(
        "inspect",
        help="count the images of an LMDB and look for bad ones",
        description="Counts, key format, sizes, label files, gaps and bad images. Exit status 1 if there are problems.",
        epilog="example:\n  python -m datasets.prepare inspect data/celeba --full",
        formatter_class=RAW,
    )
    inspect.add_argument("path", help="LMDB folder or file")
    inspect.add_argument("--full", action="store_true", help="decode every image, not only a sample")
    return parser


def _add_recipe(commands, name: str, recipe: Recipe) -> None:
    epilog = f"example:\n  python -m datasets.prepare {name} {recipe.example}"
    parser = commands.add_parser(
        name, help=recipe.about, description=f"{recipe.about}.", epilog=epilog, formatter_class=RAW
    )
    if name == "toyfaces":
        parser.add_argument(
            "--count", type=_positive, default=12_000, help="number of faces (default: %(default)s, all)"
        )
    else:
        parser.add_argument("--source", required=True, metavar="PATH", help="the original images; only read")
        parser.add_argument("--limit", type=_positive, metavar="N", help="take the first N images (default: all)")
    if recipe.categories:
        parser.add_argument("--category", required=True, choices=recipe.categories, help="which LSUN set it is")
    if recipe.size:
        what = "width and height of the stored images (default: %(default)s)"
        parser.add_argument("--size", type=_positive, default=recipe.size, choices=recipe.sizes, help=what)
    if len(recipe.encodings) > 1:
        what = "file format of the stored images (default: %(default)s)"
        parser.add_argument("--format", choices=recipe.encodings, default=recipe.encodings[0], help=what)
    for option, usual in recipe.companions:
        what = f"{usual} (default: looked for in and beside the source)"
        parser.add_argument(f"--{option}", metavar="PATH", help=what)
    out = "data/CATEGORY" if recipe.categories else f"data/{name}"
    parser.add_argument("--out", metavar="PATH", help=f"folder of the LMDB (default: {out})")
    what = "worker processes (default: %(default)s, the CPUs here)"
    parser.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, metavar="N", help=what)


def _prepare(recipe: Recipe, options: argparse.Namespace) -> int:
    given = vars(options)
    out = options.out or os.path.join("data", given.get("category") or options.command)
    size, encoding = given.get("size"), given.get("format", recipe.encodings[0])
    originals = _originals(options)
    names = _preferred(originals.names(), recipe.subfolder)[: given.get("limit")]
    if recipe.first is not None:
        check_numbers(options.source, names, recipe.first)
    companions = read_companions(originals, {usual: given[option] for option, usual in recipe.companions})
    table = read_own_labels(originals, names) if options.command == "folder" else None
    job = Job(originals, recipe.key.format(size=size), size, encoding, keep_holes=recipe.first is not None)
    record, worked = write_lmdb(out, job, names, options.workers)
    if table:
        companions["labels.csv"] = rekeyed_csv(table, names, record, job.key_format)
    write_new_files(out, companions)
    _summarise(out, record, worked)
    return 0


def _originals(options: argparse.Namespace) -> Originals:
    if options.command == "toyfaces":
        return DrawnFaces("", options.count, options.size)
    return open_originals(options.source)


def _preferred(names: list[str], subfolder: str | None) -> list[str]:
    """Only the images in the publisher's folder, where there is one: its archives hold masks and thumbnails too."""
    return [name for name in names if subfolder in name.split("/")[:-1]] or names


def _summarise(out: str, record: Record, worked: bool) -> None:
    state = "finished" if worked else "was finished before, nothing to do"
    print(f"{out}: {state}: {record.written} images, {len(record.skipped)} bad ones skipped")
    for name, reason in record.skipped[:10]:
        print(f"  skipped {name}: {reason}")
    if len(record.skipped) > 10:
        print(f"  ... and {len(record.skipped) - 10} more")


def _inspect(options: argparse.Namespace) -> int:
    report = inspect_lmdb(options.path, options.full)
    print("\n".join([options.path, *report.lines, "ok" if not report.problems else "not ok"]))
    return 1 if report.problems else 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
