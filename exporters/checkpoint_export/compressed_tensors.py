"""Writes compressed-tensors' format "pack-quantized", which transformers, vLLM and SGLang read.

    X.weight_packed      int32 [n, ceil(k * bits / 32)], packed by packed_codes.pack_words
    X.weight_scale       [n, k / group_size], or [n, 1] with one scale a row
    X.weight_shape       int64 [2]: n, k
    X.weight_zero_point  int32 [ceil(n * bits / 32), k / group_size], packed along n; only with zero points

value = (code - zero point) * scale, so scales may be negative. Codes are stored in 4 or 8 bits. The format allows any width from 1 to 8, but
only these two are in every server's kernels (SGLang and vLLM's Marlin have no other).

Source: github.com/vllm-project/compressed-tensors, 0.20.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from enginewright.exporters.checkpoint_export.packed_codes import pack_words
from enginewright.exporters.checkpoint_export.quantized_linear import (
    Description,
    LeftOut,
    QuantizedLinear,
    Tensor,
    narrow_scales,
)
from enginewright.exporters.weights.weight import CodeForm

FORMAT = "pack-quantized"
EXPERTS = r"re:.*\.experts(\..*)?$"  # each server has its own names for experts
Form = tuple[int, int | None, bool]  # (bits as stored, group size; None: one scale a row, symmetric)


def check_form(form: CodeForm) -> None:
    """Accept every form: codes of fewer bits are widened, and groups may have any size."""


def describe(linears: Sequence[QuantizedLinear], left_out: LeftOut, producer: dict[str, str]) -> Description:
    """Describe all Linear layers as one group; where they are quantised in several ways, as one group of names for each."""
    groups: dict[Form, list[str]] = {}
    for linear in linears:
        groups.setdefault((linear.bits, linear.group_size, linear.is_symmetric), []).append(linear.module)
    named = len(groups) > 1
    return Description(
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": FORMAT,
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "ignore": [*left_out.modules, *([EXPERTS] if left_out.experts else [])],
            "config_groups": {
                f"group_{i}": _group(form, modules if named else ["Linear"])
                for i, (form, modules) in enumerate(groups.items())
            },
        },
        files={},
    )


def store(linear: QuantizedLinear) -> dict[str, Tensor]:
    """Return packed codes, scales, the shape and, where there are such, packed zero points."""
    codes, scales = linear.rows.load()
    tensors = {
        "weight_packed": ("I32", pack_words(codes, linear.bits)),
        "weight_scale": narrow_scales(scales, linear.dtype),
        "weight_shape": ("I64", np.array(linear.shape, "<i8")),
    }
    if linear.rows.zero_points is not None:
        words = pack_words(np.ascontiguousarray(linear.rows.zero_points().T), linear.bits)
        tensors["weight_zero_point"] = ("I32", np.ascontiguousarray(words.T))
    return tensors


def _group(form: Form, targets: list[str]) -> dict[str, Any]:
    bits, group_size, symmetric = form
    return {
        "targets": targets,
        "weights": {
            "num_bits": bits,
            "type": "int",
            "symmetric": symmetric,
            "strategy": "channel" if group_size is None else "group",
            "group_size": group_size,
            "dynamic": False,
        },
        "input_activations": None,
        "output_activations": None,
        "format": FORMAT,
    }
