"""Makes the weights of a model's parameters from the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from transformers import PreTrainedModel

from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.quantized.bind_codes import keep_codes
from enginewright.exporters.source.tensor_matching import TensorGroup, check_shape, match_tensors, note_unused
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError


def bind_parameters(
    checkpoint: Checkpoint, model: PreTrainedModel, *, restored: str = "the command reads numbers"
) -> dict[str, Weight]:
    """Return a float32 weight for every parameter of `model`, tied ones under each of their names.

    restored: why matrices that the checkpoint stores as codes become numbers, which methods can change, as a phrase; empty:
        they are quantised.

    Raises:
        ExportError: a parameter has no tensor, or one of another shape or type, in the checkpoint.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    matching = match_tensors(checkpoint, model)
    weights: dict[str, Weight] = {}
    for target, group in matching.groups.items():
        if target in parameters and group.whole:
            weights.update(_weights(checkpoint, model, target, group, parameters))
    if restored:
        weights = {name: weight.restored(restored) for name, weight in weights.items()}
    by_identity = _share_tied(checkpoint, weights, parameters)
    for name in [name for name in parameters if name not in weights]:
        tied = by_identity.get(id(parameters[name]))
        if tied is None:
            raise matching.lack(checkpoint, name, "parameter")
        weights[name] = tied
    note_unused(checkpoint, checkpoint.unused, model, matching)
    return weights


def source_names(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, str]:
    """Return {parameter of `model`: the checkpoint's tensor that it equals}, with tied parameters under each of their names.

    Parameters that are made of several tensors, or of a part of one, are left out.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = {
        target: group.tensors[0][1]
        for target, group in match_tensors(checkpoint, model).groups.items()
        if target in parameters and group.converter is None and group.whole
    }
    by_identity = {id(parameters[target]): name for target, name in names.items()}
    missing = {name: by_identity.get(id(parameter)) for name, parameter in parameters.items() if name not in names}
    return {**names, **{name: found for name, found in missing.items() if found is not None}}


def _share_tied(
    checkpoint: Checkpoint, weights: dict[str, Weight], parameters: dict[str, torch.nn.Parameter]
) -> dict[int, Weight]:
    """Give all names of one parameter the same weight, and return the weights by the parameters' ids.

    The tensors of one parameter must be equal.
    """
    first: dict[int, str] = {}
    for name in weights:
        owner = first.setdefault(id(parameters[name]), name)
        if owner == name:
            continue
        if not np.array_equal(weights[owner].load(), weights[name].load()):
            raise ExportError(
                f"{checkpoint.path}: {owner!r} and {name!r} differ in the checkpoint, but config.json ties them; "
                'set "tie_word_embeddings": false in it'
            )
        weights[name] = weights[owner]
    return {identity: weights[name] for identity, name in first.items()}


def _weights(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    target: str,
    group: TensorGroup,
    parameters: dict[str, torch.nn.Parameter],
) -> dict[str, Weight]:
    """The weights that one group makes, after their shapes are checked on meta tensors."""
    for _, name in group.tensors:
        if (stored := checkpoint.tensors[name]).refusal:
            raise ExportError(
                f"{stored.file}: tensor {name!r} got type {stored.dtype}, {stored.refusal}; pass the unquantised checkpoint"
            )
    weights = {}
    for name, shape in group.shapes(checkpoint, model, target).items():
        check_shape(checkpoint, f"parameter {name!r}", shape, parameters[name])

        def load(name: str = name) -> np.ndarray:
            return group.make(model, target, checkpoint.read)[name].numpy()

        parts = _parts(checkpoint, model, name, group, shape)
        weight = Weight(shape=shape, dtype=ir.DataType.FLOAT, load=load, parts=parts)
        weights[name] = keep_codes(checkpoint, model, name, group, weight) if len(shape) == 2 else weight
    return weights


def _parts(
    checkpoint: Checkpoint, model: PreTrainedModel, target: str, group: TensorGroup, shape: tuple[int, ...]
) -> tuple[Weight, ...]:
    """The slices of a tensor of experts, so that one expert can be made without the others."""
    if len(shape) != 3:
        return ()
    slice_shape = (1, *shape[1:])
    parts: list[Weight] = []
    if group.converter is None:
        for number in range(shape[0]):
            weight = _slice(slice_shape, partial(checkpoint.read, group.tensors[0][1], number))
            parts.append(keep_codes(checkpoint, model, target, group, weight, number))
    for one in group.experts(shape[0]):
        weight = _slice(slice_shape, partial(_read_one, checkpoint, model, target, one))
        parts.append(keep_codes(checkpoint, model, target, one, weight))
    return tuple(parts)


def _slice(shape: tuple[int, ...], read: Callable[[], torch.Tensor]) -> Weight:
    return Weight(shape=shape, dtype=ir.DataType.FLOAT, load=partial(_as_numpy, read))


def _read_one(checkpoint: Checkpoint, model: PreTrainedModel, target: str, group: TensorGroup) -> torch.Tensor:
    return group.make(model, target, checkpoint.read)[target]


def _as_numpy(read: Callable[[], torch.Tensor]) -> np.ndarray:
    return read().numpy()
