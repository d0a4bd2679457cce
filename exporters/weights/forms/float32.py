"""Weights as numbers of the type that the graph computes in; codes that a method has chosen stay codes."""

from enginewright.exporters.weights.block_products import chosen_codes_form

FORM = chosen_codes_form(
    "float32", "numbers of the type that --dtype names", describe=lambda kind, options, dtype: {"kind": dtype}
)
