"""Makes the model's parameters from checkpoint tensors, by transformers' own table of renamings and conversions.

A checkpoint may name and split its tensors in another way than the model does (one tensor per expert, older names).
`transformers.core_model_loading` knows the ways. Only this module touches it, and runs it one parameter at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.weight import Weight, quantized_weight
from enginewright.runtime.errors import ExportError


@dataclass
class _WeightSource:
    """The stored tensors that one or several parameters are made of, and their conversion; `_match` creates it.

    tensors: pairs of a source pattern and a tensor's name.
    converter: transformers' conversion; None: the tensor is the parameter.
    """

    tensors: list[tuple[str, str]] = field(default_factory=list)
    converter: WeightConverter | None = None


def bind_parameters(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, Weight]:
    """Return a float32 weight for every parameter of `model`, tied ones under each of their names.

    Raises:
        ExportError: a parameter has no tensor, or one of another shape or type, in the checkpoint.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weights: dict[str, Weight] = {}
    for target, source in _match(checkpoint, model, parameters).items():
        weights.update(_weights(checkpoint, model, target, source, parameters))
    by_identity = _share_tied(checkpoint, weights, parameters)
    for name, parameter in parameters.items():
        tied = by_identity.get(id(parameter))
        if name not in weights and tied is None:
            raise ExportError(
                f"{checkpoint.path}: parameter {name!r} has no tensor in the checkpoint; "
                "config.json and the weights disagree, or a file is missing"
            )
        if name not in weights and tied is not None:
            weights[name] = tied
    return weights


def source_names(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, str]:
    """Return {parameter of `model`: the checkpoint's tensor that it equals}, with tied parameters under each of their names.

    Parameters that are made of several tensors, or of a part of one, are left out.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = {
        target: source.tensors[0][1]
        for target, source in _match(checkpoint, model, parameters).items()
        if source.converter is None and len(source.tensors) == 1
    }
    by_identity = {id(parameters[target]): name for target, name in names.items()}
    missing = {name: by_identity.get(id(parameter)) for name, parameter in parameters.items() if name not in names}
    return {**names, **{name: found for name, found in missing.items() if found is not None}}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The tensors of a checkpoint that one parameter is made of; `find_conversions` creates it.

    target: the parameter's name.
    names: the tensors' names in order; "" stands for a tensor of the parameter that is not known by name.
    converts: whether more than the name differs between tensor and parameter.
    make: makes the parameter, or what it is changed by, from tensors by name.
    parts: for a tensor of experts, one conversion for each slice [1, ...] along axis 0.
    """

    target: str
    names: tuple[str, ...]
    converts: bool
    make: Callable[[Callable[[str], torch.Tensor]], torch.Tensor]
    parts: tuple[Conversion, ...] = ()


def find_conversions(checkpoint: Checkpoint, model: PreTrainedModel, names: Iterable[str]) -> dict[str, Conversion]:
    """Return {name: the conversion it takes part in} for `names` of tensors, which the checkpoint need not have.

    Names that make no parameter are left out.
    """
    wanted = set(names)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, Conversion] = {}
    for target, source in _match(checkpoint, model, parameters, wanted).items():
        tensors = source.tensors
        if source.converter is not None:  # the checkpoint may hold the parameter itself as well
            tensors = [(pattern, name) for pattern, name in tensors if pattern in source.converter.source_patterns]
        if matched := wanted.intersection(name for _, name in tensors):
            one = _WeightSource(tensors=tensors, converter=source.converter)
            conversion = _conversion(model, target, one, _experts(one, tuple(parameters[target].shape)))
            found.update(dict.fromkeys(matched, conversion))
    return found


def _experts(source: _WeightSource, shape: tuple[int, ...]) -> list[_WeightSource]:
    """The source of each expert, where every pattern that has tensors has one for each; else none."""
    if source.converter is None or len(shape) != 3 or not isinstance(source.converter.operations[0], MergeModulelist):
        return []
    by_pattern: dict[str, list[str]] = {pattern: [] for pattern in source.converter.source_patterns}
    for pattern, name in source.tensors:
        by_pattern[pattern].append(name)
    if any(len(names) not in (0, shape[0]) for names in by_pattern.values()):
        return []
    slices = [
        [(pattern, names[part] if names else "") for pattern, names in by_pattern.items()] for part in range(shape[0])
    ]
    return [_WeightSource(tensors=tensors, converter=source.converter) for tensors in slices]


