"""The pairs of factors in an adapter's file, each with the bias or the magnitudes that belong to it."""

from __future__ import annotations

from dataclasses import dataclass

from enginewright.exporters.methods.lora.adapter_file import AdapterFile, AdapterTensor
from enginewright.runtime.artifact.adapters.settings import AdapterConfig
from enginewright.runtime.errors import ExportError

_OF_PAIRS = ("A", "B", "B bias", "embedding A", "embedding B", "magnitude")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The factors of one module; `collect_pairs` creates it.

    module: its name in the adapter.
    is_embedding: whether the factors are lora_embedding_A and lora_embedding_B.
    a, b: A [r, in] and B [out, r]; of an embedding A [r, V] and B [D, r].
    bias: of B.
    magnitude: of the merged weight's rows, or of an embedding's columns.
    """

    module: str
    is_embedding: bool
    a: AdapterTensor
    b: AdapterTensor
    bias: AdapterTensor | None
    magnitude: AdapterTensor | None


def collect_pairs(file: AdapterFile, settings: AdapterConfig) -> list[Pair]:
    """Return the pairs in the file, in order.

    Raises:
        ExportError: a pair is not whole, or has other parts than the settings say.
    """
    by_module: dict[str, dict[str, AdapterTensor]] = {}
    for entry in file.entries:
        if entry.role in _OF_PAIRS:
            found = by_module.setdefault(entry.name, {})
            if entry.role in found:
                raise ExportError(f"{file.path}: got {found[entry.role].key!r} and {entry.key!r}, expected one of them")
            found[entry.role] = entry
    return [_pair(file, settings, module, found) for module, found in by_module.items()]


def _pair(file: AdapterFile, settings: AdapterConfig, module: str, found: dict[str, AdapterTensor]) -> Pair:
    is_embedding = any(role.startswith("embedding") for role in found)
    kind = "embedding " if is_embedding else ""
    names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A", "lora_B")
    a, b = found.pop(f"{kind}A", None), found.pop(f"{kind}B", None)
    bias, magnitude = found.pop("B bias", None), found.pop("magnitude", None)
    if a is None or b is None or found:
        got = names[0] if a is not None else names[1] if b is not None else "others"
        raise ExportError(f"{file.path}: {module!r} has {got} alone, expected {names[0]} and {names[1]}")
    for entry, wanted, setting in (
        (magnitude, settings.dora, "use_dora"),
        (bias, settings.biases and not is_embedding, "lora_bias"),
    ):
        if (entry is not None) != wanted:
            part = "magnitudes" if setting == "use_dora" else "a bias of lora_B"
            got = "has" if entry is not None else "lacks"
            raise ExportError(
                f"{file.path}: {module!r} {got} {part}, and {settings.path.name} says the contrary in {setting}; save the "
                "adapter anew"
            )
    return Pair(module=module, is_embedding=is_embedding, a=a, b=b, bias=bias, magnitude=magnitude)
