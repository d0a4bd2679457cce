"""Declares ExpertMixture, a layer of experts of which each row reads a few, as one op in place of products per expert."""

from __future__ import annotations

import dataclasses

from enginewright.plugins.ops.block_linear import CODE_ATTRIBUTES, GATES, unsupported
from enginewright.plugins.ops.op import Attribute, Op, Tensor

MIXTURE_GATES = {**GATES, "clamped_swiglu": 4}
"""The activation of a mixture's gate -> its number as the attribute `gate`."""


def _codes_of(matrix: str) -> tuple[Attribute, ...]:
    """The attributes of the codes of the matrices "up" or "down": up_bits and so on; their sizes are the op's."""
    return tuple(
        dataclasses.replace(attribute, name=f"{matrix}_{attribute.name}", doc=f"of `{matrix}`: {attribute.doc}")
        for attribute in CODE_ATTRIBUTES
        if attribute.name not in ("rows", "columns")
    )


EXPERT_MIXTURE = Op(
    name="ExpertMixture",
    version=1,
    doc=(
        "Sends each row of x to the experts that `ids` names, and sums what they make of it, times its weights, in their order. "
        "Expert e computes `down`[e] (activation(gate) * up), where `up`[e] makes both gate and up of the row. Products are those "
        "of BlockLinear: a row's result depends on no other row and on no thread. An expert may stand in a row's list twice."
    ),
    inputs=(
        Tensor("x", ("float32",), ("T", "columns"), "rows of activations"),
        Tensor("ids", ("int64",), ("T", "K"), "numbers of each row's experts, from 0 on"),
        Tensor("weights", ("float32",), ("T", "K"), "the factor of each"),
        Tensor(
            "up",
            ("int8",),
            ("E", "panels", "bytes"),
            "matrices [2 * inner, columns] in panels: the gate, and what it multiplies",
        ),
        Tensor("down", ("int8",), ("E", "down_panels", "down_bytes"), "matrices [columns, inner] in panels"),
        Tensor("up_bias", ("float32",), ("E", "up_rows"), "added to products with `up`, in their order", optional=True),
        Tensor("down_bias", ("float32",), ("E", "columns"), "added to products with `down`", optional=True),
    ),
    outputs=(Tensor("out", ("float32",), ("T", "columns"), "the sums"),),
    attributes=(
        Attribute("columns", "int", "columns of x and of `out`", least=1, most=1 << 20),
        Attribute("inner", "int", "outputs of a gate: a multiple of 16", least=16, most=1 << 20),
        Attribute(
            "gate",
            "int",
            "1: SiLU; 2: GELU in its tanh form; 3: GELU; 4: g sigmoid(slope g) (u + 1) of a gate g up to `limit` and of u "
            "from -limit to `limit`",
            least=1,
            most=4,
        ),
        Attribute("slope", "float", "of the sigmoid, with gate 4", default=1.0),
        Attribute("limit", "float", "of gate 4", default=1e30),
        Attribute("exact", "int", "1: activations stay numbers in products", default=0, most=1),
        *_codes_of("up"),
        *_codes_of("down"),
    ),
    oracle="enginewright.plugins.oracles.block_linear:expert_mixture",
    unsupported=unsupported,
)
