"""Writes ModelOpt's unified checkpoint with weights of 4 or 8 bits, which TensorRT-LLM reads.

    X.weight           uint8 [n / 2, k], two rows in one (packed_codes.pack_output_pairs), or int8 [n, k] at 8 bits
    X.weight_scale     [n, k / group_size], or [n] with one scale a row
    X.pre_quant_scale  [k] ones, with groups only: TensorRT-LLM multiplies the input by it, and fails without it

hf_quant_config.json names the algorithm: W4A16_AWQ (groups), W4A16 or W8A16 (one scale a row). TensorRT-LLM follows that file
before config.json, and reads no integer weights in compressed-tensors' format. vLLM and SGLang have none of these three
algorithms, and refuse such a checkpoint with and without the file.

Source: github.com/NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/model_config.py and modules/linear.py;
github.com/NVIDIA/TensorRT-Model-Optimizer, modelopt/torch/export/quant_utils.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from enginewright.exporters.checkpoint_export.packed_codes import pack_output_pairs
from enginewright.exporters.checkpoint_export.quantized_linear import (
    Description,
    LeftOut,
    QuantizedLinear,
    Tensor,
    narrow_scales,
    to_tensor,
)
from enginewright.exporters.weights.block_codes import stored_bits
from enginewright.exporters.weights.weight import CodeForm
from enginewright.runtime.errors import UnsupportedError

FILE = "hf_quant_config.json"
GROUP_SIZES = (64, 128)  # that TensorRT-LLM's kernels take
INSTEAD = "use --format compressed-tensors, for another server, or quantise otherwise"


def check_form(form: CodeForm) -> None:
    """Raise UnsupportedError where TensorRT-LLM has no kernel for groups of this form."""
    bits = stored_bits(form.bits)
    if form.group_size is not None and (bits != 4 or form.group_size not in GROUP_SIZES):
        sizes = " or ".join(map(str, GROUP_SIZES))
        raise UnsupportedError(
            f"format modelopt: got {bits} bits in groups of {form.group_size}, expected 4 in groups of {sizes}, or one scale a "
            f"row; {INSTEAD}"
        )


def describe(linears: Sequence[QuantizedLinear], left_out: LeftOut, producer: dict[str, str]) -> Description:
    """Name the algorithm in hf_quant_config.json and, as ModelOpt does, in config.json.

    Raises:
        UnsupportedError: TensorRT-LLM has no algorithm for these weights.
    """
    settings = _settings(linears)
    if spanned := [linear for linear in linears if not linear.is_symmetric]:
        raise UnsupportedError(
            f"format modelopt: {spanned[0].module!r} got codes with zero points, expected codes around 0; {INSTEAD}"
        )
    if left_out.experts:
        raise UnsupportedError(
            f"format modelopt: got experts that are not quantised, expected a model without; {INSTEAD}"
        )
    if odd := [linear for linear in linears if linear.shape[0] % 2 and linear.bits == 4]:
        raise UnsupportedError(
            f"format modelopt: {odd[0].module!r} got {odd[0].shape[0]} outputs, expected an even number; {INSTEAD}"
        )
    left = list(left_out.modules)
    inline: dict[str, Any] = {key: settings[key] for key in ("quant_algo", "group_size") if key in settings}
    return Description(
        quantization_config={"quant_method": "modelopt", **inline, "ignore": left, "producer": producer},
        files={
            FILE: {
                "producer": producer,
                "quantization": {**settings, "kv_cache_quant_algo": None, "exclude_modules": left},
            }
        },
    )


def store(linear: QuantizedLinear) -> dict[str, Tensor]:
    """Return packed codes, scales and, with groups, the ones that the input is multiplied by."""
    codes, scales = linear.rows.load()
    grouped = linear.group_size is not None
    tensors = {
        "weight": ("U8", pack_output_pairs(codes)) if linear.bits == 4 else ("I8", codes),
        "weight_scale": narrow_scales(scales if grouped else scales[:, 0], linear.dtype),
    }
    if grouped:
        tensors["pre_quant_scale"] = to_tensor(np.ones(linear.shape[1], np.float32), linear.dtype, linear.module)
    return tensors


def _settings(linears: Sequence[QuantizedLinear]) -> dict[str, Any]:
    forms = {(linear.bits, linear.group_size) for linear in linears}
    if len(forms) != 1:
        raise UnsupportedError(f"format modelopt: got {len(forms)} ways of quantising, expected one; {INSTEAD}")
    ((bits, group_size),) = forms
    if group_size is None:
        return {"quant_algo": f"W{bits}A16"}
    check_form(CodeForm(bits=bits, group_size=group_size))
    return {"quant_algo": "W4A16_AWQ", "group_size": group_size, "has_zero_point": False, "pre_quant_scale": True}
