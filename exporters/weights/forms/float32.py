"""Weights as numbers of the type that the graph computes in; codes that a method has chosen stay codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from enginewright.exporters.weights.block_products import (
    MICROSOFT,
    PRODUCT,
    Compute,
    check_compute,
    encode_chosen,
    keeps,
    write_blocks,
)
from enginewright.exporters.weights.stored_form import Encoding, StoredForm, WeightUse


@dataclass(frozen=True, kw_only=True)
class FloatOptions:
    """Options of weights that are not quantised; `choose_storage` creates it.

    compute: type of the activations in a product with weights that a method has quantised: int8 (faster) or float32 (exact).

    Raises:
        ExportError: a value that is not known.
    """

    compute: Compute = "int8"

    def __post_init__(self) -> None:
        check_compute(self.compute)


def _encode(options: FloatOptions, use: WeightUse) -> Encoding:
    assert use.rows.quantized is not None, "it takes no other"
    return encode_chosen(options.compute, use, use.rows.quantized)


def _describe(kind: str, options: FloatOptions, dtype: str) -> dict[str, Any]:
    return {"kind": dtype}


FORM = StoredForm(
    name="float32",
    summary="numbers of the type that --dtype names",
    options=FloatOptions,
    takes=lambda options, use: False,
    keeps=keeps,
    encode=_encode,
    write=lambda options, use, encoding, values: write_blocks(options.compute, use, encoding, values),
    describe=_describe,
    opsets={MICROSOFT: 1},
    products=(PRODUCT,),
)
