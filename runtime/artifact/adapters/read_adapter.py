"""Reads a LoRA adapter in PEFT's format for an engine that adds adapters request by request."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.adapters.settings import AdapterConfig, read_settings
from enginewright.runtime.artifact.manifest import AdapterLayout, Condition
from enginewright.runtime.artifact.safetensors_file import Floats, read_floats
from enginewright.runtime.errors import ArtifactError, UnsupportedError

WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.[^.]+)?\.weight")
_LARGEST = float(np.finfo(np.float16).max)


def read_adapter(folder: Path, condition: Condition) -> dict[str, NDArray[np.float16]]:
    """Return the factors of the adapter in `folder` as values for `condition`, by tensor; zeros where a layer has none.

    The adapter's scaling is in the second factor. Powers of two move from one factor to the other, so that both use the range
    of a half; this changes no product by more than the rounding of halves, 5e-4 of it.

    Raises:
        ArtifactError: a file is missing or damaged, or the adapter does not fit: another model's layers or sizes, a rank above
            the engine's, numbers that are not finite.
        UnsupportedError: the adapter is more than factors of linear layers.
    """
    layout = condition.adapters
    assert layout is not None
    settings = read_settings(folder)
    _check_kind(settings)
    values = {name: np.zeros(spec.shape, np.float16) for name, spec in condition.tensors.items()}
    for module, (a, b) in _pairs(folder / WEIGHTS, sum(each.size for each in values.values())).items():
        target, place = _find(folder, module, layout)
        sizes = layout.targets[target]
        rank = a.shape[0]
        if a.ndim != 2 or b.ndim != 2 or (b.shape[1], a.shape[1], b.shape[0]) != (rank, sizes.inputs, sizes.outputs):
            raise ArtifactError(
                f"{folder}: {module!r}: got A {list(a.shape)} and B {list(b.shape)}, expected [r, {sizes.inputs}] and "
                f"[{sizes.outputs}, r]; the adapter is for another model"
            )
        if rank > layout.rank:
            raise ArtifactError(
                f"{folder}: {module!r}: got rank {rank}, and the engine takes {layout.rank} at most; build it with "
                f"adapters:rank={rank}"
            )
        if rank != settings.rank_of(module):
            raise ArtifactError(
                f"{folder}: {module!r}: got rank {rank}, expected {settings.rank_of(module)} by {settings.path.name}; save the "
                "adapter anew"
            )
        first, second = _halves(f"{folder}: {module!r}", a, b * np.float32(settings.scaling(module)))
        values[f"{target}_a"][place, :rank] = first
        values[f"{target}_b"][place, :rank] = second.T
    return values


def _check_kind(settings: AdapterConfig) -> None:
    """Raise UnsupportedError for an adapter that changes more than the products of linear layers."""
    given = {
        "use_dora": settings.dora,
        "lora_bias": settings.biases,
        "init_lora_weights": settings.residual,
        "modules_to_save": settings.saved,
        "target_parameters": settings.parameters,
        "trainable_token_indices": settings.tokens,
    }
    if wrong := [key for key, value in given.items() if value]:
        raise UnsupportedError(
            f"{settings.path}: got {wrong[0]}, which no factors of a request express; merge this adapter into an engine of its "
            "own: --apply lora:path=..."
        )


def _pairs(path: Path, numbers: int) -> dict[str, tuple[Floats, Floats]]:
    """A and B of each layer, by its name; `numbers`: the most that the engine can take."""
    found: dict[str, dict[str, Floats]] = {}
    for key, tensor in read_floats(path, numbers).items():
        match = _FACTOR.fullmatch(key)
        if match is None:
            raise UnsupportedError(
                f"{path}: got the tensor {key!r}, expected lora_A and lora_B of linear layers alone; merge this adapter into an "
                "engine of its own: --apply lora:path=..."
            )
        if match["part"] in found.setdefault(match["module"], {}):
            raise ArtifactError(f"{path}: got {key!r} and another {match['part']} of this layer, expected one adapter")
        found[match["module"]][match["part"]] = tensor
    if half := [module for module, parts in found.items() if len(parts) != 2]:
        raise ArtifactError(f"{path}: {half[0]!r} has lora_{min(found[half[0]])} alone, expected lora_A and lora_B")
    if not found:
        raise ArtifactError(f"{path}: holds no adapter, expected lora_A and lora_B of at least one layer")
    return {module: (parts["A"], parts["B"]) for module, parts in found.items()}


def _find(folder: Path, module: str, layout: AdapterLayout) -> tuple[str, int]:
    """The target that a layer belongs to, and its place there."""
    for name, target in layout.targets.items():
        for place, layer in enumerate(target.layers):
            if module == target.module.format(layer):
                return name, place
    known = ", ".join(target.module.format("N") for target in layout.targets.values())
    raise ArtifactError(
        f"{folder}: adapts {module!r}, and the engine adds adapters to {known}; build it with these targets, or the adapter is "
        "for another model"
    )


def _halves(where: str, a: Floats, b: Floats) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """A and B as halves, A 2^e and B 2^-e e such that their largest numbers have nearly one size."""
    largest = [float(np.abs(each).max(initial=0)) for each in (a, b)]
    if not all(np.isfinite(largest)):
        raise ArtifactError(f"{where}: got NaN or infinity, expected finite numbers")
    if 0 in largest:
        return np.zeros_like(a, np.float16), np.zeros_like(b, np.float16)
    exponent = round(float(np.log2(largest[1] / largest[0])) / 2)
    if max(largest[0] * 2.0**exponent, largest[1] * 2.0**-exponent) > _LARGEST:
        raise ArtifactError(f"{where}: got numbers up to {max(largest):.3g}, expected a product in the range of halves")
    return np.ldexp(a, exponent).astype(np.float16), np.ldexp(b, -exponent).astype(np.float16)
