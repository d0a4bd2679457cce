"""Makes the codes of a model's parameters from those of a checkpoint's tensors, without a change of any code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import Concatenate, MergeModulelist

from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.tensor_matching import TensorGroup
from enginewright.exporters.weights.factored_scales import FactoredScales, join_factored
from enginewright.exporters.weights.weight import QuantizedRows, StoredType, Weight, quantized_weight

ROW_WISE = (MergeModulelist, Concatenate)
"""The steps of transformers' conversions that put whole rows in another place."""
_MIXED = "it is made of tensors with codes of several kinds"
_CHANGED = "transformers changes more than the place of its rows"


def keep_codes(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    target: str,
    group: TensorGroup,
    weight: Weight,
    part: int | None = None,
) -> Weight:
    """Return `weight` with the codes of the stored tensors that it is made of, or as it is where they are numbers.

    target: name of the parameter.
    weight: a matrix, or a slice [1, ...] of experts; with the reason in `stored` if its codes cannot be kept.
    part: number of the slice, if the whole tensor of experts is one stored tensor.
    """
    tensors = [checkpoint.tensors[name] for _, name in group.tensors]
    names = list(dict.fromkeys(tensor.codes for tensor in tensors))
    if not any(names):
        return weight
    rows, reason = _find_rows(checkpoint, model, target, group, weight, part)
    name = "+".join(filter(None, names))
    stored = StoredType(name=name, restored="" if rows is not None else reason, matrices=len(tensors))
    if rows is None:
        return Weight(shape=weight.shape, dtype=weight.dtype, load=weight.load, stored=stored)
    return quantized_weight(weight.shape, rows, stored)


def _find_rows(
    checkpoint: Checkpoint, model: PreTrainedModel, target: str, group: TensorGroup, weight: Weight, part: int | None
) -> tuple[QuantizedRows | None, str]:
    """The codes, or None and the reason."""
    names = [name for _, name in group.tensors]
    for tensor in (checkpoint.tensors[name] for name in names):
        if not tensor.codes or tensor.restored:
            return None, tensor.restored or _MIXED
    found = {name: checkpoint.codes(name, part) for name in names}
    rows = [each for each in found.values() if each is not None]
    if len(rows) != len(names):
        return None, "its groups differ in size, which no form of codes expresses"
    if group.converter is None:
        return rows[0], ""
    if not all(isinstance(step, ROW_WISE) for step in group.converter.operations) or any(
        r.input_axis != 1 for r in rows
    ):
        return None, _CHANGED
    rows = _alike(rows)
    if len({(each.bits, each.group_size, each.offset, each.order_hash) for each in rows}) != 1:
        return None, _MIXED
    joined = _join(model, target, group, dict(zip(found, rows, strict=True)))
    wanted = weight.shape[-2:]
    shapes = group.shapes(checkpoint, model, target)
    return (joined, "") if tuple(shapes[target][-2:]) == wanted else (None, _CHANGED)


def _alike(rows: list[QuantizedRows]) -> list[QuantizedRows]:
    """The same with zero points in the middle where others have some: these change nothing."""
    if {each.offset for each in rows} != {"", "zero_points"}:
        return rows
    return [
        dataclasses.replace(each, zero_points=partial(_middle, each)) if each.zero_points is None else each
        for each in rows
    ]


def _middle(rows: QuantizedRows) -> np.ndarray:
    return np.zeros(rows.load()[1].shape, np.int8)


def _join(model: PreTrainedModel, target: str, group: TensorGroup, rows: dict[str, QuantizedRows]) -> QuantizedRows:
    """The rows of all tensors in the places that the conversion gives them."""
    first = next(iter(rows.values()))

    def place(values: dict[str, np.ndarray]) -> np.ndarray:
        made = group.make(model, target, lambda name: torch.from_numpy(np.ascontiguousarray(values[name])))[target]
        return made.reshape(-1, made.shape[-1]).numpy()

    def convert(read: Callable[[QuantizedRows], np.ndarray]) -> np.ndarray:
        return place({name: read(each) for name, each in rows.items()})

    def load() -> tuple[np.ndarray, np.ndarray]:
        loaded = {name: each.load() for name, each in rows.items()}
        return place({name: codes for name, (codes, _) in loaded.items()}), place(
            {name: scales for name, (_, scales) in loaded.items()}
        )

    factored = [each.factored for each in rows.values() if each.factored is not None]

    def join_products() -> FactoredScales:
        return join_factored([each() for each in factored], lambda parts: place(dict(zip(rows, parts, strict=True))))

    return QuantizedRows(
        bits=first.bits,
        group_size=first.group_size,
        load=load,
        zero_points=partial(convert, _zero_points) if first.zero_points is not None else None,
        minima=partial(convert, _minima) if first.minima is not None else None,
        halves=all(each.halves for each in rows.values()),
        factored=join_products if len(factored) == len(rows) else None,
        order=first.order,
    )


def _zero_points(rows: QuantizedRows) -> np.ndarray:
    assert rows.zero_points is not None
    return rows.zero_points()


def _minima(rows: QuantizedRows) -> np.ndarray:
    assert rows.minima is not None
    return rows.minima()
