"""The parts of a checkpoint's files that an engine does not use: each is named once when a build ends, or makes it fail.

A setting or a tensor that is left out in silence gives an engine that answers in another way than the model does.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from enginewright.runtime.errors import ExportError

REPORT = Path("reports/unused.json")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class UnusedParts:
    """Parts of one file that are not used, all for one reason; `Unused.add` creates it.

    file: the file's name, such as "generation_config.json".
    names: of the settings, tensors or tokens.
    reason: as a phrase that ends the sentence "not used: ...".
    by_design: whether no engine of such a model can use them, and answers without them as the model does; they are named,
        and are no error for `--strict`.
    """

    file: str
    names: tuple[str, ...]
    reason: str
    by_design: bool = False

    def __str__(self) -> str:
        more = f" and {len(self.names) - _SHOWN} more" if len(self.names) > _SHOWN else ""
        return f"{self.file}: {', '.join(self.names[:_SHOWN])}{more}: not used: {self.reason}"


class Unused:
    """Collects the parts that are not used; each `Checkpoint` has one, and what reads its files adds to it."""

    def __init__(self) -> None:
        self._parts: list[UnusedParts] = []

    @property
    def parts(self) -> tuple[UnusedParts, ...]:
        """What was added, in order."""
        return tuple(self._parts)

    def add(self, file: str, names: Iterable[str], reason: str, *, by_design: bool = False) -> None:
        """Add the parts `names` of `file`; nothing if there are none, or if they were added before."""
        parts = UnusedParts(file=file, names=tuple(names), reason=reason, by_design=by_design)
        if parts.names and parts not in self._parts:
            self._parts.append(parts)

    def settle(self, *, strict: bool, kept: Collection[str] = ()) -> None:
        """Name every part on standard error, each on a line.

        kept: files that are handed on whole, whose parts are not named.

        Raises:
            ExportError: `strict`, and there is at least one that is not left out by design.
        """
        left = [each for each in self._parts if each.file not in kept]
        if strict and (wrong := [each for each in left if not each.by_design]):
            raise ExportError(
                f"strict: got parts that are not used, expected none; remove them, or build without --strict\n{_lines(wrong)}"
            )
        if left:
            print(_lines(left), file=sys.stderr)

    def save(self, root: Path) -> None:
        """Write the report into the engine directory `root`, an empty list if everything is used."""
        path = root / REPORT
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([dataclasses.asdict(each) for each in self._parts], indent=2) + "\n")


def _lines(parts: Iterable[UnusedParts]) -> str:
    return "\n".join(map(str, parts))