def _conversion(
    model: PreTrainedModel, target: str, source: _WeightSource, parts: Iterable[_WeightSource] = ()
) -> Conversion:
    return Conversion(
        target=target,
        names=tuple(name for _, name in source.tensors),
        converts=source.converter is not None,
        make=lambda read: _convert(model, target, source, read)[target],
        parts=tuple(_conversion(model, target, part) for part in parts),
    )


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


def _match(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    parameters: dict[str, torch.nn.Parameter],
    further: Iterable[str] = (),
) -> dict[str, _WeightSource]:
    """Group the checkpoint's tensors, and `further` names, by the parameter that they make; what makes none is left out."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known: dict[str, Any] = dict(parameters)
    sources: dict[str, _WeightSource] = {}
    for name in sorted({*checkpoint.tensors, *further}, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if target not in known and name in known:
            target, pattern = name, None
        if target not in known:
            continue
        source = sources.setdefault(target, _WeightSource())
        source.tensors.append((pattern or name, name))
        if pattern is not None:
            source.converter = by_pattern[pattern]
    return sources


def _weights(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    target: str,
    source: _WeightSource,
    parameters: dict[str, torch.nn.Parameter],
) -> dict[str, Weight]:
    """The weights that one source makes, after their shapes are checked on meta tensors."""
    for _, name in source.tensors:
        if (stored := checkpoint.tensors[name]).refusal:
            raise ExportError(
                f"{stored.file}: tensor {name!r} got type {stored.dtype}, {stored.refusal}; pass the unquantised checkpoint"
            )

    def make(read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        return _convert(model, target, source, read)

    def on_meta(name: str) -> torch.Tensor:
        return torch.empty(checkpoint.tensors[name].shape, device="meta")

    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in make(on_meta).items()}
    except (RuntimeError, ValueError, IndexError) as e:
        raise ExportError(f"{checkpoint.path}: {target!r} cannot be made of its tensors in the checkpoint ({e})") from e
    weights = {}
    for name, shape in shapes.items():
        expected = tuple(parameters[name].shape)
        if shape != expected:
            raise ExportError(
                f"{checkpoint.path}: parameter {name!r} got shape {list(shape)} from the checkpoint, expected "
                f"{list(expected)} from config.json; they do not belong together"
            )

        def load(name: str = name) -> np.ndarray:
            return make(checkpoint.read)[name].numpy()

        rows = checkpoint.codes(source.tensors[0][1]) if source.converter is None and len(shape) == 2 else None
        if rows is not None:
            weights[name] = quantized_weight(shape, rows)
            continue
        parts = _parts(checkpoint, model, name, source, shape)
        weights[name] = Weight(shape=shape, dtype=ir.DataType.FLOAT, load=load, parts=parts)
    return weights


def _parts(
    checkpoint: Checkpoint, model: PreTrainedModel, target: str, source: _WeightSource, shape: tuple[int, ...]
) -> tuple[Weight, ...]:
    """The slices of a tensor of experts, so that one expert can be made without the others."""
    if len(shape) != 3:
        return ()
    reads: list[Callable[[], torch.Tensor]] = []
    if source.converter is None:
        reads = [partial(checkpoint.read, source.tensors[0][1], part) for part in range(shape[0])]
    elif isinstance(source.converter.operations[0], MergeModulelist):
        by_pattern: dict[str, list[str]] = {}
        for pattern, name in source.tensors:
            by_pattern.setdefault(pattern, []).append(name)
        if any(len(names) != shape[0] for names in by_pattern.values()):
            return ()
        for part in range(shape[0]):
            tensors = [(pattern, names[part]) for pattern, names in by_pattern.items()]
            one = _WeightSource(tensors=tensors, converter=source.converter)
            reads.append(partial(_read_one, checkpoint, model, target, one))
    return tuple(
        Weight(shape=(1, *shape[1:]), dtype=ir.DataType.FLOAT, load=partial(_as_numpy, read)) for read in reads
    )


def _read_one(checkpoint: Checkpoint, model: PreTrainedModel, target: str, source: _WeightSource) -> torch.Tensor:
    return _convert(model, target, source, checkpoint.read)[target]


def _as_numpy(read: Callable[[], torch.Tensor]) -> np.ndarray:
    return read().numpy()


def _convert(
    model: PreTrainedModel, target: str, source: _WeightSource, read: Callable[[str], torch.Tensor]
) -> dict[str, torch.Tensor]:
    if source.converter is None:
        return {target: read(source.tensors[0][1])}
    converter = copy.deepcopy(source.converter)
    for pattern, name in source.tensors:
        tensor: Any = partial(read, name)  # called by `convert`, so that reading waits until then
        converter.add_tensor(target, name, pattern, tensor)
    made = converter.convert(target, model=model, config=model.config)
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}
