"""Which files of a folder or archive are images, and in which order they come."""

import os
import re

from datasets.images import EXTENSIONS
from dbae.config import UserError


def image_names(root: str) -> list[str]:
    """Paths below ``root`` of all image files, in natural order (2.jpg before 10.jpg), without hidden ones.

    Links to files count, links to folders are not followed, so that there are no circles. Raises UserError if there are
    none, or for a folder that cannot be read.
    """
    if not os.path.isdir(root):
        found = "this is a file" if os.path.exists(root) else "there is nothing of that name"
        raise UserError(f"{root}: expected a folder of images, {found}")
    names = sorted(filter(is_image_name, _files_below(root)), key=natural_order)
    if not names:
        raise UserError(f"{root}: expected images ({' '.join(sorted(EXTENSIONS))}), there are none in this folder")
    return names


def is_image_name(name: str) -> bool:
    """Whether a path is an image's by its ending; hidden files and what macOS adds to archives are not."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in EXTENSIONS


def natural_order(name: str) -> tuple[tuple[int, str, str], ...]:
    """Sort key that compares runs of digits as numbers; for numbers of equal width it is the order of the names."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(_as_number(part) if i % 2 else (0, part, "") for i, part in enumerate(parts))


def _files_below(root: str) -> list[str]:
    files = []
    for folder, _, names in os.walk(root, onerror=_refuse):
        below = os.path.relpath(folder, root)
        files += [os.path.normpath(os.path.join(below, name)).replace(os.sep, "/") for name in names]
    return files


def _as_number(digits: str) -> tuple[int, str, str]:
    """What digits of any length compare by; ``int`` refuses thousands of them."""
    value = digits.lstrip("0")
    return len(value), value, digits


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: expected a readable folder: {error.strerror}") from None
