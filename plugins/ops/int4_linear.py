"""Describes the call of Int4Linear, the kernel that multiplies by weights of four bits; no graph has a node for it yet."""

from __future__ import annotations

from enginewright.plugins.ops.call import Call, Field, KernelSizes, fields

INT4_LINEAR_CALL = Call(
    name="Int4Linear",
    doc=(
        "out[rows, outputs] = x[rows, size] W^T of `type`. W[outputs, size] = (code - zero) * scale, codes of four bits "
        "packed two per byte, low nibble first, in blocks of `block` along size; scales[outputs, size / block] of `type`, "
        "zero 8."
    ),
    fields=(
        *fields("const void*", "x", "codes", "scales"),
        Field("out", "void*"),
        *fields("int64_t", "rows", "outputs", "size", "block"),
        *fields("int32_t", "type", "reserved"),
    ),
    sizes=(KernelSizes("blocks", (16, 32, 64, 128), "Inputs of one scale."),),
)
