"""Weights as codes of 4 bits in blocks."""

from enginewright.exporters.weights.block_products import block_codes_form

FORM = block_codes_form(4, max_kl=0.5)
