"""The ops as torch and ONNX know them, against their declarations."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch

from enginewright.exporters.capture.op_bindings import onnx_schema, register
from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.op import DOMAIN, Op, Tensor, size_of
from enginewright.plugins.ops.registry import OPS
from enginewright.plugins.ops.tiles import TILE_TOKENS, kvarn_tile_bytes
from enginewright.plugins.ops.token_scores import TOKEN_SCORES


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_schemas_have_the_declared_types(op: Op) -> None:
    schema = onnx_schema(op)
    for formal, tensor in zip([*schema.inputs, *schema.outputs], [*op.inputs, *op.outputs], strict=True):
        names = {"float32": "float"}
        wanted = {f"tensor({names.get(name, name)})" for name in tensor.types}
        assert set(formal.types) == wanted
        assert (formal.option == onnx.defs.OpSchema.FormalParameterOption.Optional) == tensor.optional
        assert (formal.option == onnx.defs.OpSchema.FormalParameterOption.Variadic) == tensor.variadic


def test_kvarn_attention_has_shapes_without_data() -> None:
    register()
    tokens, heads, dim, batch, layers = 5, 2, 64, 3, 4
    with torch.device("meta"):
        query, key = torch.empty(tokens, 4, dim, dtype=torch.float16), torch.empty(tokens, heads, dim)
        tiles = torch.empty(9, kvarn_tile_bytes(dim, 4, 2), dtype=torch.int8)
        exact = torch.empty(3, heads, 2, 2 * TILE_TOKENS * dim, dtype=torch.float16)

        def ints(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int32)

        lens = ints(layers, batch, heads)
        tables = lens, ints(layers, batch, heads, 7), ints(batch), ints(2, layers, batch, heads)
        attributes = [0.5 if a.type == "float" else 1 for a in KVARN_ATTENTION.attributes]
        op = getattr(getattr(torch.ops, DOMAIN), KVARN_ATTENTION.torch_name)
        results = op(query, key, key, tiles, exact, ints(batch + 1), *tables, None, *attributes)
    for got, wanted in zip(results, (query, tiles, exact), strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)


def test_depth_mix_takes_a_list() -> None:
    register()
    query, key, value = (torch.empty(5, heads, dim, device="meta") for heads, dim in ((6, 16), (2, 16), (2, 24)))
    for sources in ([key, value], [key, value] * 3):
        mixed = torch.ops.enginewright.depth_mix(query, key, value, sources, 0.25)
        assert (mixed.shape, mixed.dtype) == (value.shape, value.dtype)


def test_sizes_may_be_products() -> None:
    register()
    sizes = {"M": 7, "redundancy": 0}
    assert [size_of(name, sizes) for name in ("M", "M*128", "M*128*redundancy")] == [7, 896, 0]
    with torch.device("meta"):
        ring, lens = torch.empty(3, 4, 9, 16), torch.empty(2, 5, 2, dtype=torch.int32)
        table, rows = torch.empty(2, 5, 2, 7, dtype=torch.int32), torch.empty(5)
        for redundancy in (0, 1):
            given = {"layer": 1, "kv_heads": 2, "scale": 0.5, "window": 8, "redundancy": redundancy}
            attributes = [given.get(a.name, a.default) for a in TOKEN_SCORES.attributes]
            found = torch.ops.enginewright.token_scores(
                ring, torch.empty(9, 9, dtype=torch.int8), rows, lens, table, rows, None, None, None, *attributes
            )
            assert [tuple(x.shape) for x in found] == [(5, 2, 896), (5, 2, 896 * redundancy)]
            assert all(x.dtype == torch.float32 for x in found)


def test_an_output_of_an_absent_input_is_empty() -> None:
    register()
    with torch.device("meta"):
        tiles, moves = torch.empty(9, 64, dtype=torch.int8), torch.empty(3, 4, dtype=torch.int32)
        marks = torch.empty(9, 2, 128)
        for given, wanted in ((None, (0,)), (marks, (9, 2, 128))):
            moved, marked = torch.ops.enginewright.compact_tiles(tiles, moves, given, 8, 8, 16)
            assert (tuple(moved.shape), tuple(marked.shape)) == ((9, 64), wanted)


def test_names_in_torch() -> None:
    names = {name: op.torch_name for name, op in OPS.items()}
    assert names.items() >= {"ClpEmit": "clp_emit", "KVarNAttention": "kvarn_attention"}.items()
    assert len(set(names.values())) == len(names)


def test_an_op_of_fixed_types_has_a_schema() -> None:
    count = Tensor("counts", ("int64",), ("N",), "")
    schema = onnx_schema(Op("CountRows", 1, "", (count,), (replace(count, name="sums"),), (), ""))
    assert [formal.types for formal in (*schema.inputs, *schema.outputs)] == [{"tensor(int64)"}, {"tensor(int64)"}]
    assert not schema.type_constraints
