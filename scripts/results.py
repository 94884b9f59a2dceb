"""A folder of results of several commands, and ``edits.json`` in it, which says what each file was made from."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dbae import runtime
from dbae.config import UserError
from dbae.io import check_outputs, is_other, read_json, with_command, write_json
from scripts.classifiers import Training

LONGEST = 240  # bytes of a file's name: 255, less what a file that is being written is called
FILE = "edits.json"  # {"edits": [{"settings": {...}, "files": [name, ...]}, ...]}, each file in one edit


def check_report(
    report: str, files: Iterable[str], settings: Mapping[str, Any], inputs: Iterable[str], what: str, overwrite: bool,
    key: str | None = "made_from",
) -> dict[str, Any]:  # fmt: skip
    """The content of a ``report`` (JSON) that is there already with these settings under ``key``, else nothing.

    Without a key it is the settings. Raises UserError where it, or one of the ``files`` beside it, is an input; and
    unless ``overwrite`` where it is damaged, or some are there that it does not say were made with these settings.
    ``what`` they hold stands in the message.
    """
    paths = [path for path in (report, *files) if os.path.exists(path)]
    check_outputs(paths, inputs)
    if not paths:
        return {}
    found: dict[str, Any] = {}

    def made_from() -> Any:
        found.update(read_json(report) if report in paths else {})
        return found.get(key) if key else found

    return {} if is_other(paths[0], what, made_from, settings, overwrite) else found


def begin(
    training: Training,
    report: str,
    files: Iterable[str],
    inputs: Iterable[str],
    options: Any,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The ``report`` of a training where it is there already with these ``settings`` (default: its own); else nothing.

    In that case the training goes on from its file, and unless ``options.check`` holds its folder. Raises UserError
    where another process does, where one of the files to be written is one of the ``inputs``, and unless
    ``options.overwrite`` where something is there from other settings.
    """
    training.recipe.share(max(options.check, runtime.world()))

    def check() -> dict[str, Any]:
        read, what = list(inputs), "a classifier"
        check_outputs([training.path], read)
        return check_report(report, files, settings or training.settings, read, what, options.overwrite)

    if found := runtime.on_first(check):
        runtime.print0(f"{report} is complete already: nothing computed")
        return found
    restored = training.restore(options.overwrite)
    if not options.check:
        training.lock()
        if restored:
            runtime.print0(f"going on after step {training.step}")
    return {}


@dataclass(frozen=True)
class Results:
    """The results of one command, whose ``settings`` (ready for JSON) are all that they depend on."""

    folder: str
    settings: dict[str, Any]
    inputs: Sequence[str] = ()  # files that are read
    overwrite: bool = False

    def check(self, paths: Iterable[str]) -> None:
        """Raise UserError where a file to be written is an input, is written twice, or is there from other settings."""
        paths = list(paths)
        names = [os.path.basename(path).casefold() for path in paths]
        if long := next((name for name in names if len(os.fsencode(name)) > LONGEST), None):
            raise UserError(f"images: expected shorter names of files, the result would be called {long}")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"out: expected another name for every result, two would be {twice}")
        check_outputs([*paths, os.path.join(self.folder, FILE)], self.inputs)
        made = {name: edit["settings"] for edit in self._edits() for name in edit["files"]}
        for path in filter(os.path.exists, paths if not self.overwrite else ()):
            is_other(path, "a result", partial(made.get, os.path.basename(path)), self.settings)

    def record(self, paths: Iterable[str]) -> None:
        """Note that the files were made with these settings."""
        names = [os.path.basename(path) for path in paths]
        edits = [{**edit, "files": [name for name in edit["files"] if name not in names]} for edit in self._edits()]
        edits = [edit for edit in edits if edit["files"]] + [{"settings": with_command(self.settings), "files": names}]
        write_json(os.path.join(self.folder, FILE), {"edits": edits})

    def _edits(self) -> list[dict[str, Any]]:
        """The edits of the folder so far. Raises UserError where the file is not ours."""
        path = os.path.join(self.folder, FILE)
        edits = read_json(path).get("edits") if os.path.exists(path) else []
        entry = {"settings", "files"}
        if not isinstance(edits, list) or not all(isinstance(edit, dict) and set(edit) == entry for edit in edits):
            raise UserError(f"{path}: expected the list of edits that this program writes; move it away")
        return edits
