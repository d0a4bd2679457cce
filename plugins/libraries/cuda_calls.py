"""The C structures that describe calls of the CUDA library, as `csrc/abi/cuda_calls.h` declares them."""

from __future__ import annotations

import ctypes

_pointer, _int64, _int32, _float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class Attention(ctypes.Structure):
    """`EwAttention`: the arguments that both attention ops have."""

    _fields_ = (
        *((name, _pointer) for name in ("query", "key", "value", "output")),
        *((name, _pointer) for name in ("query_starts", "kv_lens", "table", "sinks")),
        *((name, _int64) for name in ("tokens", "rows", "query_heads", "kv_heads", "head_dim", "value_dim")),
        *((name, _int64) for name in ("table_heads", "table_width", "window", "longest")),
        *((name, _float) for name in ("scale", "softcap")),
        *((name, _int32) for name in ("type", "reserved")),
    )


class PagedAttention(ctypes.Structure):
    """`EwPagedAttention`."""

    _fields_ = (("attention", Attention), ("tiles", _pointer), ("tile_count", _int64), ("kv_bits", _int64))


class KVarNAttention(ctypes.Structure):
    """`EwKVarNAttention`."""

    _fields_ = (
        ("attention", Attention),
        *((name, _pointer) for name in ("tiles", "exact", "slots", "encoded_before", "encoded_after")),
        *((name, _int64) for name in ("record_count", "slot_count", "exact_tiles", "iterations")),
        *((name, _int32) for name in ("k_bits", "v_bits", "robust", "rotate_values")),
    )


class DepthMix(ctypes.Structure):
    """`EwDepthMix`.

    sources: the address of an array of pointers in host memory.
    """

    _fields_ = (
        *((name, _pointer) for name in ("query", "key", "value", "sources", "mixed")),
        *((name, _int64) for name in ("tokens", "query_heads", "kv_heads", "head_dim", "value_dim", "source_count")),
        ("scale", _float),
        ("type", _int32),
    )


class ClpEmit(ctypes.Structure):
    """`EwClpEmit`."""

    _fields_ = (
        *((name, _pointer) for name in ("hidden", "greedy", "classifier_weight", "classifier_bias")),
        *((name, _pointer) for name in ("up_weight", "up_bias", "out_bias", "out_weight", "out_codes", "out_scales")),
        *((name, _pointer) for name in ("sample_rows", "query_starts", "tokens", "counts")),
        *((name, _int64) for name in ("rows", "size", "classes", "extra", "inner", "vocab", "sequences")),
        ("tau", _float),
        *((name, _int32) for name in ("activation", "residual", "type")),
    )


class Int4Linear(ctypes.Structure):
    """`EwInt4Linear`."""

    _fields_ = (
        *((name, _pointer) for name in ("x", "codes", "scales", "out")),
        *((name, _int64) for name in ("rows", "outputs", "size", "block")),
        *((name, _int32) for name in ("type", "reserved")),
    )


class SplitQkv(ctypes.Structure):
    """`EwSplitQkv`."""

    _fields_ = (
        *((name, _pointer) for name in ("packed", "cos", "sin", "query_norm", "key_norm", "query", "key", "value")),
        *((name, _int64) for name in ("tokens", "query_heads", "kv_heads", "head_dim", "value_dim", "half")),
        ("epsilon", _float),
        ("type", _int32),
    )


class GreedySample(ctypes.Structure):
    """`EwGreedySample`."""

    _fields_ = (("logits", _pointer), ("tokens", _pointer), ("rows", _int64), ("vocab", _int64))


CALLS: dict[type[ctypes.Structure], str] = {
    PagedAttention: "paged_attention",
    KVarNAttention: "kvarn_attention",
    DepthMix: "depth_mix",
    ClpEmit: "clp_emit",
    Int4Linear: "int4_linear",
    SplitQkv: "split_qkv",
    GreedySample: "greedy_sample",
}
"""Structure -> NAME in the names of its C functions, `ew_cuda_NAME` and `ew_cuda_NAME_workspace`."""
