"""The merge of one adapter's pairs of factors; everything else that it holds comes before them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from enginewright.exporters.methods.lora.adapter import Adapter, open_adapter
from enginewright.exporters.methods.lora.adapter_file import WEIGHTS
from enginewright.exporters.methods.lora.changes import Changes
from enginewright.exporters.methods.lora.converted import merge_converted
from enginewright.exporters.methods.lora.pairs import Pair
from enginewright.exporters.methods.lora.places import Place
from enginewright.exporters.methods.lora.products import expert_product, product, residual, with_magnitude
from enginewright.exporters.methods.lora.whole import take_tokens, take_whole
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.artifact.adapters.settings import CONFIG
from enginewright.runtime.errors import ExportError, UnsupportedError


def merge_adapter(root: Path, factor: float, weights: dict[str, Weight], checkpoint: Checkpoint) -> dict[str, Weight]:
    """Return `weights` with the adapter in the directory `root` merged.

    factor: on what the adapter adds.

    Raises:
        ExportError: a file is missing or broken, or the adapter does not fit the model.
        UnsupportedError: the adapter is of a kind that cannot be merged.
    """
    adapter = open_adapter(root, checkpoint)
    changes = Changes(root, factor, weights)
    take_whole(adapter, changes)
    take_tokens(adapter, changes)
    places = [
        (pair, adapter.places.embedding(pair.module) if pair.is_embedding else adapter.places.pair(pair.module))
        for pair in adapter.pairs
    ]
    for pair, place in places:
        _check_kind(adapter, pair, place)
        if place.kind != "converted":
            check_factors(adapter, pair, place)
            _merge(adapter, changes, factor, pair, place)
    merge_converted(adapter, changes, factor, checkpoint, [each for each in places if each[1].kind == "converted"])
    for names in {tuple(names) for names in adapter.places.tied.values()}:
        changes.share_equal(names)
    unmatched = adapter.settings.unmatched([place.scaled_as for _, place in places])
    checkpoint.unused.add(f"{root.name}/{CONFIG}", unmatched, "no module that the adapter changes has a name like that")
    trained = (entry.key for entry in adapter.entries("training"))
    checkpoint.unused.add(f"{root.name}/{WEIGHTS}", trained, "VeLoRA reads them while it trains, and not after")
    return changes.weights


def _check_kind(adapter: Adapter, pair: Pair, place: Place) -> None:
    """Raise UnsupportedError for what PEFT has for layers alone, where the pair is of a parameter."""
    settings, where = adapter.settings, f"{adapter.root}: adapts {pair.module!r}"
    if place.kind in ("parameter", "converted"):
        wanted = {"use_dora": settings.dora, "lora_bias": settings.biases, "init_lora_weights": settings.residual}
        if given := [key for key, value in wanted.items() if value]:
            raise UnsupportedError(
                f"{where}, which is {place.parameter!r} in the model, no layer of its own: {given[0]} cannot be merged there, by "
                "PEFT either"
            )
    if place.kind == "layer" and settings.residual:
        if len(adapter.places.tied[place.parameter]) > 1:
            raise UnsupportedError(
                f"{where}, whose weight is tied: init_lora_weights={settings.residual!r} takes a part of it away from both"
            )
        if settings.residual == "olora" and place.transposed:
            raise UnsupportedError(f"{where}, a Conv1D: PEFT merges init_lora_weights='olora' of Linear layers alone")
    if pair.bias is not None and not place.bias:
        raise UnsupportedError(
            f"{where} with a bias, and the model's layer has none, so it cannot be merged, by PEFT either"
        )


def check_factors(adapter: Adapter, pair: Pair, place: Place) -> None:
    """Raise ExportError unless the pair's shapes are those of the place and of the settings."""
    shape, a, b = place.shape, pair.a.shape, pair.b.shape
    experts = shape[0] if len(shape) == 3 else 1
    matrix = shape[:-3:-1] if place.transposed else shape[-2:]
    if place.kind == "embedding" and len(a) == 2:
        adapter.check_shape(pair.a, (a[1], shape[1]), place.parameter)
    if not (len(a) == len(b) == 2 and matrix == (b[0], a[1]) and a[0] == b[1] > 0):
        raise ExportError(
            f"{adapter.root}: {pair.module!r} got A {list(a)} and B {list(b)}, expected a product of {list(matrix)}; the "
            "adapter is for another model"
        )
    if a[0] != (rank := adapter.settings.rank_of(place.scaled_as) * experts):
        raise ExportError(
            f"{adapter.root}: {pair.module!r} got rank {a[0]}, expected {rank} by r and rank_pattern of {CONFIG}; save the "
            "adapter anew"
        )
    for part in (pair.magnitude, pair.bias):
        if part is not None and part.shape != (b[0],):
            raise ExportError(f"{adapter.root}: {part.key!r} got {list(part.shape)}, expected {[b[0]]}")


def _merge(adapter: Adapter, changes: Changes, factor: float, pair: Pair, place: Place) -> None:
    """Merge a pair into the parameter that is its own, or into every expert of it."""
    scaling, shape = adapter.settings.scaling(place.scaled_as), place.shape
    if len(shape) == 3:
        deltas = {
            expert: partial(_expert_delta, adapter, pair, place, factor * scaling, expert) for expert in range(shape[0])
        }
        changes.add_to_parts(place.parameter, pair.module, deltas)
        return
    start = adapter.settings.residual if place.kind == "layer" else ""
    change = partial(_merged, adapter, pair, place, start, factor, scaling)
    changes.change(place.parameter, pair.module, change, additive=pair.magnitude is None and not start)
    if pair.bias is not None:
        key = pair.bias.key
        add = partial(_with_bias, adapter, key, factor * scaling)
        changes.change(place.bias, f"{pair.module}.bias", add, additive=True)


def _merged(
    adapter: Adapter, pair: Pair, place: Place, start: str, factor: float, scaling: float, weight: torch.Tensor
) -> torch.Tensor:
    a, b = adapter.file.read(pair.a.key), adapter.file.read(pair.b.key)
    if start:
        weight = residual(weight, start, a.shape[0], scaling, transposed=place.transposed)
    delta = product(a, b, factor * scaling, transposed=place.transposed)
    if pair.magnitude is None:
        return weight + delta
    magnitude = adapter.file.read(pair.magnitude.key)
    return with_magnitude(weight, delta, magnitude, transposed=place.transposed)


def _expert_delta(adapter: Adapter, pair: Pair, place: Place, scaling: float, expert: int) -> torch.Tensor:
    a, b = adapter.file.read_pair(pair.a.key, pair.b.key)
    return expert_product(a, b, scaling, expert, place.shape[0], transposed=place.transposed)


def _with_bias(adapter: Adapter, key: str, scaling: float, bias: torch.Tensor) -> torch.Tensor:
    return bias + adapter.file.read(key) * scaling
