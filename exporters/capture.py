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
from enginewright.exporters.caches import CacheFormat, Call, Layer, Tensors
from enginewright.exporters.depth_attention import DepthMixer, Pair, read_depth_attention
from enginewright.exporters.skeleton import Skeleton
from enginewright.exporters.torch_export import export_module, traceable
from enginewright.plugins.ops import TILE_TOKENS
from enginewright.runtime.artifact.manifest import CacheLayer
from enginewright.runtime.errors import UnsupportedError

ATTENTION = "enginewright"
PREFIX = "model."  # of the wrapped model's parameters in the exported graph
TOKENS, ROWS, SAMPLES, TABLE, SLOTS, EXACT = 7, 2, 3, 5, 6, 4  # of the example inputs; all distinct, none 0 or 1


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
    cache: CacheFormat
    mixer: DepthMixer | None = None
    tables: Tensors | None = None
    pools: Tensors = field(default_factory=dict)
    written: Tensors = field(default_factory=dict)
    layers: dict[int, CacheLayer] = field(default_factory=dict)


def capture(skeleton: Skeleton, cache: CacheFormat) -> Captured:
    """Return the packed decoder graph of a model, without reading a weight.

    skeleton: of `build_skeleton(config, attention=ATTENTION, ...)`. cache: how its keys and values are held.

    Raises:
        UnsupportedError: the model's attention does not go through the hook, or not in a way the op can express.
    """
    translations = op_bindings.register()
    decoder = PackedDecoder(skeleton.model, cache).eval()
    try:
        with torch.no_grad():
            layers = _read_layers(decoder)
            example = _example_inputs(layers)
            model = export_module(decoder, example, _dynamic_shapes(layers), translations)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as e:  # torch's own are RuntimeErrors
        reason = str(e).strip().partition("\n")[0]
        family = skeleton.model.config.model_type
        raise UnsupportedError(f"{family}: its forward pass cannot be captured as a graph ({reason})") from e
    _name_signature(model, layers, [*example[4], *example[5]])
    return Captured(model=model, skeleton=skeleton, layers=layers)


class PackedDecoder(torch.nn.Module):
    """The model with the decoder graph's inputs and outputs."""

    def __init__(self, model: PreTrainedModel, cache: CacheFormat) -> None:
        super().__init__()
        self.model = model
        self.cache = cache
        depth = read_depth_attention(model.config)
        self.mixer = None if depth is None else DepthMixer(depth, _mix_over_depth)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        query_starts: torch.Tensor,
        sample_rows: torch.Tensor,
        tables: Tensors,
        pools: Tensors,
    ) -> tuple[torch.Tensor, torch.Tensor, Tensors]:
        """Return logits [N, V], their greedy tokens [N] and the updated pools; see `plugins.ops` for the shapes."""
        trace = _Trace(self.model.config, self.cache, self.mixer, {"query_starts": query_starts, **tables}, pools)
        with _tracing(trace):
            logits = self.run_model(input_ids, position_ids, sample_rows)
        greedy = torch.ops.enginewright.greedy_sample(logits)
        return logits, greedy, {name: trace.written[name] for name in pools}

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
    scale = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # meets the model's own transpose
    if trace.mixer is not None:
        v = trace.mixer(layer, q, k, v, scale)
    if trace.tables is None:
        _note_layer(trace, module, Layer(
            family=trace.config.model_type,
            index=layer,
            kv_heads=k.shape[1],
            key_dim=k.shape[2],
            value_dim=v.shape[2],
            window=window,
        ))  # fmt: skip
        return q.new_empty(1, q.shape[0], q.shape[1], v.shape[2]), None
    call = Call(
        query=q,
        key=k,
        value=v,
        sinks=s_aux,
        layer=layer,
        scale=scale,
        window=window,
        softcap=float(softcap or 0),
    )
    output, written = trace.cache.attend(call, trace.tables, trace.pools)
    trace.written |= written
    return output[None], None


def _mix_over_depth(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sources: list[Pair], scale: float
) -> torch.Tensor:
    """Values [T, Hkv, Dv] mixed with those of earlier layers, by a node of the graph."""
    flat = [tensor for pair in sources for tensor in pair]
    mixed: torch.Tensor = torch.ops.enginewright.depth_mix(query, key, value, flat, scale)
    return mixed


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


def _note_layer(trace: _Trace, module: torch.nn.Module, found: Layer) -> None:
    if found.index in trace.layers:
        raise UnsupportedError(f"{found.family}: layer {found.index} attends twice in one pass")
    if getattr(module, "is_causal", True) is False:
        raise UnsupportedError(f"{found.family}: layer {found.index} attends to later tokens; expected a decoder")
    trace.layers[found.index] = trace.cache.describe(found)


