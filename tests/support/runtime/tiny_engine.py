"""A tiny decoder graph around the real attention ops, and the directory it lives in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tokenizers
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import OPS
from enginewright.plugins.ops.tiles import TILE_TOKENS, kvarn_exact_bytes, kvarn_tile_bytes, tile_bytes
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Cache, CacheLayer, Graph, Limits, Manifest, Model, TensorSpec

HEADS, KV_HEADS, HEAD_DIM, BITS = 4, 2, 16, 8
TYPES = {"int64": T.INT64, "int32": T.INT32, "int8": T.INT8, "float32": T.FLOAT, "float16": T.FLOAT16}


def _cache_layer(window: int, encoded: bool, kv_heads: int) -> CacheLayer:
    size = kvarn_tile_bytes(HEAD_DIM, BITS, BITS) if encoded else tile_bytes(HEAD_DIM, HEAD_DIM, 16)
    return CacheLayer(
        kv_heads=kv_heads,
        key_dim=HEAD_DIM,
        value_dim=HEAD_DIM,
        tile_bytes=size,
        window=window,
        exact_bytes=kvarn_exact_bytes(HEAD_DIM) if encoded else 0,
    )


def _buffers(index: int, layer: CacheLayer) -> list[TensorSpec]:
    """A layer's cache: its pool, and the exact tiles where others are encoded."""
    pool = TensorSpec(name=f"kv.{index}.tiles", dtype="int8", shape=(f"tiles{index}", layer.tile_bytes))
    shape = ("slots", layer.kv_heads, "F", layer.exact_bytes // 2)
    exact = TensorSpec(name=f"kv.{index}.exact", dtype="float16", shape=shape)
    return [pool, exact] if layer.exact_bytes else [pool]


def _specs(cache: tuple[CacheLayer, ...], vocab: int) -> tuple[list[TensorSpec], list[TensorSpec]]:
    layers, is_encoded = len(cache), any(layer.exact_bytes for layer in cache)
    most = max(layer.kv_heads for layer in cache)
    pools = [spec for index, layer in enumerate(cache) for spec in _buffers(index, layer)]
    encoding = [
        TensorSpec(name="slots", dtype="int32", shape=("B",)),
        TensorSpec(name="encoded_lens", dtype="int32", shape=(2, layers, "B", most)),
    ]
    inputs = [
        TensorSpec(name="input_ids", dtype="int64", shape=("T",)),
        TensorSpec(name="position_ids", dtype="int64", shape=("T",)),
        TensorSpec(name="query_starts", dtype="int32", shape=("B1",)),
        TensorSpec(name="sample_rows", dtype="int64", shape=("N",)),
        TensorSpec(name="kv_lens", dtype="int32", shape=(layers, "B", most)),
        TensorSpec(name="tile_table", dtype="int32", shape=(layers, "B", most, "M")),
        *(encoding if is_encoded else []),
        *pools,
    ]
    outputs = [
        TensorSpec(name="logits", dtype="float32", shape=("N", vocab)),
        TensorSpec(name="greedy_tokens", dtype="int64", shape=("N",)),
        *(dataclasses.replace(spec, name=f"{spec.name}.out", alias=spec.name) for spec in pools),
    ]
    return inputs, outputs


def _attention(index: int, layer: CacheLayer) -> onnx.NodeProto:
    names = [spec.name for spec in _buffers(index, layer)]
    tables = ["query_starts", "kv_lens", "tile_table", *(["slots", "encoded_lens"] if layer.exact_bytes else [])]
    return helper.make_node(
        "KVarNAttention" if layer.exact_bytes else "PagedAttention",
        [*(f"{part}{index}" for part in "qkv"), *names, *tables],
        [f"a{index}", *(f"{name}.out" for name in names)],
        domain=DOMAIN,
        layer=index,
        scale=0.25,
        window=layer.window,
        **({"k_bits": BITS, "v_bits": BITS} if layer.exact_bytes else {}),
    )


def _graph(cache: tuple[CacheLayer, ...], vocab: int, context: int) -> tuple[onnx.ModelProto, Graph]:
    """Return the model: x = embed + position, plus attention(x) per layer, logits = x @ head; all from one seed."""
    rng = np.random.default_rng(0)
    hidden = HEADS * HEAD_DIM
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {
        "embed": rng.standard_normal((vocab, hidden), np.float32),
        "positions": rng.standard_normal((context, hidden), np.float32),
        "head": rng.standard_normal((hidden, vocab), np.float32),
        "q_shape": np.array([-1, HEADS, HEAD_DIM]),
        **{f"kv_shape{i}": np.array([-1, layer.kv_heads, HEAD_DIM]) for i, layer in enumerate(cache)},
        "flat": np.array([-1, hidden]),
    }

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    x = add("Add", [add("Gather", ["embed", "input_ids"], "e"), add("Gather", ["positions", "position_ids"], "p")], "x")
    for i, layer in enumerate(cache):
        own = layer.kv_heads, f"kv_shape{i}"
        for name, width, shape in (("q", HEADS, "q_shape"), ("k", *own), ("v", *own)):
            weights[f"{name}{i}.w"] = rng.standard_normal((hidden, width * HEAD_DIM), np.float32) / 8
            add("Reshape", [add("MatMul", [x, f"{name}{i}.w"], f"{name}{i}.flat"), shape], f"{name}{i}")
        weights[f"o{i}.w"] = rng.standard_normal((hidden, hidden), np.float32) / 4
        nodes.append(_attention(i, layer))
        out = add("MatMul", [add("Reshape", [f"a{i}", "flat"], f"a{i}.flat"), f"o{i}.w"], f"o{i}")
        x = add("Add", [x, out], f"x{i}")
    add("MatMul", [add("Gather", [x, "sample_rows"], "last"), "head"], "logits")
    add("GreedySample", ["logits"], "greedy_tokens", domain=DOMAIN)
    inputs, outputs = _specs(cache, vocab)
    proto = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info(s.name, TYPES[s.dtype], list(s.shape)) for s in inputs],
        [helper.make_tensor_value_info(s.name, TYPES[s.dtype], list(s.shape)) for s in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)])
    model.ir_version = 10
    ops = {node.op_type: OPS[node.op_type].version for node in nodes if node.op_type in OPS}
    return model, Graph(files=(), inputs=tuple(inputs), outputs=tuple(outputs), ops=ops)


