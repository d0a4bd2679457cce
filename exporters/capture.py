"""Checkpoint config -> the packed, ragged decoder graph, through one attention hook and no model code of ours.

The model runs as batch 1 with the tokens of all sequences one after another. Only attention knows about sequences, so
replacing the attention function is all it takes: each layer calls our op on the layer's tile pool instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch._subclasses import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from enginewright.exporters import op_bindings
from enginewright.exporters.skeleton import Skeleton
from enginewright.exporters.torch_export import export_module, traceable
from enginewright.plugins.ops import TILE_TOKENS, tile_bytes
from enginewright.runtime.artifact import CacheLayer
from enginewright.runtime.errors import UnsupportedError

ATTENTION = "enginewright"
PREFIX = "model."  # of the wrapped model's parameters in the exported graph
TOKENS, ROWS, SAMPLES, TABLE = 7, 2, 3, 5  # sizes of the example inputs; all distinct, none 0 or 1


@dataclass(frozen=True, kw_only=True)
class Captured:
    """A decoder graph without weights.

    Its initializers are named as the model's parameters and hold no values; `skeleton.buffers` holds those that no
    checkpoint has. `layers` describes the cache of each attention layer.
    """

    model: ir.Model
    skeleton: Skeleton
    layers: tuple[CacheLayer, ...]


@dataclass
class _Trace:
    """What the attention hook reads and notes while one forward pass runs."""

    config: PreTrainedConfig
    kv_bits: int
    tiles: list[torch.Tensor] | None = None
    tables: tuple[torch.Tensor, ...] = ()
    written: dict[int, torch.Tensor] = field(default_factory=dict)
    layers: dict[int, CacheLayer] = field(default_factory=dict)


def capture(skeleton: Skeleton, *, kv_bits: int) -> Captured:
    """Return the packed decoder graph of a model, without reading a weight.

    skeleton: of `build_skeleton(config, attention=ATTENTION, ...)`.

    Raises:
        UnsupportedError: the model's attention does not go through the hook, or not in a way the op can express.
    """
    translations = op_bindings.register()
    decoder = PackedDecoder(skeleton.model, kv_bits).eval()
    try:
        with torch.no_grad():
            layers = _read_layers(decoder)
            model = export_module(decoder, _example_inputs(layers), _dynamic_shapes(layers), translations)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as e:  # torch's own are RuntimeErrors
        reason = str(e).strip().partition("\n")[0]
        family = skeleton.model.config.model_type
        raise UnsupportedError(f"{family}: its forward pass cannot be captured as a graph ({reason})") from e
    _name_signature(model, layers)
    return Captured(model=model, skeleton=skeleton, layers=layers)


class PackedDecoder(torch.nn.Module):
    """The model with the decoder graph's inputs and outputs."""

    def __init__(self, model: PreTrainedModel, kv_bits: int) -> None:
        super().__init__()
        self.model = model
        self.kv_bits = kv_bits

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        query_starts: torch.Tensor,
        sample_rows: torch.Tensor,
        kv_lens: torch.Tensor,
        tile_table: torch.Tensor,
        tiles: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Return logits [N, V], their greedy tokens [N] and the updated pools; see `plugins.ops` for the shapes."""
        trace = _Trace(self.model.config, self.kv_bits, tiles, (query_starts, kv_lens, tile_table))
        with _tracing(trace):
            logits = self.run_model(input_ids, position_ids, sample_rows)
        greedy = torch.ops.enginewright.greedy_sample(logits)
        return logits, greedy, [trace.written[layer] for layer in range(len(tiles))]

    def run_model(self, input_ids: torch.Tensor, position_ids: torch.Tensor, sample_rows: torch.Tensor) -> torch.Tensor:
        output = self.model(
            input_ids=input_ids[None],
            position_ids=position_ids[None],
            use_cache=False,
            logits_to_keep=sample_rows,
        )
        logits: torch.Tensor = output.logits.squeeze(0)
        return logits


_current: list[_Trace] = []


@contextmanager
def _tracing(trace: _Trace) -> Iterator[None]:
    _current.append(trace)
    try:
        yield
    finally:
        _current.pop()


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls: query [1, Hq, T, D], key and value [1, Hkv, T, D].

    The signature is transformers'; the extra keywords carry dropout and masks that a decoder's inference has no use for.
    """
    trace = _current[-1]
    layer: int = module.layer_idx  # type: ignore[assignment]
    window = _window(trace.config, layer, sliding_window)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # meets the model's own transpose
    if trace.tiles is None:
        _note_layer(trace, module, layer, CacheLayer(
            kv_heads=k.shape[1],
            key_dim=k.shape[2],
            value_dim=v.shape[2],
            tile_bytes=tile_bytes(k.shape[2], v.shape[2], trace.kv_bits),
            window=window,
        ))  # fmt: skip
        return q.new_empty(1, q.shape[0], q.shape[1], v.shape[2]), None
    scale = float(scaling if scaling is not None else q.shape[-1] ** -0.5)
    output, trace.written[layer] = torch.ops.enginewright.paged_attention(
        q, k, v, trace.tiles[layer], *trace.tables, s_aux, layer, scale, window, float(softcap or 0), trace.kv_bits
    )
    return output[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """No mask subgraph: the op knows the sequences."""


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _no_mask)


