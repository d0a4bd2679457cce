"""Tests of blocks of 4 and 8 bits against a block-by-block oracle, and of engines against dequantised models."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from enginewright.exporters.recipe import Recipe
from enginewright.exporters.weights.block_codes import (
    dequantize_blocks,
    quantize_blocks,
    quantize_blocks_with_zero_points,
    quantize_rows,
    store_codes,
    store_zero_points,
)
from enginewright.exporters.weights.block_products import BlockOptions
from enginewright.exporters.weights.registry import Storage, choose_storage
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from tests.support.exporters.families import make_model
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker


def naive_blocks(rows: np.ndarray, bits: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [n, blocks * block_size] one per element, and scales [n, blocks], element by element."""
    half, (n, k) = 2 ** (bits - 1), rows.shape
    blocks = (k + block_size - 1) // block_size
    codes = np.full((n, blocks * block_size), half, np.uint8)  # padding is zero, whose code is `half`
    scales = np.zeros((n, blocks), np.float32)
    for i in range(n):
        for j in range(blocks):
            block = rows[i, j * block_size : (j + 1) * block_size]
            extreme = max(block, key=abs)  # the first of equals
            scales[i, j] = scale = np.float32(extreme) / np.float32(-half)
            for c, x in enumerate(block):
                code = int(np.rint(x / scale)) + half if scale else half
                codes[i, j * block_size + c] = min(max(code, 0), 2 * half - 1)
    return codes, scales


def unpack(codes: np.ndarray, bits: int) -> np.ndarray:
    """One code per element, from two per byte at 4 bits, the earlier in the low nibble."""
    flat = codes.reshape(len(codes), -1)
    if bits == 8:
        return flat
    result = np.empty((flat.shape[0], flat.shape[1] * 2), np.uint8)
    for i, byte in np.ndenumerate(flat):
        result[i[0], 2 * i[1]], result[i[0], 2 * i[1] + 1] = byte % 16, byte // 16
    return result


def dequantized(rows: np.ndarray, bits: int, block_size: int) -> np.ndarray:
    """`rows` as the oracle stores and restores them."""
    codes, scales = naive_blocks(rows, bits, block_size)
    values = (codes.astype(np.float32) - 2 ** (bits - 1)) * np.repeat(scales, block_size, axis=1)
    return values[:, : rows.shape[1]]


def naive_zero_points(rows: np.ndarray, bits: int, block_size: int) -> tuple[np.ndarray, ...]:
    """Codes [n, blocks * block_size], scales and zero points [n, blocks], element by element."""
    top, (n, k) = 2**bits - 1, rows.shape
    blocks = (k + block_size - 1) // block_size
    codes = np.zeros((n, blocks * block_size), np.uint8)
    scales, zeros = np.zeros((n, blocks), np.float32), np.zeros((n, blocks), np.uint8)
    for i in range(n):
        for j in range(blocks):
            block = rows[i, j * block_size : (j + 1) * block_size]
            low, high = min(*block, np.float32(0)), max(*block, np.float32(0))
            scales[i, j] = scale = np.float32(high) / np.float32(top) - np.float32(low) / np.float32(top)
            zeros[i, j] = zero = min(max(int(np.rint(-low / scale)), 0), top) if scale else 0
            codes[i, j * block_size : (j + 1) * block_size] = zero  # of the padding
            for c, x in enumerate(block):
                codes[i, j * block_size + c] = min(max(int(np.rint(x / scale)) + zero, 0), top) if scale else zero
    return codes, scales, zeros


def restored(rows: np.ndarray, options: BlockOptions, bits: int) -> np.ndarray:
    """`rows` as the oracles store and restore them."""
    size = options.block_size
    if options.symmetric:
        return dequantized(rows, bits, size)
    codes, scales, zeros = naive_zero_points(rows, bits, size)
    values = (codes.astype(np.float32) - np.repeat(zeros, size, axis=1)) * np.repeat(scales, size, axis=1)
    return values[:, : rows.shape[1]]


