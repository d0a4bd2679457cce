"""A tiny decoder graph around the real PagedAttention op, and the directory it lives in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tokenizers
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from enginewright.plugins.ops import DOMAIN, OPS, TILE_TOKENS, tile_bytes
from enginewright.runtime import artifact
from enginewright.runtime.artifact import Cache, CacheLayer, Graph, Limits, Manifest, Model, TensorSpec

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
TYPES = {"int64": T.INT64, "int32": T.INT32, "int8": T.INT8, "float32": T.FLOAT}


def _specs(windows: tuple[int, ...], vocab: int) -> tuple[list[TensorSpec], list[TensorSpec]]:
    layers, size = len(windows), tile_bytes(HEAD_DIM, HEAD_DIM, 16)
    pools = [f"kv.{i}.tiles" for i in range(layers)]
    inputs = [
        TensorSpec(name="input_ids", dtype="int64", shape=("T",)),
        TensorSpec(name="position_ids", dtype="int64", shape=("T",)),
        TensorSpec(name="query_starts", dtype="int32", shape=("B1",)),
        TensorSpec(name="sample_rows", dtype="int64", shape=("N",)),
        TensorSpec(name="kv_lens", dtype="int32", shape=(layers, "B", KV_HEADS)),
        TensorSpec(name="tile_table", dtype="int32", shape=(layers, "B", KV_HEADS, "M")),
        *(TensorSpec(name=pool, dtype="int8", shape=(f"{pool}.count", size)) for pool in pools),
    ]
    outputs = [
        TensorSpec(name="logits", dtype="float32", shape=("N", vocab)),
        TensorSpec(name="greedy_tokens", dtype="int64", shape=("N",)),
        *(TensorSpec(name=f"{p}.out", dtype="int8", shape=(f"{p}.count", size), alias=p) for p in pools),
    ]
    return inputs, outputs


def _graph(windows: tuple[int, ...], vocab: int, context: int) -> tuple[onnx.ModelProto, Graph]:
    """Return the model: x = embed + position, plus attention(x) per layer, logits = x @ head; all from one seed."""
    rng = np.random.default_rng(0)
    hidden = HEADS * HEAD_DIM
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {
        "embed": rng.standard_normal((vocab, hidden), np.float32),
        "positions": rng.standard_normal((context, hidden), np.float32),
        "head": rng.standard_normal((hidden, vocab), np.float32),
        "q_shape": np.array([-1, HEADS, HEAD_DIM]),
        "kv_shape": np.array([-1, KV_HEADS, HEAD_DIM]),
        "flat": np.array([-1, hidden]),
    }

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    x = add("Add", [add("Gather", ["embed", "input_ids"], "e"), add("Gather", ["positions", "position_ids"], "p")], "x")
    for i, window in enumerate(windows):
        for name, width, shape in (("q", HEADS, "q_shape"), ("k", KV_HEADS, "kv_shape"), ("v", KV_HEADS, "kv_shape")):
            weights[f"{name}{i}.w"] = rng.standard_normal((hidden, width * HEAD_DIM), np.float32) / 8
            add("Reshape", [add("MatMul", [x, f"{name}{i}.w"], f"{name}{i}.flat"), shape], f"{name}{i}")
        weights[f"o{i}.w"] = rng.standard_normal((hidden, hidden), np.float32) / 4
        nodes.append(
            helper.make_node(
                "PagedAttention",
                [f"q{i}", f"k{i}", f"v{i}", f"kv.{i}.tiles", "query_starts", "kv_lens", "tile_table"],
                [f"a{i}", f"kv.{i}.tiles.out"],
                domain=DOMAIN,
                layer=i,
                scale=0.25,
                window=window,
            )
        )
        out = add("MatMul", [add("Reshape", [f"a{i}", "flat"], f"a{i}.flat"), f"o{i}.w"], f"o{i}")
        x = add("Add", [x, out], f"x{i}")
    add("MatMul", [add("Gather", [x, "sample_rows"], "last"), "head"], "logits")
    add("GreedySample", ["logits"], "greedy_tokens", domain=DOMAIN)
    inputs, outputs = _specs(windows, vocab)
    proto = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info(s.name, TYPES[s.dtype], list(s.shape)) for s in inputs],
        [helper.make_tensor_value_info(s.name, TYPES[s.dtype], list(s.shape)) for s in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)])
    model.ir_version = 10
    ops = {name: OPS[name].version for name in ("PagedAttention", "GreedySample")}
    return model, Graph(files=(), inputs=tuple(inputs), outputs=tuple(outputs), ops=ops)


def write_engine(
    root: Path,
    *,
    windows: tuple[int, ...] = (0, 64, 0),
    vocab: int = 300,
    max_batch: int = 8,
    max_context: int = 1024,
    tokenizer: tokenizers.Tokenizer | None = None,
    config: str = "{}",
) -> Path:
    """Write an engine directory of random weights and return it."""
    model, graph = _graph(windows, vocab, max_context)
    (root / "graphs").mkdir(parents=True)
    onnx.save(model, root / "graphs/decoder.onnx")
    files = []
    if tokenizer is not None:
        (root / "tokenizer").mkdir()
        tokenizer.save(str(root / "tokenizer/tokenizer.json"))
        (root / "tokenizer/tokenizer_config.json").write_text(config)
        files = [artifact.describe_file(root, path) for path in sorted((root / "tokenizer").iterdir())]
    layer = {"kv_heads": KV_HEADS, "key_dim": HEAD_DIM, "value_dim": HEAD_DIM}
    size = tile_bytes(HEAD_DIM, HEAD_DIM, 16)
    manifest = Manifest(
        name="tiny",
        created_by="tests",
        model=Model(
            family="toy", vocab_size=vocab, hidden_size=64, max_positions=max_context, parameters=1, eos_token_ids=(0,)
        ),
        limits=Limits(max_batch=max_batch, max_context=max_context),
        cache=Cache(
            kind="paged",
            tile_tokens=TILE_TOKENS,
            kv_bits=16,
            layers=tuple(CacheLayer(**layer, tile_bytes=size, window=window) for window in windows),
        ),
        graphs={
            "decoder": Graph(
                files=(artifact.describe_file(root, root / "graphs/decoder.onnx"),),
                inputs=graph.inputs,
                outputs=graph.outputs,
                ops=graph.ops,
            )
        },
        tokenizer=tuple(files),
    )
    artifact.save(manifest, root)
    return root
