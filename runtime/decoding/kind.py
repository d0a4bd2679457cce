"""The kinds of decoding that an engine can be made for; each module in `kinds/` has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.decoding.program import Decoder


def _one(_: Mapping[str, Any]) -> int:
    return 1


@dataclass(frozen=True, kw_only=True)
class DecodingKind:
    """A kind of decoding; a module in `kinds/` creates it as its KIND.

    The functions get the manifest's `decoding`, {"kind": name, ...}; they raise ArtifactError for settings that they cannot
    use.

    name: as the manifest has it.
    open: called as open(decoding, pieces); returns the decoder of one engine.
    width: the most tokens that a steady row brings into a step; it gets as many rows of logits.
    outputs: the outputs of the decoder graph that the kind reads, in addition to `logits` and `greedy_tokens`.
    inputs: the inputs of the decoder graph that its feeds fill (`Feed.ports`), out of the manifest's `token_inputs`.
    """

    name: str
    open: Callable[[Mapping[str, Any], Pieces], Decoder]
    width: Callable[[Mapping[str, Any]], int] = _one
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