def random_rows(n: int, k: int, seed: int = 0) -> np.ndarray:
    """Normal values with a few outliers, a block of zeros and ties in magnitude."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, k)).astype(np.float32)
    rows[rng.random((n, k)) < 0.02] *= 30
    rows[0, : min(16, k)] = 0
    if n > 1 and k > 1:
        rows[1, :2] = 50, -50
    return rows


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 256])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 16), (2, 31), (5, 60), (3, 97), (2, 256), (1, 513)])
def test_codes_and_scales_are_the_oracles(n: int, k: int, block_size: int, bits: int) -> None:
    rows = random_rows(n, k)
    codes, scales = quantize_blocks(rows, bits, block_size)
    expected_codes, expected_scales = naive_blocks(rows, bits, block_size)
    blocks = -(-k // block_size)
    assert codes.shape == (n, blocks, block_size * bits // 8) and codes.dtype == np.uint8
    assert scales.shape == (n, blocks) and scales.dtype == np.float32
    np.testing.assert_array_equal(scales, expected_scales)
    np.testing.assert_array_equal(unpack(codes, bits), expected_codes)
    np.testing.assert_array_equal(dequantize_blocks(codes, scales, bits, k), dequantized(rows, bits, block_size))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 256])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 16), (2, 31), (5, 97), (2, 256), (1, 513)])
def test_codes_with_zero_points_are_the_oracles(n: int, k: int, block_size: int, bits: int) -> None:
    rows = random_rows(n, k) + np.float32(0.7)
    codes, scales, zeros = quantize_blocks_with_zero_points(rows, bits, block_size)
    expected_codes, expected_scales, expected_zeros = naive_zero_points(rows, bits, block_size)
    blocks = -(-k // block_size)
    assert codes.shape == (n, blocks, block_size * bits // 8) and zeros.shape == (n, -(-blocks * bits // 8))
    np.testing.assert_array_equal(scales, expected_scales)
    np.testing.assert_array_equal(unpack(codes, bits), expected_codes)
    np.testing.assert_array_equal(unpack(zeros, bits)[:, :blocks], expected_zeros)
    options = BlockOptions(block_size=block_size, symmetric=False)
    got = dequantize_blocks(codes, scales, bits, k, zeros)
    np.testing.assert_array_equal(got, restored(rows, options, bits))


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]), st.floats(-3, 3), st.integers(1, 130))
def test_with_zero_points_the_error_is_at_most_a_step(seed: int, bits: int, shift: float, k: int) -> None:
    """Half a step of the code, and half of the zero point where the range was rounded to whole codes."""
    rows = random_rows(2, k, seed) + np.float32(shift)
    codes, scales, zeros = quantize_blocks_with_zero_points(rows, bits, 32)
    step = np.repeat(scales, 32, axis=1)[:, :k]
    assert (np.abs(rows - dequantize_blocks(codes, scales, bits, k, zeros)) <= step * 1.0001 + 1e-30).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_halve_the_error_of_weights_of_one_sign(bits: int) -> None:
    rows = np.random.default_rng(2).random((8, 256), np.float32) + np.float32(1)
    plain = np.abs(rows - dequantize_blocks(*quantize_blocks(rows, bits, 32), bits, 256)).mean()
    codes, scales, zeros = quantize_blocks_with_zero_points(rows, bits, 32)
    assert np.abs(rows - dequantize_blocks(codes, scales, bits, 256, zeros)).mean() < 0.6 * plain
    np.testing.assert_array_equal(dequantize_blocks(*quantize_blocks(0 * rows, bits, 32), bits, 256), 0 * rows)
    assert not dequantize_blocks(*_zeros(0 * rows, bits)).any()


def _zeros(rows: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, int, int, np.ndarray]:
    codes, scales, zeros = quantize_blocks_with_zero_points(rows, bits, 32)
    return codes, scales, bits, rows.shape[1], zeros


@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e30, 3e38])
def test_zero_points_at_the_ends_of_float32(magnitude: float) -> None:
    rows = np.zeros((1, 16), np.float32)
    rows[0, :2] = magnitude, -magnitude
    got = dequantize_blocks(*_zeros(rows, 4))
    assert np.isfinite(got).all() and np.abs(got - rows).max() <= magnitude * 0.15 + 2**-145


@pytest.mark.parametrize(
    ("bits", "stored", "group_size", "block_size"), [(4, 4, 32, 32), (3, 4, 64, 32), (5, 8, 32, 16)]
)
def test_chosen_zero_points_are_stored_without_a_change(
    bits: int, stored: int, group_size: int, block_size: int
) -> None:
    rng = np.random.default_rng(bits)
    half, groups = 1 << (bits - 1), 192 // group_size
    codes = rng.integers(-half, half, (3, 192)).astype(np.int8)
    zeros, scales = rng.integers(-half, half, (3, groups)).astype(np.int8), rng.random((3, groups), np.float32)
    rows = QuantizedRows(bits=bits, group_size=group_size, load=lambda: (codes, scales), zero_points=lambda: zeros)
    packed, steps = store_codes(codes, scales, group_size, stored, block_size)
    points = store_zero_points(zeros, 192, group_size, stored, block_size)
    np.testing.assert_array_equal(dequantize_blocks(packed, steps, stored, 192, points), rows.restore())


@pytest.mark.parametrize("bits", [4, 8])
def test_known_codes(bits: int) -> None:
    """The extreme gets the lowest code, whatever its sign; its opposite is clipped to the highest."""
    half = 2 ** (bits - 1)
    rows = np.zeros((2, 16), np.float32)
    rows[0, :4] = half, -half, half - 1, 1
    rows[1, :2] = -half, 0.4
    codes, scales = quantize_blocks(rows, bits, 16)
    assert scales.tolist() == [[-1.0], [1.0]]
    assert unpack(codes, bits)[0, :5].tolist() == [0, 2 * half - 1, 1, half - 1, half]
    assert unpack(codes, bits)[1, :3].tolist() == [0, half, half]


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros(bits: int) -> None:
    codes, scales = quantize_blocks(np.zeros((2, 40), np.float32), bits, 32)
    assert not scales.any() and (unpack(codes, bits) == 2 ** (bits - 1)).all()
    assert not dequantize_blocks(codes, scales, bits, 40).any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-38, 1e30, 3e38])
def test_magnitudes_at_the_ends_of_float32(bits: int, magnitude: float) -> None:
    """1 / scale would be infinite for the smallest; zeros next to them must stay zeros."""
    rows = np.zeros((1, 16), np.float32)
    rows[0, :3] = magnitude, -magnitude / 2, magnitude / 4
    codes, scales = quantize_blocks(rows, bits, 16)
    restored = dequantize_blocks(codes, scales, bits, 16)
    assert np.isfinite(restored).all() and not restored[0, 3:].any()
    assert np.abs(restored - rows).max() <= magnitude * 0.51 + 2**-142  # subnormal scales are coarse


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]), st.sampled_from([16, 64]), st.integers(1, 130))
def test_the_error_is_at_most_half_a_step(seed: int, bits: int, block_size: int, k: int) -> None:
    """|x - x'| <= |scale| / 2, but up to |scale| for elements within half a step of the extreme's opposite: clipped."""
    rows = random_rows(2, k, seed)
    codes, scales = quantize_blocks(rows, bits, block_size)
    step = np.abs(np.repeat(scales, block_size, axis=1)[:, :k])
    ratio = rows / np.where(step == 0, 1, np.repeat(scales, block_size, axis=1)[:, :k])
    clipped = ratio > 2 ** (bits - 1) - 0.5
    error = np.abs(rows - dequantize_blocks(codes, scales, bits, k))
    rounding = 1e-5 * step  # of float32 itself
    assert (error <= np.where(clipped, step, step / 2) + rounding).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_in_chunks_equal_rows_alone(bits: int) -> None:
    k = (1 << 22) // 3 + 1  # two rows at a time
    rows = np.random.default_rng(1).standard_normal((5, k), np.float32)
    codes, scales = quantize_blocks(rows, bits, 256)
    for i in range(5):
        alone = quantize_blocks(rows[i : i + 1], bits, 256)
        np.testing.assert_array_equal(codes[i], alone[0][0])
        np.testing.assert_array_equal(scales[i], alone[1][0])


def test_no_rows() -> None:
    codes, scales = quantize_blocks(np.empty((0, 40), np.float32), 4, 32)
    assert codes.shape == (0, 2, 16) and scales.shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 48}, "weights: got block_size 48, expected 16, 32, 64, 128 or 256"),
        ({"compute": "fp8"}, "weights: got compute 'fp8', expected int8 or float32"),
    ],
)
def test_bad_options_name_the_field(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        BlockOptions(**options)


TOKENS = (np.arange(40) * 7 % 250).tolist()


def dequantized_model(family: str, weights: Storage) -> PreTrainedModel:
    """The eager model with the weights that the engine should have, by the oracle; tied matrices may part."""
    model = copy.deepcopy(make_model(family))
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    options, bits = weights.options, int(weights.kind.removeprefix("int"))
    chosen = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and (m is not head or options.lm_head)]
    if options.embedding and embedding.weight.shape[1] % options.block_size == 0:
        chosen.append(embedding)
    with torch.no_grad():
        for module in chosen:
            module.weight.copy_(torch.from_numpy(restored(module.weight.numpy(), options, bits)))
    return model


def engine_logits(
    family: str, weights: Storage, checkpoint: CheckpointMaker, engine: EngineMaker
) -> tuple[np.ndarray, Manifest, dict[str, ir.Node]]:
    """Logits of the engine, its manifest, and a node of each type in its graph."""
    root, manifest = engine(checkpoint(family), Recipe(kv_bits=32, weights=weights))
    with load(root, threads=1) as llm:
        logits = llm.logits(TOKENS)
    graph = ir.load(root / manifest.graphs["decoder"].files[0].path).graph
    return logits, manifest, {node.op_type: node for node in graph}


# qwen2: biases, tied, hidden size 64. llama: untied, hidden size 60, so the last block of 32 is part padding and
# the embedding stays float32 (GatherBlockQuantized takes whole blocks alone).
ENGINES: dict[str, tuple[str, Storage]] = {
    "int4": ("qwen2", choose_storage("int4", {"compute": "float32"})),
    "int8": ("qwen2", choose_storage("int8", {"compute": "float32", "block_size": 64})),
    "head alone": ("qwen2", choose_storage("int4", {"compute": "float32", "embedding": False})),
    "embedding alone": ("qwen2", choose_storage("int8", {"compute": "float32", "block_size": 16, "lm_head": False})),
    "padded": ("llama", choose_storage("int4", {"compute": "float32"})),
    "zero points": ("qwen2", choose_storage("int4", {"compute": "float32", "symmetric": False})),
    "zero points, padded": ("llama", choose_storage("int8", {"compute": "float32", "symmetric": False})),
    "padded, no head": ("llama", choose_storage("int8", {"compute": "float32", "lm_head": False})),
}


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("case", ENGINES)
def test_engine_equals_the_dequantised_model(case: str, checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    family, weights = ENGINES[case]
    got, manifest, nodes = engine_logits(family, weights, checkpoint, engine)
    with torch.no_grad():
        expected = dequantized_model(family, weights)(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
        plain = make_model(family)(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(expected - plain).max() > 1e-3, "quantisation must matter"
    assert np.abs(got - expected).max() < 1e-5  # float32 sums in another order
    options = weights.options
    assert manifest.weights["kind"] == weights.kind and manifest.weights["block_size"] == options.block_size
    assert ("GatherBlockQuantized" in nodes) == (options.embedding and family == "qwen2")
    assert ("MatMul" in nodes or "Gemm" in nodes) == (not options.lm_head)
    assert (nodes["MatMulNBits"].inputs[3:4] not in ((), (None,))) == (not options.symmetric)


@pytest.mark.native
@pytest.mark.slow
def test_int8_activations_stay_close(checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    """Activations rounded to 8 bits a block are off by up to 1/254 of the block's largest at every product.

    Over two layers that adds up to 0.5 % of the largest logit here; 2 % leaves room for other rounding of the kernels.
    """
    weights = choose_storage("int4", {"compute": "int8", "linear": "onnxruntime"})
    got, _, nodes = engine_logits("qwen2", weights, checkpoint, engine)
    with torch.no_grad():
        expected = dequantized_model("qwen2", weights)(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
    assert nodes["MatMulNBits"].attributes.get_int("accuracy_level", 0) == 4
    error = np.abs(got - expected)
    assert error.max() < 0.02 * np.abs(expected).max()


@pytest.mark.native
@pytest.mark.slow
def test_a_tied_matrix_is_stored_once(checkpoint: CheckpointMaker, engine: EngineMaker) -> None:
    sizes = {}
    for case in ("int4", "head alone"):
        _, manifest = engine(checkpoint(ENGINES[case][0]), Recipe(kv_bits=32, weights=ENGINES[case][1]))
        sizes[case] = manifest.graphs["decoder"].files[1].size
    assert sizes["head alone"] - sizes["int4"] >= 250 * 64 * 4, "the embedding in float32 comes on top"
    _, manifest = engine(checkpoint("qwen2"), Recipe(kv_bits=32))
    matrices = sum(m.weight.numel() for m in make_model("qwen2").modules() if isinstance(m, torch.nn.Linear))
    assert manifest.graphs["decoder"].files[1].size < 4 * matrices * 1.1  # head and embedding count once


def test_rows_of_codes_are_within_half_a_step() -> None:
    weight = np.random.default_rng(1).standard_normal((2, 5, 9)).astype(np.float32)
    weight[1, 3] = 0
    codes, scales = quantize_rows(weight)
    assert codes.dtype == np.int8 and np.abs(codes).max() == 127 and scales[1, 3] == 0
    assert (np.abs(codes * scales[..., None] - weight) <= scales[..., None] * 0.5001).all()
