"""Which files of a folder or an archive are images, and in which order they come."""

import os
import re
from collections import Counter
from collections.abc import Iterable

from datasets.images import EXTENSIONS, log_once
from dbae.config import UserError

SHOWN = 8  # kinds of files that the line on those left out names
UNCOUNTED = {"labels.csv", "parts.csv", "thumbs.db", "desktop.ini"}  # known not to be images


def image_names(root: str) -> list[str]:
    """Paths below ``root`` of all image files, as ``choose_images`` chooses them.

    Links to folders are followed after all else. No folder is read twice, so that there are no circles. Raises
    UserError if there are no images, or for a folder that cannot be read.
    """
    if not os.path.isdir(root):
        found = "this is a file" if os.path.exists(root) else "there is nothing of that name"
        raise UserError(f"{root}: expected a folder of images, {found}")
    paths, seen, starts = [], set(), [root]
    while starts:
        for folder, below, files in os.walk(starts.pop(0), onerror=_refuse):
            place = os.path.realpath(folder)
            below[:] = [] if place in seen else sorted(name for name in below if not _is_hidden(name))
            if place not in seen:
                paths += [os.path.join(folder, name) for name in files]
                starts += [path for name in below if os.path.islink(path := os.path.join(folder, name))]
            seen.add(place)
    names = choose_images(root, [os.path.relpath(path, root).replace(os.sep, "/") for path in paths])
    if not names:
        raise UserError(f"{root}: expected images (.png, .jpg and the like), there are none in this folder")
    return names


def has_images(folder: str) -> bool:
    """Whether there is an image file, by its ending, in the folder itself or below."""
    names = (name for _, _, files in os.walk(folder) for name in files)
    return any(_ending(name) in EXTENSIONS and not _is_hidden(name) for name in names)


def choose_images(place: str, names: Iterable[str]) -> list[str]:
    """Those of the paths below ``place`` that are images by their ending, in natural order (2.jpg before 10.jpg).

    One line tells how many files are left out. Hidden files and what systems add to folders and archives do not count.
    """
    names = {name for name in names if not _is_hidden(name) and not name.endswith("/")}
    images = {name for name in names if _ending(name) in EXTENSIONS}
    others = [name for name in names - images if os.path.basename(name).lower() not in UNCOUNTED]
    if others:
        counts = sorted(Counter(map(_ending, others)).items(), key=lambda pair: (-pair[1], pair[0]))
        few = ", ".join(f"{ending or 'no ending'} {count}" for ending, count in counts[:SHOWN])
        more = ", ..." * (len(counts) > SHOWN)
        total = len(images) + len(others)
        log_once(f"{place}: {len(others)} of {total} files are no images by their ending, left out: {few}{more}")
    return sorted(images, key=natural_order)


def natural_order(name: str) -> list[tuple[int, str, str]]:
    """Sort key that compares runs of digits as numbers, by length and digits, as ``int`` refuses thousands of them."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")), part.lstrip("0"), part) if i % 2 else (0, part, "") for i, part in enumerate(parts)]


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: expected a readable folder: {error.strerror}") from None
