"""Captures a model's forward pass as the packed, ragged decoder graph, through one attention hook and no model code of ours.

The model runs as batch 1, with the tokens of all sequences one after another. Only attention knows about sequences, so it is
enough to replace the attention function: each layer calls our op on its own tile pool instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from transformers import PreTrainedModel

from enginewright.exporters.capture import op_bindings
from enginewright.exporters.capture.attention_hook import Trace, tracing
from enginewright.exporters.capture.cache_formats import CacheFormat, Tensors
from enginewright.exporters.capture.signature import (
    EXAMPLE,
    Signature,
    dynamic_shapes,
    example_inputs,
    name_signature,
    zeros,
)
from enginewright.exporters.capture.torch_export import export_module, traceable
from enginewright.exporters.features.registry import read_features
from enginewright.exporters.source.skeleton import Skeleton
from enginewright.runtime.artifact.manifest import CacheLayer
from enginewright.runtime.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Captured:
    """A decoder graph without weights; `capture` creates it.

    model: the graph. Its initializers have the names of the model's parameters and buffers, and hold no values.
    skeleton: the model that was captured; its `buffers` are the values that no checkpoint has.
    layers: the cache of each attention layer, in order.
    """

    model: ir.Model
    skeleton: Skeleton
    layers: tuple[CacheLayer, ...]


def capture(skeleton: Skeleton, cache: CacheFormat) -> Captured:
    """Return the packed decoder graph of a model, without reading a weight.

    skeleton: made by `build_skeleton(config, attention=ATTENTION, ...)`.
    cache: the format in which keys and values are held.

    Raises:
        UnsupportedError: the model's attention does not go through the hook, or does something that the op cannot express.
    """
    _check_positions(skeleton.model)
    translations = op_bindings.register()
    decoder = PackedDecoder(skeleton.model, cache).eval()
    try:
        with torch.no_grad():
            layers = _note_layers(decoder)
            signature = Signature(layers, cache.token_inputs)
            example = example_inputs(signature)
            model = export_module(decoder, example, dynamic_shapes(signature), translations)
    except (DataDependentOutputException, DynamicOutputShapeException) as e:
        raise UnsupportedError(
            f"{skeleton.model.config.model_type}: its steps depend on the numbers in a tensor ({e.func}), as those of a loop over "
            "chosen experts do; a graph has the same steps for all tokens"
        ) from e
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as e:  # torch's own errors are RuntimeErrors
        reason = _innermost(e).strip().partition("\n")[0]
        family = skeleton.model.config.model_type
        raise UnsupportedError(f"{family}: its forward pass cannot be captured as a graph ({reason})") from e
    name_signature(model, signature, [*example[4], *example[5]])
    return Captured(model=model, skeleton=skeleton, layers=layers)


def _innermost(error: BaseException) -> str:
    """The message of an error; of those of torch's exporter, which speak of steps, that of the error that began it."""
    while type(error).__module__.startswith("torch.onnx") and error.__cause__ is not None:
        error = error.__cause__
    return str(error)


class PackedDecoder(torch.nn.Module):
    """Wraps a model in the decoder graph's inputs and outputs; `capture` creates it."""

    def __init__(self, model: PreTrainedModel, cache: CacheFormat) -> None:
        super().__init__()
        self.model = model
        self.cache = cache
        self.mixers = tuple(feature.graph_mixer() for feature in read_features(model.config))

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        query_starts: torch.Tensor,
        sample_rows: torch.Tensor,
        tables: Tensors,
        pools: Tensors,
    ) -> tuple[torch.Tensor, torch.Tensor, Tensors]:
        """Return logits [N, V], their greedy tokens [N] and the updated pools by name; `plugins.ops` declares the shapes."""
        shared = {"query_starts": query_starts, "position_ids": position_ids, **tables}
        trace = Trace(self.model.config, self.cache, self.mixers, shared, pools)
        with tracing(trace):
            logits = self.run_model(input_ids, position_ids, sample_rows)
        greedy = torch.ops.enginewright.greedy_sample(logits)
        return logits, greedy, {name: trace.written[name] for name in pools}

    def run_model(self, input_ids: torch.Tensor, position_ids: torch.Tensor, sample_rows: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, V] of the sampled rows of tokens [T]."""
        output = self.model(
            input_ids=input_ids[None],
            position_ids=position_ids[None],
            use_cache=False,
            logits_to_keep=sample_rows,
        )
        logits: torch.Tensor = output.logits.squeeze(0)
        return logits


def _check_positions(model: PreTrainedModel) -> None:
    """Raise UnsupportedError if the model counts a token's position from the ids before it, as RoBERTa and its kin do."""
    for name, module in model.named_modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            raise UnsupportedError(
                f"{model.config.model_type}: {name} derives positions from token ids and passes over padding tokens; "
                "expected positions that count every token"
            )


def read_layers(skeleton: Skeleton, cache: CacheFormat) -> tuple[CacheLayer, ...]:
    """Return the cache of each attention layer of a model, as `capture` would find it, without reading a weight.

    Raises:
        UnsupportedError: a layer has no attention, or one that the ops cannot express.
    """
    return _note_layers(PackedDecoder(skeleton.model, cache).eval())


def _note_layers(decoder: PackedDecoder) -> tuple[CacheLayer, ...]:
    """Run the model once without caches to learn the heads and sizes of each layer."""
    config = decoder.model.config
    trace = Trace(config, decoder.cache, decoder.mixers)
    with traceable(), tracing(trace), FakeTensorMode(allow_non_fake_inputs=True):  # fake: no value is ever read
        ids = zeros(torch.int64, EXAMPLE["T"])
        decoder.run_model(ids, ids, zeros(torch.int64, EXAMPLE["N"]))
    expected = config.num_hidden_layers
    if sorted(trace.layers) != list(range(expected)):
        raise UnsupportedError(
            f"{config.model_type}: got attention in {len(trace.layers)} of {expected} layers, expected it in all; "
            "models with state-space, linear or latent attention layers cannot be captured"
        )
    return tuple(trace.layers[layer] for layer in range(expected))