def _read_layers(decoder: PackedDecoder) -> tuple[CacheLayer, ...]:
    """Run once without caches to learn each layer's heads and sizes."""
    config = decoder.model.config
    trace = _Trace(config, decoder.cache, decoder.mixer)
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
    """The arguments of `PackedDecoder.forward`; tables and pools by their names in the decoder graph."""
    heads = max(layer.kv_heads for layer in layers)
    tables = {
        "kv_lens": _zeros(torch.int32, len(layers), ROWS, heads),
        "tile_table": _zeros(torch.int32, len(layers), ROWS, heads, TABLE),
    }
    pools = {f"kv.{i}.tiles": _zeros(torch.int8, TILE_TOKENS, layer.tile_bytes) for i, layer in enumerate(layers)}
    for i, layer in enumerate(layers):
        if layer.exact_bytes:
            shape = (SLOTS, layer.kv_heads, EXACT, layer.exact_bytes // 2)
            pools[f"kv.{i}.exact"] = _zeros(torch.float16, *shape)
            tables["slots"] = _zeros(torch.int32, ROWS)
            tables["encoded_lens"] = _zeros(torch.int32, 2, len(layers), ROWS, heads)
    return (
        _zeros(torch.int64, TOKENS),
        _zeros(torch.int64, TOKENS),
        _zeros(torch.int32, ROWS + 1),
        _zeros(torch.int64, SAMPLES),
        tables,
        pools,
    )


def _zeros(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device="meta")


def _dynamic_shapes(layers: tuple[CacheLayer, ...]) -> tuple[Any, ...]:
    dim = torch.export.Dim
    tokens, rows, slots, exact = dim("T"), dim("B"), dim("S"), dim("F")
    tables: dict[str, Any] = {"kv_lens": {1: rows}, "tile_table": {1: rows, 3: dim("M")}}
    pools: dict[str, Any] = {f"kv.{i}.tiles": {0: dim(f"tiles_{i}")} for i in range(len(layers))}
    for i, layer in enumerate(layers):
        if layer.exact_bytes:
            pools[f"kv.{i}.exact"] = {0: slots, 2: exact}
            tables |= {"slots": {0: rows}, "encoded_lens": {2: rows}}
    return ({0: tokens}, {0: tokens}, {0: dim("B1")}, {0: dim("N")}, tables, pools)


_SIZES = {"input_ids": ("T",), "query_starts": ("B1",), "sample_rows": ("N",), "tile_table": ("L", "B", "H", "M")}


def _name_sizes(graph: ir.Graph) -> None:
    """Give the sizes that torch has numbered their names, wherever they stand."""
    names: dict[str | None, str] = {}
    for value in graph.inputs:
        assert value.shape is not None
        for size, name in zip(value.shape, _SIZES.get(value.name or "", ()), strict=False):
            if isinstance(size, ir.SymbolicDim):
                names[size.value] = name
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            sizes = [d if isinstance(d, int) else ir.SymbolicDim(names.get(d.value, d.value)) for d in value.shape]
            value.shape = ir.Shape(sizes)


def _name_signature(model: ir.Model, layers: tuple[CacheLayer, ...], names: list[str]) -> None:
    """Give inputs, outputs and sizes the names of the decoder graph's contract; parameters lose the wrapper's prefix.

    names: of the inputs behind `sample_rows`, in order; the pools' are those with a dot.
    """
    graph = model.graph
    pools = [name for name in names if "." in name]
    for value, name in zip(graph.inputs[4:], names, strict=True):
        value.name = name
    _name_sizes(graph)
    for value, name in zip(graph.outputs[2:], pools, strict=True):
        value.name = f"{name}.out"
    for name, *values in zip(pools, graph.inputs[-len(pools) :], graph.outputs[2:], strict=True):
        layer = int(name.split(".")[1])
        is_exact = name.endswith(".exact")
        exact = ("slots", layers[layer].kv_heads, "exact", layers[layer].exact_bytes // 2)
        for value in values:
            value.shape = ir.Shape(exact if is_exact else (f"tiles_{layer}", layers[layer].tile_bytes))
    graph.outputs[0].name, graph.outputs[1].name = "logits", "greedy_tokens"
    for value in list(graph.initializers.values()):
        assert value.name is not None
        value.name = value.name.removeprefix(PREFIX)
