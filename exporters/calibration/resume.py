"""The state of a calibration in its folder, so that a run that was broken off can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginewright.exporters.calibration.atomic_files import disk_errors, replace_file
from enginewright.runtime.artifact.files.json_file import read_json
from enginewright.runtime.errors import ExportError

NOTE = "calibration.json"


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """The folder of one calibration; `open_resume_state` creates it.

    Its files:
        calibration.json: the note, with the key of the calibration and the next block
        block-0000.safetensors: the results of each block that is done
        NAME-0000.states: the states of a stream that enter the block that the note calls next
        *.scratch: of no use to a later run

    folder: the folder.
    key: what the calibration is; a folder with another key is refused.
    """

    folder: Path
    key: dict[str, Any]

    def block(self, number: int) -> Path:
        """The path of a block's results."""
        return self.folder / f"block-{number:04d}.safetensors"

    def states(self, stream: str, number: int) -> Path:
        """The path of the states of a stream that enter block `number`."""
        return self.folder / f"{stream}-{number:04d}.states"

    def read(self) -> tuple[int, dict[str, int]] | None:
        """The number of the block whose states are on disk, and the checksum of each stream's states; None without states."""
        found = _read(self.folder / NOTE)
        return None if found["next"] is None else (found["next"], found["checksums"])

    def note(self, following: int | None, checksums: Mapping[str, int] | None = None) -> None:
        """Note that the states that enter block `following` are whole, and delete those of all other blocks.

        None: no states are needed any more.
        """
        content = {"key": self.key, "next": following, "checksums": dict(checksums or {})}
        replace_file(self.folder / NOTE, json.dumps(content, indent=1).encode())
        keep = "" if following is None else f"-{following:04d}.states"
        with disk_errors(self.folder):
            for path in self.folder.glob("*-[0-9][0-9][0-9][0-9].states"):
                if not keep or not path.name.endswith(keep):
                    path.unlink()

    def tidy(self) -> None:
        """Delete the files that only a run in progress needs."""
        with disk_errors(self.folder):
            for pattern in ("quantized-*.scratch", "float-*.scratch", "block-*.tmp", f"{NOTE}.tmp"):
                for path in self.folder.glob(pattern):
                    path.unlink()


def open_resume_state(folder: Path, key: dict[str, Any]) -> ResumeState:
    """Take up the calibration in `folder`, or begin a new one there.

    Raises:
        ExportError: the folder holds another calibration, or results without a note.
    """
    state = ResumeState(folder=folder, key=key)
    if not (folder / NOTE).exists():
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            unknown = next(folder.glob("block-*.safetensors"), None)
        if unknown is not None:
            raise ExportError(f"{folder}: got {unknown.name} without a {NOTE} that says of what; choose another folder")
        state.note(None)
        return state
    found = _read(folder / NOTE)["key"]
    if found != key:
        names = sorted(name for name in {*found, *key} if found.get(name) != key.get(name))
        raise ExportError(
            f"{folder}: holds another calibration: {names[0]}: got {found.get(names[0])!r}, expected "
            f"{key.get(names[0])!r}; choose another folder or delete this one"
        )
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, ExportError, f"delete the folder {path.parent} and calibrate again")
        begun = found["next"] is not None
        if not isinstance(found["key"], dict) or (begun and not isinstance(found["next"], int)):
            raise ValueError("not a note of a calibration")
        if begun and not isinstance(found["checksums"], dict):
            raise ValueError("not a note of a calibration")
    except (ValueError, KeyError, TypeError) as e:
        raise ExportError(f"{path}: damaged ({e}); delete the folder {path.parent} and calibrate again") from e
    return dict(found)