def write_engine(
    root: Path,
    *,
    windows: tuple[int, ...] = (0, 64, 0),
    encoded: tuple[bool, ...] = (False, False, False),
    kv_heads: tuple[int, ...] | None = None,
    policy: dict[str, Any] | None = None,
    vocab: int = 300,
    max_batch: int = 8,
    max_context: int = 1024,
    tokenizer: tokenizers.Tokenizer | None = None,
    config: str = "{}",
) -> Path:
    """Write an engine directory of random weights and return it.

    encoded: the layers whose cache is KVarN's.
    kv_heads: of each layer, out of 1, 2 and 4; None: KV_HEADS of each.
    policy: of the cache, as the manifest has it.
    """
    heads = kv_heads or (KV_HEADS,) * len(windows)
    cache = tuple(_cache_layer(*layer) for layer in zip(windows, encoded, heads, strict=True))
    model, graph = _graph(cache, vocab, max_context)
    (root / "graphs").mkdir(parents=True)
    onnx.save(model, root / "graphs/decoder.onnx")
    files = []
    if tokenizer is not None:
        (root / "tokenizer").mkdir()
        tokenizer.save(str(root / "tokenizer/tokenizer.json"))
        (root / "tokenizer/tokenizer_config.json").write_text(config)
        files = [directory.describe_file(root, path) for path in sorted((root / "tokenizer").iterdir())]
    manifest = Manifest(
        name="tiny",
        created_by="tests",
        model=Model(
            family="toy", vocab_size=vocab, hidden_size=64, max_positions=max_context, parameters=1, eos_token_ids=(0,)
        ),
        limits=Limits(max_batch=max_batch, max_context=max_context),
        cache=Cache(
            kind="kvarn" if any(encoded) else "paged",
            tile_tokens=TILE_TOKENS,
            kv_bits=16,
            layers=cache,
            policy=policy or {},
        ),
        graphs={
            "decoder": Graph(
                files=(directory.describe_file(root, root / "graphs/decoder.onnx"),),
                inputs=graph.inputs,
                outputs=graph.outputs,
                ops=graph.ops,
            )
        },
        tokenizer=tuple(files),
    )
    directory.save(manifest, root)
    return root
