"""Measures the demand of each layer: the model reads texts, block by block, and its attention is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from enginewright.exporters.calibration.blocks import load_blocks
from enginewright.exporters.calibration.observe import run_blocks
from enginewright.exporters.capture import attention_hook
from enginewright.exporters.capture.cache_formats import PagedCacheFormat
from enginewright.exporters.capture.capture import read_layers
from enginewright.exporters.methods.reasonalloc.counting_attention import ATTENTION, Counting, watched
from enginewright.exporters.methods.reasonalloc.curve import Aggregate
from enginewright.exporters.methods.reasonalloc.written_texts import WrittenText
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import Skeleton, load_skeleton
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError, UnsupportedError

HeadMeans = tuple[tuple[float, ...] | None, ...]


@dataclass(frozen=True, kw_only=True)
class DemandOptions:
    """The way in which demand is counted; the command creates it.

    rho: the share of attention that a query's tokens are to have.
    positions: queries of a text at most.
    aggregate: the way from counts to a layer's demand.
    """

    rho: float = 0.93
    positions: int = 64
    aggregate: Aggregate = "mean"

    def __post_init__(self) -> None:
        if not 0 < self.rho < 1:
            raise ExportError(f"--rho: got {self.rho}, expected a number between 0 and 1")
        if self.positions < 1:
            raise ExportError(f"--positions: got {self.positions}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """A model whose demand can be measured; `open_model` creates it.

    checkpoint: of the model.
    weights: recipes of its parameters by name.
    layers: the number of its layers.
    """

    checkpoint: Checkpoint
    weights: Mapping[str, Weight]
    layers: int


def open_model(checkpoint: Checkpoint) -> MeasuredModel:
    """Return the model, whose weights are not read yet.

    Raises:
        ExportError: a parameter has no tensor.
        UnsupportedError: a layer has no attention that an engine could hold, or every layer has a window.
    """
    context = checkpoint.default_context or 1
    skeleton: Skeleton = load_skeleton(checkpoint, attention=attention_hook.ATTENTION, max_context=context)
    layers = read_layers(skeleton, PagedCacheFormat(16))
    if all(layer.window for layer in layers):
        raise UnsupportedError(
            f"{checkpoint.path}: got a window in each of the {len(layers)} layers, expected one without; windowed layers free "
            "their tokens by themselves, so there is no budget to share out"
        )
    weights = bind_parameters(checkpoint, skeleton.model, restored="attention is measured")
    return MeasuredModel(checkpoint=checkpoint, weights=weights, layers=len(layers))


def measure_demand(model: MeasuredModel, texts: Sequence[WrittenText], options: DemandOptions) -> HeadMeans:
    """Return the mean number of tokens that each query head of each layer needs; None for a layer with a window.

    With heads_first a layer has one number, that of the heads' mean weights. In memory are one block and the texts' states.

    Raises:
        ExportError: a hidden state is not finite.
        UnsupportedError: the model's blocks cannot be run one by one.
    """
    blocks = load_blocks(model.checkpoint, None, attention=ATTENTION)
    passes = [
        Counting(
            family=model.checkpoint.config.model_type,
            positions=text.positions(options.positions),
            rho=options.rho,
            heads_first=options.aggregate == "heads_first",
        )
        for text in texts
    ]

    def around(_: torch.nn.Module, block: int, batch: int) -> AbstractContextManager[None]:
        return watched(passes[batch])

    run_blocks(blocks, model.weights, [torch.tensor([text.ids]) for text in texts], around)
    means: list[tuple[float, ...] | None] = []
    for layer in range(model.layers):
        found = [each.needed[layer] for each in passes if layer in each.needed]
        means.append(tuple(torch.cat(found, dim=1).double().mean(dim=1).tolist()) if found else None)
    return tuple(means)


def layer_demand(heads: HeadMeans, aggregate: Aggregate) -> tuple[float | None, ...]:
    """Return each layer's demand from its heads' means: the largest with max_head, else the mean."""
    return tuple(None if own is None else max(own) if aggregate == "max_head" else sum(own) / len(own) for own in heads)
