"""Weights as the checkpoint stores them: codes with their bits, and numbers of the type that the graph computes in."""

from __future__ import annotations

from typing import Any

from enginewright.exporters.weights.block_products import ChosenOptions, chosen_codes_form

_ROUNDED_ACTIVATIONS = 1e-2  # as of int8, whose activations are rounded in the same way


def _describe(kind: str, options: ChosenOptions, dtype: str) -> dict[str, Any]:
    bound = {"max_kl": _ROUNDED_ACTIVATIONS} if options.compute == "int8" else {}
    return {"kind": kind, "compute": options.compute, "linear": options.linear, "dtype": dtype, **bound}


FORM = chosen_codes_form(
    "stored",
    "as the checkpoint has them: codes stay codes, and numbers are float32",
    describe=_describe,
    keeps_stored=True,
    for_numbers="float32",
)
