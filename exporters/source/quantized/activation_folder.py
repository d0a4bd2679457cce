"""The base of formats that hold scales for activations and caches as well, which engines do not take over."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

from enginewright.exporters.source.quantized.exported_bits import read_code_bits
from enginewright.exporters.source.quantized.quantized_folder import QuantizedFolder
from enginewright.exporters.source.tensor_source import StoredTensor
from enginewright.exporters.source.unused import UnusedParts

ACTIVATIONS = "engines choose the type of activations themselves (compute of --weights)"
"""Why settings and scales of activations are not used."""
CACHE = "the cache has the type of --kv-bits"
"""Why settings and scales of keys and values are not used."""
_SIDES = ("input", "output")
_KINDS = ("scale", "zero_point", "global_scale")
SUFFIXES = {
    **{f".{side}_{kind}": ACTIVATIONS for side in _SIDES for kind in _KINDS},
    **{f".{letter}_{kind}": CACHE for letter in "qkv" for kind in _KINDS},
}
"""Ends of the names of such tensors, and why they are not used."""


class ActivationFolder(QuantizedFolder):
    """An opened directory of codes whose tensors for activations are named as not used; formats derive from it."""

    @functools.cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The tensors of weights: all but those for activations and caches."""
        return {name: stored for name, stored in super().tensors.items() if not _reason(name)}

    @functools.cached_property
    def code_bits(self) -> dict[str, int]:
        """The bits of the codes of modules that an export of ours has widened."""
        return read_code_bits(self.path)

    def unused(self) -> Iterator[UnusedParts]:
        """The tensors for activations and caches, by file and reason."""
        found: dict[tuple[str, str], list[str]] = {}
        for name, stored in self.files.tensors.items():
            if reason := _reason(name):
                found.setdefault((stored.file.name, reason), []).append(name)
        for (file, reason), names in sorted(found.items()):
            yield UnusedParts(file=file, names=tuple(names), reason=reason)


def _reason(name: str) -> str:
    return SUFFIXES.get(f".{name.rpartition('.')[2]}", "")
