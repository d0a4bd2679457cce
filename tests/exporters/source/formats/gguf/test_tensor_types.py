"""Tests of the types of tensors: each is decoded as the library does it, in pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from enginewright.exporters.source.formats.gguf import tensor_types
from enginewright.exporters.source.formats.gguf.tensor_types import block_of, decodable, decode, refusal_of, type_name

REQUIRED = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K"


def test_the_types() -> None:
    assert set(REQUIRED.split()) <= set(decodable())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bytes have scales that are not finite
@pytest.mark.parametrize("name", decodable())
@pytest.mark.parametrize("shape", [(3, 256), (2, 5, 512), (7, 768), (0, 256)])
def test_a_type_is_decoded_as_the_library_does(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_types, "_DECODED_AT_ONCE", 1024)  # several pieces, the last one shorter
    kind = GGMLQuantizationType[name]
    elements, width = GGML_QUANT_SIZES[kind]
    content = np.random.default_rng(0).integers(0, 256, math.prod(shape) // elements * width).astype(np.uint8)
    got = decode(content.tobytes(), kind, shape)
    rows = content.reshape(-1, shape[-1] // elements * width)
    expected = dequantize(rows, kind) if len(rows) else np.empty((0, shape[-1]), np.float32)
    np.testing.assert_array_equal(got, expected.reshape(shape))
    assert got.dtype == np.float32 and got.flags.writeable


def test_types_that_are_not_decoded() -> None:
    assert refusal_of(GGMLQuantizationType.I32).startswith("expected one of F32, F16")
    assert refusal_of(99) == refusal_of(GGMLQuantizationType.I32) and refusal_of(GGMLQuantizationType.Q4_1) == ""
    assert type_name(99) == "of number 99" and block_of(99) is None