def _window(config: PreTrainedConfig, layer: int, passed: int | None) -> int:
    """The layer's window in tokens; a layer that the config calls sliding has one even if it does not pass it on."""
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer] == "sliding_attention" and not passed:
        return int(config.sliding_window)
    return int(passed or 0)


def _note_layer(trace: _Trace, module: torch.nn.Module, layer: int, found: CacheLayer) -> None:
    if layer in trace.layers:
        raise UnsupportedError(f"{trace.config.model_type}: layer {layer} attends twice in one pass")
    if getattr(module, "is_causal", True) is False:
        raise UnsupportedError(f"{trace.config.model_type}: layer {layer} attends to later tokens; expected a decoder")
    trace.layers[layer] = found


def _read_layers(decoder: PackedDecoder) -> tuple[CacheLayer, ...]:
    """Run once without caches to learn each layer's heads and sizes."""
    config = decoder.model.config
    trace = _Trace(config, decoder.kv_bits)
    with traceable(), _tracing(trace), FakeTensorMode(allow_non_fake_inputs=True):  # fake: no value is ever read
        ids = _zeros(torch.int64, TOKENS)
        decoder.run_model(ids, ids, _zeros(torch.int64, SAMPLES))
    expected = config.num_hidden_layers
    if sorted(trace.layers) != list(range(expected)):
        raise UnsupportedError(
            f"{config.model_type}: got attention in {len(trace.layers)} of {expected} layers, expected it in all; "
            "models with state-space, linear or latent attention layers cannot be captured"
        )
    return tuple(trace.layers[layer] for layer in range(expected))


def _example_inputs(layers: tuple[CacheLayer, ...]) -> tuple[Any, ...]:
    heads = max(layer.kv_heads for layer in layers)
    return (
        _zeros(torch.int64, TOKENS),
        _zeros(torch.int64, TOKENS),
        _zeros(torch.int32, ROWS + 1),
        _zeros(torch.int64, SAMPLES),
        _zeros(torch.int32, len(layers), ROWS, heads),
        _zeros(torch.int32, len(layers), ROWS, heads, TABLE),
        [_zeros(torch.int8, TILE_TOKENS, layer.tile_bytes) for layer in layers],
    )


def _zeros(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device="meta")


def _dynamic_shapes(layers: tuple[CacheLayer, ...]) -> tuple[Any, ...]:
    dim = torch.export.Dim
    tokens, rows = dim("T"), dim("B")
    pools = [{0: dim(f"tiles_{layer}")} for layer in range(len(layers))]
    return ({0: tokens}, {0: tokens}, {0: dim("B1")}, {0: dim("N")}, {1: rows}, {1: rows, 3: dim("M")}, pools)


def _name_signature(model: ir.Model, layers: tuple[CacheLayer, ...]) -> None:
    """Give inputs, outputs and sizes the names of the decoder graph's contract; parameters lose the wrapper's prefix."""
    graph = model.graph
    for layer in range(len(layers)):
        graph.inputs[6 + layer].name = f"kv.{layer}.tiles"
        graph.outputs[2 + layer].name = f"kv.{layer}.tiles.out"
        for value in (graph.inputs[6 + layer], graph.outputs[2 + layer]):
            value.shape = ir.Shape([f"tiles_{layer}", layers[layer].tile_bytes])
    graph.outputs[0].name, graph.outputs[1].name = "logits", "greedy_tokens"
    for value in list(graph.initializers.values()):
        assert value.name is not None
        value.name = value.name.removeprefix(PREFIX)
