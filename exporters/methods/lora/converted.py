"""Pairs of tensors that the model has in one parameter, such as the projections of experts, one by one in a checkpoint.

A conversion only moves numbers. So what the pairs add to the checkpoint's tensors, converted in the same way as those, is what
they add to the parameter. Tensors without a pair count as zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from enginewright.exporters.methods.lora.adapter import Adapter
from enginewright.exporters.methods.lora.changes import Changes
from enginewright.exporters.methods.lora.pairs import Pair
from enginewright.exporters.methods.lora.places import Place
from enginewright.exporters.methods.lora.products import product
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.conversions import Conversion
from enginewright.runtime.errors import ExportError, UnsupportedError

_Pairs = dict[str, tuple[Pair, float]]  # by tensor, with the scale


def merge_converted(
    adapter: Adapter, changes: Changes, factor: float, checkpoint: Checkpoint, places: Sequence[tuple[Pair, Place]]
) -> None:
    """Merge pairs whose places are tensors of the checkpoint that parameters are made of.

    Raises:
        ExportError: a pair is not of its tensor's shape.
        UnsupportedError: the conversion cannot be made of the tensors that are known.
    """
    groups: dict[str, _Pairs] = {}
    for pair, place in places:
        _check_pair(adapter, checkpoint, pair, place)
        scaling = factor * adapter.settings.scaling(place.scaled_as)
        groups.setdefault(place.parameter, {})[place.source] = pair, scaling
    for parameter, pairs in groups.items():
        _merge(adapter, changes, checkpoint, parameter, pairs)


def _check_pair(adapter: Adapter, checkpoint: Checkpoint, pair: Pair, place: Place) -> None:
    a, b = pair.a.shape, pair.b.shape
    stored = checkpoint.tensors.get(place.source)
    known = stored is None or (len(a) == len(b) == 2 and tuple(stored.shape) == (b[0], a[1]))
    if not known or len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        expected = "a product" if stored is None else f"a product of {list(stored.shape)}"
        raise ExportError(
            f"{adapter.root}: {pair.module!r} got A {list(a)} and B {list(b)}, expected {expected}; the adapter is for another "
            "model"
        )
    if a[0] != (rank := adapter.settings.rank_of(place.scaled_as)):
        raise ExportError(
            f"{adapter.root}: {pair.module!r} got rank {a[0]}, expected {rank} by r and rank_pattern of "
            f"{adapter.settings.path.name}; save the adapter anew"
        )


def _merge(adapter: Adapter, changes: Changes, checkpoint: Checkpoint, parameter: str, pairs: _Pairs) -> None:
    """Merge the pairs of one parameter: expert by expert where it has them, else at once."""
    conversion = adapter.places.conversions[next(iter(pairs))]
    first = next(iter(pairs.values()))[0]
    by, usual = first.module, (first.b.shape[0], first.a.shape[1])

    def shape_of(name: str) -> tuple[int, ...]:
        if name in pairs:
            pair = pairs[name][0]
            return pair.b.shape[0], pair.a.shape[1]
        return tuple(checkpoint.tensors[name].shape) if name in checkpoint.tensors else usual

    def read(name: str) -> torch.Tensor:
        if name not in pairs:
            return torch.zeros(shape_of(name))
        pair, scaling = pairs[name]
        return product(adapter.file.read(pair.a.key), adapter.file.read(pair.b.key), scaling, transposed=False)

    shape = adapter.places.shape(parameter)
    _check_made(adapter, conversion, shape, shape_of, by)
    if not conversion.parts:
        changes.change(parameter, by, lambda weight: weight + conversion.make(read), additive=True)
        return
    touched = {number: part for number, part in enumerate(conversion.parts) if pairs.keys() & set(part.names)}
    changes.add_to_parts(parameter, by, {number: partial(part.make, read) for number, part in touched.items()})


def _check_made(
    adapter: Adapter,
    conversion: Conversion,
    shape: tuple[int, ...],
    shape_of: Callable[[str], tuple[int, ...]],
    by: str,
) -> None:
    """Raise UnsupportedError unless the conversion makes a tensor of the parameter's shape."""
    one = conversion.parts[0] if conversion.parts else conversion
    expected = (1, *shape[1:]) if conversion.parts else shape
    try:
        got = tuple(one.make(lambda name: torch.empty(shape_of(name), device="meta")).shape)
    except (RuntimeError, ValueError, IndexError, KeyError) as e:
        raise UnsupportedError(f"{adapter.root}: {by!r} cannot be placed in {conversion.target!r} ({e})") from e
    if got != expected:
        raise UnsupportedError(
            f"{adapter.root}: {by!r} gives {list(got)} of {conversion.target!r}, expected {list(expected)}; the checkpoint has "
            "it in one tensor, so pairs of all its parts are needed; merge the adapter with PEFT, and build the result"
        )
