"""The gates of a model's KV heads: how much each needs of what lies far back, as a file keeps it.

A head with a small gate attends to the first tokens and to the newest ones, and can let the others go.

Source: DuoAttention, arXiv 2410.10819.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from enginewright.exporters.methods.measured_file import SourceModel, write_measured
from enginewright.exporters.source.json_file import read_json
from enginewright.runtime.artifact.strict_json import parse
from enginewright.runtime.errors import ExportError

Gates: TypeAlias = tuple[tuple[float, ...] | None, ...]
"""The gates of each layer's KV heads, from 0 to 1; None of a layer with a window, which takes no part."""

TABLE = ".tsv"
"""The ending of the authors' files: a line for each layer, with a number for each KV head, and no word of the model."""


@dataclass(frozen=True, kw_only=True)
class HeadGates:
    """The gates of a model; `tune duo` and `open_head_gates` create it.

    model: the one that was measured; None where the file does not say.
    gates: of its heads, in the model's order.
    repeats: how often the mean query and key were repeated.
    data: the name of the texts' file, or of the problems.
    texts, tokens: the number of texts, and of their tokens.
    """

    model: SourceModel | None
    gates: Gates
    repeats: int = 0
    data: str = ""
    texts: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        known = [gate for layer in self.gates for gate in layer or ()]
        if not known or any(layer == () for layer in self.gates):
            raise ValueError(f"gates: got {[list(layer or ()) for layer in self.gates]}, expected one for each KV head")
        if wrong := [gate for gate in known if not 0 <= gate <= 1]:
            raise ValueError(f"gates: got {wrong[0]}, expected numbers from 0 to 1")

    @property
    def of_layers(self) -> tuple[tuple[float, ...], ...]:
        """The gates of the layers that take part."""
        return tuple(layer for layer in self.gates if layer is not None)

    def whole_heads(self, sparsity: float) -> tuple[tuple[int, ...], ...]:
        """Return the heads of each layer that takes part which keep every token.

        The others are the share `sparsity` of all heads, rounded down: those with the smallest gates, of equal ones the first.
        """
        order = sorted((gate, layer, head) for layer, own in enumerate(self.of_layers) for head, gate in enumerate(own))
        kept = {(layer, head) for _, layer, head in order[int(sparsity * len(order)) :]}
        return tuple(
            tuple(head for head in range(len(own)) if (layer, head) in kept) for layer, own in enumerate(self.of_layers)
        )

    def write(self, path: Path) -> None:
        """Write the file, completely or not at all; ExportError where it cannot be written."""
        write_measured(path, self)


def open_head_gates(path: Path) -> HeadGates:
    """Return the gates of a file, of whatever model.

    Raises:
        ExportError: the file is missing, or has no gates.
    """
    try:
        if path.suffix == TABLE:
            return HeadGates(model=None, gates=_read_table(path))
        found = parse(HeadGates, read_json(path, "gates"), str(path))
        if found.model is None:
            raise ValueError(f"{path}: model: got none, expected that of the gates")
        return found
    except ValueError as e:
        raise ExportError(f"{e}; make the gates by `enginewright tune duo`") from e


def check_head_gates(path: Path, gates: HeadGates, *, sha256: str, layers: int) -> None:
    """Raise ExportError unless the gates of a file are those of a given model, as far as the file says whose they are.

    sha256: of the model's tensors, as `hash_of` gives it.
    layers: the model's number of layers.
    """
    name, found = ("an unnamed model", sha256) if gates.model is None else (repr(gates.model.name), gates.model.sha256)
    if found != sha256 or len(gates.gates) != layers:
        given = "no sha256" if gates.model is None else f"sha256 {found[:12]}"
        raise ExportError(
            f"{path}: got the gates of {name}, {len(gates.gates)} layers, {given}, expected those of this model, {layers} layers, "
            f"sha256 {sha256[:12]}; make them by `enginewright tune duo`"
        )


def _read_table(path: Path) -> Gates:
    """The numbers of the authors' format; ValueError where they are none."""
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise ExportError(f"{path}: cannot be read ({e}); give a file of gates") from e
    try:
        rows = tuple(tuple(float(word) for word in line) for line in lines)
    except ValueError as e:
        raise ValueError(f"{path}: got a word that is no number ({e}), expected numbers with tabs between them") from e
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"{path}: got lines of different lengths, expected a number for each KV head in each")
    return rows
