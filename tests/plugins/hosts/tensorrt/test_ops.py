"""The plugins for TensorRT, from node to results: each port, type, attribute and refusal passes through them.

The kernels that they start have tests of their own, in tests/kernels: of the tables of cases this is what tells one port or
attribute from another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from enginewright.plugins.libraries.cuda import CudaLibrary
from enginewright.plugins.libraries.cuda_calls import CallStructure, structure_of
from enginewright.plugins.libraries.locate import file_name
from enginewright.plugins.ops.attention_ports import ATTENTION_FIELDS
from enginewright.plugins.ops.clp_emit import CLP_EMIT, CLP_EMIT_CALL
from enginewright.plugins.ops.greedy_sample import GREEDY_SAMPLE
from enginewright.plugins.ops.kvarn_attention import BITS as KVARN_BITS
from enginewright.plugins.ops.kvarn_attention import HEAD_DIMS as KVARN_DIMS
from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION, KVARN_ATTENTION_CALL
from enginewright.plugins.ops.paged_attention import HEAD_DIMS as PAGED_ATTENTION_DIMS
from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION_CALL
from enginewright.plugins.ops.split_qkv import SPLIT_QKV
from enginewright.plugins.ops.tiles import kvarn_tile_bytes, tile_bytes
from tests.support.kernels.attention_calls import check_output, relative_tolerance, typed
from tests.support.kernels.device import rounded
from tests.support.ops import attention_inputs, clp_cases, depth_mix_cases, split_qkv_cases
from tests.support.ops.attention_cases import CASES as PAGED_CASES
from tests.support.ops.kvarn_cases import CASES as KVARN_CASES
from tests.support.ops.kvarn_inputs import check as check_kvarn_caches
from tests.support.ops.kvarn_inputs import make_inputs as make_kvarn_inputs
from tests.support.ops.tensorrt_host import Arrays, Output, built_folder, run_node, workspace_bound

Attention = structure_of(ATTENTION_FIELDS)
ClpEmit = structure_of(CLP_EMIT_CALL)
KVarNAttention = structure_of(KVARN_ATTENTION_CALL)
PagedAttention = structure_of(PAGED_ATTENTION_CALL)

UNIT = {"float16": 2**-11, "bfloat16": 2**-8}
"""Largest relative error of one rounding: that of an output."""


def on_cases(cases: Sequence[Any], *names: str) -> pytest.MarkDecorator:
    """Runs a test on the cases of these names in float16, and on the first of them in bfloat16 too."""
    known = {case.name: case for case in cases}
    chosen = [(known[name], "float16") for name in names] + [(known[names[0]], "bfloat16")]
    return pytest.mark.parametrize(("case", "type"), chosen, ids=[f"{case.name}-{type}" for case, type in chosen])


@pytest.fixture(
    params=[
        pytest.param("emulated", marks=pytest.mark.emulated),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ]
)
def kernels(request: pytest.FixtureRequest) -> str:
    """What the plugins start."""
    return str(request.param)


def shape_of(arrays: Arrays, name: str) -> tuple[int, ...]:
    return tuple(arrays[name].shape)


def paged_attention(kernels: str, arrays: Arrays, attributes: dict[str, Any], type: str) -> list[np.ndarray]:
    tokens, heads, _ = shape_of(arrays, "query")
    output = Output("output", type, (tokens, heads, shape_of(arrays, "value")[2]))
    tiles = Output("tiles_out", "int8", shape_of(arrays, "tiles"), alias="tiles")
    return run_node(kernels, "PagedAttention", arrays, attributes, type, [output, tiles])


@on_cases(
    PAGED_CASES,
    "everything",
    "one_layer",
    "fewer_heads_than_other_layers",
    "mixed",
    "no_rows",
    "softcap_small_logits",
    "sinks",
    "float_cache",
    "dim_33_47",
)
def test_paged_attention(case: attention_inputs.Case, type: str, kernels: str) -> None:
    arrays = typed(attention_inputs.make_inputs(case), type)
    if case.kv_bits != 16 or (case.dim, case.value_dim) not in PAGED_ATTENTION_DIMS:
        with pytest.raises(ValueError, match=r"^PagedAttention: (head sizes|kv_bits): got .*, expected "):
            paged_attention(kernels, arrays, case.attributes, type)
        return
    output, tiles = paged_attention(kernels, arrays, case.attributes, type)
    wanted, wanted_tiles = attention_inputs.expected(case, arrays)
    np.testing.assert_array_equal(tiles, wanted_tiles)
    check_output(output, wanted, relative_tolerance(type, min(case.magnitude**2, case.softcap or np.inf)))


def kvarn_attention(kernels: str, arrays: Arrays, attributes: dict[str, Any], type: str) -> list[np.ndarray]:
    outputs = [
        Output("output", type, shape_of(arrays, "query")),
        Output("tiles_out", "int8", shape_of(arrays, "tiles"), alias="tiles"),
        Output("exact_out", "float16", shape_of(arrays, "exact"), alias="exact"),
    ]
    return run_node(kernels, "KVarNAttention", arrays, attributes, type, outputs)


@on_cases(
    KVARN_CASES,
    "everything",
    "one_layer",
    "fewer_heads_than_other_layers",
    "bits_4_4",
    "no_rows",
    "verify_draft",
    "three_iterations",
    "values_rotated_in_weights",
    "robust_small",
    "sinks",
    "bits_2_4",
    "dim_512_4_2",
)
def test_kvarn_attention(case: Any, type: str, kernels: str) -> None:
    arrays = typed(make_kvarn_inputs(case), type)
    if case.dim not in KVARN_DIMS or (case.k_bits, case.v_bits) not in KVARN_BITS:
        with pytest.raises(ValueError, match=r"^KVarNAttention: (head_dim|k_bits and v_bits): got .*, expected "):
            kvarn_attention(kernels, arrays, case.attributes, type)
        return
    output, *caches = kvarn_attention(kernels, arrays, case.attributes, type)
    wanted = KVARN_ATTENTION.load_oracle()(**arrays, **case.attributes)
    size = min(case.magnitude**2, case.softcap or np.inf)
    check_output(output, wanted[0], relative_tolerance(type, size, roundings=3))
    check_kvarn_caches(case, arrays, [wanted[0], *caches], wanted)


@on_cases(
    split_qkv_cases.CASES,
    "both",
    "rotated",
    "plain",
    "normalised",
    "no_token",
    "epsilon_counts",
    "default_epsilon_counts",
    "odd_sizes",
    "values_wider",
)
def test_split_qkv(case: split_qkv_cases.Case, type: str, kernels: str) -> None:
    arrays = {name: rounded(array, type) for name, array in split_qkv_cases.make_inputs(case).items()}
    outputs = [
        Output("query", type, (case.tokens, case.query_heads, case.head_dim)),
        Output("key", type, (case.tokens, case.kv_heads, case.head_dim)),
        Output("value", type, (case.tokens, case.kv_heads, case.value_dim)),
    ]
    got = run_node(kernels, "SplitQkv", arrays, case.attributes, type, outputs)
    for mine, wanted in zip(got, SPLIT_QKV.load_oracle()(**arrays, **case.attributes), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1.01 * UNIT[type], atol=2e-6)


@on_cases(
    depth_mix_cases.CASES,
    "values_wider",
    "usual",
    "no_token",
    "no_source",
    "one_source",
    "many_sources",
    "another_scale",
    "odd_sizes",
)
def test_depth_mix(case: depth_mix_cases.Case, type: str, kernels: str) -> None:
    arrays = {name: rounded(array, type) for name, array in depth_mix_cases.make_inputs(case).items()}
    outputs = [Output("mixed", type, (case.tokens, case.kv_heads, case.value_dim))]
    if any(size % 8 for size in (case.dim, case.value_dim)):
        with pytest.raises(ValueError, match=r"^DepthMix: head_dim: got \d, expected a multiple of 8 up to 512$"):
            run_node(kernels, "DepthMix", arrays, case.attributes, type, outputs)
        return
    (got,) = run_node(kernels, "DepthMix", arrays, case.attributes, type, outputs)
    np.testing.assert_allclose(got, depth_mix_cases.expected(case, arrays), rtol=UNIT[type], atol=case.tolerance)


@pytest.mark.parametrize(("rows", "vocab"), [(0, 5), (1, 1), (5, 513), (3, 4097)])
def test_greedy_sample(rows: int, vocab: int, kernels: str) -> None:
    logits = np.random.default_rng(vocab).standard_normal((rows, vocab)).astype(np.float32)
    (got,) = run_node(kernels, "GreedySample", {"logits": logits}, {}, "float32", [Output("tokens", "int64", (rows,))])
    np.testing.assert_array_equal(got, GREEDY_SAMPLE.load_oracle()(logits))


CLP_TYPED = ("hidden", "up_weight", "up_bias", "out_bias", "out_weight")


def emit(kernels: str, arrays: Arrays, attributes: dict[str, Any], type: str) -> list[np.ndarray]:
    rows = len(arrays["hidden"])
    outputs = [Output("tokens", "int64", (rows, attributes["k"])), Output("counts", "int64", (rows,))]
    return run_node(kernels, "ClpEmit", arrays, attributes, type, outputs)


@on_cases(
    clp_cases.CASES,
    "usual",
    "no_row",
    "strict",
    "codes",
    "blocks_and_one",
    "one_head",
    "silu",
    "residual",
)
def test_clp_emit(case: clp_cases.Case, type: str, kernels: str) -> None:
    arrays = clp_cases.make_inputs(case)
    if case.rows == 7:  # with rows of which only the last token emits
        arrays |= {"query_starts": np.array([0, 1, 4, 4, 9, 12], np.int32)}
        arrays |= {"sample_rows": np.array([0, 1, 2, 3, 5, 8, 10])}
    for given in (arrays, clp_cases.always(arrays, case.k - 1)):
        held = {name: rounded(x, type) if name in CLP_TYPED else x for name, x in given.items()}
        wanted = CLP_EMIT.load_oracle()(**held, **case.attributes)
        for mine, its in zip(emit(kernels, held, case.attributes, type), wanted, strict=True):
            np.testing.assert_array_equal(mine, its)


def emulated() -> CudaLibrary:
    return CudaLibrary(built_folder().parent / "emulation" / file_name("enginewright_cuda_emulated"))


ANYWHERE = 256
"""An address for calls that are only planned."""


def planned(tokens: int, rows: int, width: int, heads: tuple[int, int], dim: int) -> CallStructure:
    names = ("query", "key", "value", "output", "query_starts", "kv_lens", "table")
    return Attention(
        **dict.fromkeys(names, ANYWHERE),
        **{"tokens": tokens, "longest": tokens, "rows": rows, "table_width": width, "scale": 1.0},
        **{"query_heads": heads[0], "kv_heads": heads[1], "table_heads": heads[1], "head_dim": dim, "value_dim": dim},
    )


def attention_shapes(
    tokens: int, rows: int, width: int, heads: tuple[int, int], dim: int
) -> dict[str, tuple[int, ...]]:
    return {
        "query": (tokens, heads[0], dim),
        **dict.fromkeys(("key", "value"), (tokens, heads[1], dim)),
        "query_starts": (rows + 1,),
        "kv_lens": (1, rows, heads[1]),
        "tile_table": (1, rows, heads[1], width),
    }


def random_sizes(rng: np.random.Generator) -> tuple[int, int, int]:
    """Tokens, rows and tiles of a context: of prompts, of decoding, of both."""
    return int(2 ** rng.uniform(0, 11)), int(2 ** rng.uniform(0, 7)), int(2 ** rng.uniform(0, 8))


def smaller(rng: np.random.Generator, most: tuple[int, int, int]) -> tuple[int, ...]:
    """Sizes of which none is larger, and each as often the largest."""
    return tuple(size if rng.random() < 0.5 else int(rng.integers(1, size + 1)) for size in most)


@pytest.mark.emulated
@pytest.mark.parametrize("heads", [(2, 1), (8, 2), (14, 2), (32, 8), (34, 2)])
@pytest.mark.parametrize("op", ["PagedAttention", "KVarNAttention"])
def test_workspace_of_attention_suffices_for_every_smaller_call(op: str, heads: tuple[int, int]) -> None:
    library, rng, dim, scale = emulated(), np.random.default_rng(0), 64, {"scale": 1.0, "layer": 0}
    larger_for_fewer_rows = 0
    for _ in range(25):
        most = random_sizes(rng)
        shapes = attention_shapes(*most, heads, dim)
        if op == "PagedAttention":
            shapes |= {"tiles": (9, tile_bytes(dim, dim, 16))}
        else:
            shapes |= {"tiles": (9, kvarn_tile_bytes(dim, 4, 2)), "exact": (200, heads[1], 2, 2 * 128 * dim)}
            shapes |= {"slots": (most[1],), "encoded_lens": (2, 1, most[1], heads[1])}
        bound, needs = workspace_bound(op, shapes, scale, "float16"), []
        for sizes in [most, *(smaller(rng, most) for _ in range(60))]:
            attention = planned(sizes[0], sizes[1], sizes[2], heads, dim)
            pools = dict.fromkeys(("tiles", "exact", "slots", "encoded_before", "encoded_after"), ANYWHERE)
            call: Any = PagedAttention(attention=attention, tiles=ANYWHERE, tile_count=9, kv_bits=16)
            if op == "KVarNAttention":
                counts = {"record_count": 9, "slot_count": 200, "exact_tiles": 2, "k_bits": 4, "v_bits": 2}
                call = KVarNAttention(attention=attention, **pools, **counts)
            needs.append(library.workspace_bytes(call))
        assert max(needs) <= bound
        larger_for_fewer_rows += max(needs) > needs[0]
    assert larger_for_fewer_rows or heads[1] == 8, "no case in which the largest sizes do not need the most"


@pytest.mark.emulated
def test_workspace_of_clp_emit_suffices_for_every_smaller_call() -> None:
    library, rng = emulated(), np.random.default_rng(0)
    for _ in range(30):
        rows, size, inner, vocab = (int(2 ** rng.uniform(0, top)) for top in (9, 10, 10, 13))
        shapes = {
            "hidden": (rows, size),
            "greedy": (rows,),
            "classifier_weight": (3, size),
            "classifier_bias": (3,),
            "up_weight": (2, inner, size),
            "up_bias": (2, inner),
            "out_bias": (2, vocab),
            "out_weight": (2, vocab, inner),
        }
        bound = workspace_bound("ClpEmit", shapes, {"k": 3, "tau": 0.5}, "bfloat16")
        for fewer in {rows, *rng.integers(0, rows + 1, 20).tolist()}:
            sizes = {"size": size, "inner": inner, "vocab": vocab, "classes": 3, "extra": 2}
            assert library.workspace_bytes(ClpEmit(rows=fewer, **sizes)) <= bound
