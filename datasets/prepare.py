"""Make LMDBs from original images, and inspect them.

    python -m datasets.prepare celeba --source img_align_celeba.zip
    python -m datasets.prepare folder --source my_photos --size 128
    python -m datasets.prepare inspect data/celeba --full

An interrupted command goes on where it stopped when it is run again. Bad images are reported and left out: in celeba
and celebahq, where labels go by number, they leave a gap in the keys (which `inspect` finds); elsewhere the next image
takes the place. Sources are only read. Run again with a corrected label file, it replaces the one that it wrote before;
files that it did not write are never overwritten.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from datasets.classes import open_classes
from datasets.inspection import PROBLEM, inspect_lmdb
from datasets.label_files import decode_text, label_names, parse_labels, parse_partition, read_file
from datasets.labels import LabelTable, class_folders
from datasets.originals import DrawnFaces, Originals, open_originals
from datasets.parts import STATED, stated_parts
from datasets.sets import DATASETS, SIZES
from datasets.writer import ENCODINGS, Job, write_lmdb
from dbae.config import UserError


@dataclass(frozen=True)
class Recipe:
    """How one sub-command differs from the others."""

    about: str
    key: str = "{size}-%05d"  # printf format of the key
    size: int | None = 256  # default; None: not resized
    sizes: tuple[int, ...] | None = SIZES  # to choose from; None: any
    encodings: tuple[str, ...] = tuple(ENCODINGS)  # to choose from, the first is the default
    subfolder: str | None = None  # the only one that counts, where the originals have it
    first: int | None = None  # number in the name of index 0, where labels go by number
    labels: Mapping[str, str] = field(default_factory=dict)  # files to copy: option that gives another path, and name
    categories: tuple[str, ...] = ()
    classes: bool = False  # whether the originals are a release with classes and splits


RECIPES = {
    "celeba": Recipe(
        "CelebA, aligned: img_align_celeba.zip or the unpacked folder; files are stored as they are, 178x218",
        key="None-%07d",
        size=None,
        encodings=("png",),
        subfolder="img_align_celeba",
        first=1,
        labels={"attributes": DATASETS["celeba"].labels, "partition": DATASETS["celeba"].partition},
    ),
    "celebahq": Recipe(
        "CelebA-HQ: CelebAMask-HQ.zip or a folder with 0.jpg to 29999.jpg",
        subfolder="CelebA-HQ-img",
        first=0,
        labels={"attributes": DATASETS["celebahq"].labels},
    ),
    "ffhq": Recipe("FFHQ: the folder images1024x1024 or a zip of it", subfolder="images1024x1024"),
    "lsun": Recipe(
        "LSUN: the publisher's LMDB, or a folder or zip of the exported images",
        key="{size}-%07d",
        categories=("bedroom", "horse"),
    ),
    "folder": Recipe(
        "Own images: any folder or zip; read the result as folder:OUT. A labels.csv is taken over", sizes=None
    ),
    **{
        name: Recipe(f"{title}; files are stored as they are", "image-%06d", None, None, ("png",), classes=True)
        for name, title in {
            "cifar10": "CIFAR-10: the binary or Python release, folder or archive, or images train/CLASS, test/CLASS",
            "cifar100": "CIFAR-100, in the same forms, with the fine labels",
            "tiny": "Tiny-ImageNet: the folder or zip tiny-imagenet-200, whose val is the test split",
        }.items()
    },
    "toyfaces": Recipe(
        "The embedded drawn faces, drawn once and for all: faster than drawing them in training",
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
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names of files need not be Unicode
    try:
        if options.command == "inspect":
            lines = inspect_lmdb(options.path, options.full)
            problems = any(line.startswith(PROBLEM) for line in lines)
            print("\n".join([options.path, *lines, "not ok" if problems else "ok"]))
            return int(problems)
        prepare(RECIPES[options.command], options)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to go on from here", file=sys.stderr)
        return 130


def build_parser() -> Parser:
    """A sub-command for every recipe, with the options that it has, and `inspect`."""
    parser = Parser("python -m datasets.prepare", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, recipe in RECIPES.items():
        add = commands.add_parser(name, help=recipe.about, description=f"{recipe.about}.").add_argument
        if name == "toyfaces":
            add("--count", type=_positive, default=12_000, help="number of faces (default: %(default)s, all)")
        else:
            add(
                "--source",
                required=True,
                type=os.path.expanduser,
                metavar="PATH",
                help="the original images; only read",
            )
            add("--limit", type=_positive, metavar="N", help="take the first N images (default: all)")
        if recipe.categories:
            add("--category", required=True, choices=recipe.categories, help="which LSUN set it is")
        for option, label_file in recipe.labels.items():
            what = f"where {' or '.join(label_names(label_file))} is (default: in or beside the source)"
            add(f"--{option}", metavar="FILE", help=what)
        if recipe.size:
            what = "width and height of the stored images (default: %(default)s)"
            add("--size", type=_positive, default=recipe.size, choices=recipe.sizes, help=what)
        if len(recipe.encodings) > 1:
            what = "file format of the stored images (default: %(default)s)"
            add("--format", choices=recipe.encodings, default=recipe.encodings[0], help=what)
        out = "data/CATEGORY" if recipe.categories else f"data/{name}"
        add("--out", type=os.path.expanduser, metavar="PATH", help=f"folder of the LMDB (default: {out})")
        what = "worker processes (default: %(default)s, the CPUs here)"
        add("--workers", type=_positive, default=os.cpu_count() or 1, metavar="N", help=what)
    about = "Count the images of an LMDB and look for gaps and bad ones: exit status 1 if there are some"
    add = commands.add_parser("inspect", help=about, description=f"{about}.").add_argument
    add("path", type=os.path.expanduser, help="LMDB folder or file")
    add("--full", action="store_true", help="decode every image, not only a sample")
    return parser


def prepare(recipe: Recipe, options: argparse.Namespace) -> None:
    """Write the LMDB and its label files, or what is missing of them, and say what was done."""
    given = vars(options)
    out = options.out or os.path.join("data", given.get("category") or options.command)
    size, encoding = given.get("size"), given.get("format", recipe.encodings[0])
    is_drawn = options.command == "toyfaces"
    if recipe.classes:
        originals, names, tables = open_classes(options.command, options.source)
    else:
        originals = DrawnFaces("", options.count, size) if is_drawn else open_originals(options.source)
        names, tables = choose(originals, recipe), {}
    everything, names = names, names[: given.get("limit")]

    # Label files are parsed before the long work
    labels = {**published_labels(originals, recipe, options, len(names)), **tables}
    if options.command == "folder" and (table := own_labels(originals, names)):
        labels["labels.csv"] = table
    if type(originals) is Originals and options.command == "folder":  # archives cannot be read as folder:PATH
        labels |= {STATED: parts} if (parts := stated_parts(options.source, everything)) else {}
    job = Job(originals, names, recipe.key.format(size=size), size, encoding, keep_holes=recipe.first is not None)
    record, worked, written = write_lmdb(out, job, options.workers, labels)
    state = "finished" if worked else "was finished before, nothing to do"
    if written and not worked:
        state = f"was finished before, wrote {', '.join(written)} anew"
    print(f"{out}: {state}: {record.written} images, {len(record.skipped)} bad ones skipped")


def published_labels(originals: Originals, recipe: Recipe, options: argparse.Namespace, count: int) -> dict[str, bytes]:
    """Contents of the label files of a published set, by the names they get; each has a row for every image."""
    labels = {}
    for option, name in recipe.labels.items():
        given = getattr(options, option)
        found = (given, read_file(given)) if given else originals.companion(label_names(name), beside=True)
        if found is None:
            print(f"note: no {name} in or beside {options.source}, so none is copied", file=sys.stderr)
            continue
        path, data = found
        table = (parse_partition if option == "partition" else parse_labels)(path, decode_text(path, data))
        table.targets(map(DATASETS[options.command].row_name, range(count)), "real")
        labels[name] = data
    return labels


def choose(originals: Originals, recipe: Recipe) -> list[str]:
    """The images of the publisher's folder, where there is one: its archives hold masks and thumbnails too."""
    names = originals.names()
    if not names:
        raise UserError(f"{originals.path}: expected images in it, there are none")
    names = [name for name in names if recipe.subfolder in name.split("/")[:-1]] or names
    for number, name in enumerate(names if recipe.first is not None else (), start=recipe.first or 0):
        found = re.search(r"(\d+)\.\w+$", name)
        if not found or int(found[1]) != number:
            expected = f"files numbered from {recipe.first} without gaps (or the recipe `folder`)"
            raise UserError(f"{originals.path}: expected {expected}, found {name} in place of {number}")
    return names


def own_labels(originals: Originals, names: list[str]) -> LabelTable | None:
    """The originals' ``labels.csv``, or their folders as classes where these have names, not numbers; else None."""
    if found := originals.companion(["labels.csv"], beside=False):
        path, data = found
        table = parse_labels(path, decode_text(path, data))
        table.without_people().targets(names)
        if others := table.others(names):
            print(f"note: {others} rows of {path} are for images that are not there", file=sys.stderr)
        return table
    try:
        table = class_folders(originals.path, names)
    except UserError:
        return None
    return table if table.holds_text() else None


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
