"""Weights as codes of 8 bits in blocks."""

from enginewright.exporters.weights.block_products import block_codes_form

FORM = block_codes_form(8, max_kl=1e-2)
