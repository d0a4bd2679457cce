"""Weights as the checkpoint stores them: codes with their bits, and numbers of the type that the graph computes in."""

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

_ROUNDED_ACTIVATIONS = 1e-2  # as of int8, whose activations are rounded in the same way


@dataclass(frozen=True, kw_only=True)
class StoredOptions:
    """Options of weights as they are stored; `choose_storage` creates it.

    compute: type of the activations in a product with codes: int8 (faster) or float32 (exact).

    Raises:
        ExportError: a value that is not known.
    """

    compute: Compute = "int8"

    def __post_init__(self) -> None:
        check_compute(self.compute)


def _encode(options: StoredOptions, use: WeightUse) -> Encoding:
    assert use.rows.quantized is not None, "it takes no other"
    return encode_chosen(options.compute, use, use.rows.quantized)


def _describe(kind: str, options: StoredOptions, dtype: str) -> dict[str, Any]:
    bound = {"max_kl": _ROUNDED_ACTIVATIONS} if options.compute == "int8" else {}
    return {"kind": kind, "compute": options.compute, "dtype": dtype, **bound}


FORM = StoredForm(
    name="stored",
    summary="as the checkpoint has them: codes stay codes, and numbers are float32",
    options=StoredOptions,
    takes=lambda options, use: False,
    keeps=keeps,
    keeps_stored=True,
    for_numbers="float32",
    encode=_encode,
    write=lambda options, use, encoding, values: write_blocks(options.compute, use, encoding, values),
    describe=_describe,
    opsets={MICROSOFT: 1},
    products=(PRODUCT,),
)
