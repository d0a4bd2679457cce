"""The ways to quantise checkpoints that are not read, each with the reason."""

from __future__ import annotations

from typing import Any

from enginewright.exporters.source.registry import FORMATS

REASONS = {
    "aqlm": "its codes are numbers of vectors in codebooks",
    "auto-round": "of its packings auto_gptq and auto_awq are read",
    "bitnet": "its layers round activations with the weights",
    "bitsandbytes": "its codes are in blocks of the flattened matrix, and stand for uneven steps",
    "eetq": "its codes are in the order of one GPU kernel",
    "fp_quant": "its weights are rotated",
    "higgs": "its codes are numbers of points of a grid, of rotated weights",
    "hqq": "its zero points are no whole numbers",
    "quanto": "its layout is that library's own",
    "quark": "its layouts are that library's own",
    "spqr": "its outliers are stored apart",
    "torchao": "its tensors are that library's own objects",
    "vptq": "its codes are numbers of vectors in codebooks",
}
"""By transformers' `quant_method`."""
_NUMBERS = "safetensors"


def describe_refusal(settings: Any) -> str:
    """Return the words about a checkpoint that is quantised as `quantization_config` says, in a way that no format reads."""
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str):
        method = "quantization_config names no method"
    known = [name for name, entry in sorted(FORMATS.entries().items()) if entry.instead_of == _NUMBERS]
    reason = REASONS.get(method, "")
    return (
        f"weights are quantised ({method}){': ' if reason else ''}{reason}, expected one of {', '.join(known)}, or GGUF; pass "
        "the unquantised checkpoint"
    )
