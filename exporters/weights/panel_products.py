"""Writes matrices in panels of codes or of bfloat16 for BlockLinear and BlockLookup, which read them as they are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from enginewright.exporters.weights.block_codes import codes_with_halves
from enginewright.exporters.weights.block_corrections import order_part, reorder, reshaped
from enginewright.exporters.weights.panels import pack_bfloat16, pack_panels, panel_bytes
from enginewright.exporters.weights.stored_form import Encoding, Values, WeightUse
from enginewright.exporters.weights.weight import QuantizedRows, Weight
from enginewright.plugins.ops.block_linear import (
    BLOCK_LINEAR,
    CHUNK_COLUMNS,
    FACTOR_COLUMNS,
    LINEAR_BITS,
    NUMBER_BITS,
    OFFSETS,
    PANEL_ROWS,
)
from enginewright.plugins.ops.block_lookup import BLOCK_LOOKUP
from enginewright.plugins.ops.op import DOMAIN
from enginewright.runtime.errors import ExportError

PANELS = "panels"
"""The last part of the name of the tensor of panels."""


@dataclass(frozen=True, kw_only=True)
class PanelLayout:
    """What a node has to know of a matrix in panels; `quantize_panels`, `keep_panels` and `round_panels`
    create it.

    n, k: rows and columns of the matrix.
    bits: of a stored code, or 16 for bfloat16.
    block: columns that share a scale.
    scale_bits: of a scale, and of what `offset` names; 8: they are multiplied by factors.
    offset: what a block has besides its scale: "minima", "zero_points", or "" for nothing.
    order: hash of the order of columns; empty where they are in their order.
    """

    n: int
    k: int
    bits: int
    block: int
    scale_bits: int
    offset: str
    order: str = ""

    @property
    def attributes(self) -> dict[str, int]:
        """Of a node that reads the matrix."""
        sizes = {"rows": self.n, "columns": self.k, "bits": self.bits, "block": self.block}
        return {**sizes, "scale_bits": self.scale_bits, "minima": OFFSETS[self.offset]}

    def weight(self, load: Callable[[], np.ndarray]) -> Weight:
        """The panels as a recipe."""
        size = panel_bytes(self.k, self.bits, self.block, scale_bits=self.scale_bits, minima=bool(self.offset))
        return Weight(shape=(-(-self.n // PANEL_ROWS), size), dtype=ir.DataType.INT8, load=load)


def quantize_panels(use: WeightUse, bits: int, block: int, *, symmetric: bool) -> Encoding:
    """Return the use's matrix of numbers as codes of `bits` bits, which are chosen for scales that are halves."""
    rows = use.rows
    n, k = rows.shape
    layout = PanelLayout(n=n, k=k, bits=bits, block=block, scale_bits=16, offset="" if symmetric else "minima")

    def load() -> np.ndarray:
        codes, scales, minima = codes_with_halves(rows.load(), bits, block, symmetric=symmetric)
        return pack_panels(codes, scales, minima, bits, block)

    return Encoding(parts={PANELS: layout.weight(load)}, layout=layout)


def keep_panels(use: WeightUse, chosen: QuantizedRows) -> Encoding:
    """Return codes that were chosen before, with the scales and offsets that they have.

    These are in 16 bits where they are halves, in 8 with factors where they are such products, and else in 32.
    """
    n, k = use.rows.shape
    bits = chosen.bits if chosen.bits in LINEAR_BITS else 8
    block = _block_of(chosen.group_size, k)
    layout = PanelLayout(
        n=n,
        k=k,
        bits=bits,
        block=block,
        scale_bits=16 if chosen.halves else 8 if _keeps_factors(chosen, k, block) else 32,
        offset=chosen.offset,
        order=chosen.order_hash,
    )
    matrix = use.node.inputs[1 if use.is_product else 0]
    load = partial(_pack_chosen, chosen, layout, "" if matrix is None else matrix.name or "")
    parts = {PANELS: layout.weight(load), **order_part(chosen, k)}
    return Encoding(parts=parts, layout=layout, told=_describe_panels(layout))


def _describe_panels(layout: PanelLayout) -> str:
    offset = {"": "", "zero_points": " and zero points", "minima": " and minima"}[layout.offset]
    order = ", reordered" if layout.order else ""
    sizes = f"{layout.scale_bits} bits{' and factors' if layout.scale_bits == 8 else ''}"
    return f"{layout.bits} bits in panels of blocks of {layout.block}, with scales{offset} of {sizes}{order}"


def _keeps_factors(chosen: QuantizedRows, k: int, block: int) -> bool:
    """Whether the scales are products that panels can hold."""
    return chosen.factored is not None and FACTOR_COLUMNS % block == 0 and k % FACTOR_COLUMNS == 0


def round_panels(use: WeightUse) -> Encoding:
    """Return the use's matrix rounded to bfloat16; its recipe raises an ExportError where a number has no such neighbour."""
    rows = use.rows
    n, k = rows.shape
    layout = PanelLayout(n=n, k=k, bits=NUMBER_BITS, block=CHUNK_COLUMNS, scale_bits=16, offset="")
    return Encoding(parts={PANELS: layout.weight(lambda: pack_bfloat16(rows.load()))}, layout=layout, told="bfloat16")


def _block_of(group_size: int, k: int) -> int:
    """The columns of a scale: the group's, or 16 of them where panels hold no such groups, or the padded row."""
    if group_size == k:
        return -(-k // CHUNK_COLUMNS) * CHUNK_COLUMNS
    return group_size if group_size % CHUNK_COLUMNS == 0 else CHUNK_COLUMNS // 2


def _pack_chosen(chosen: QuantizedRows, layout: PanelLayout, name: str) -> np.ndarray:
    """The panels of codes that were chosen before; ExportError for scales or minima that are no numbers."""
    codes, scales = chosen.load()
    # codes in more bits than their own have the same lowest one where there is an offset
    middle = 1 << ((chosen.bits if chosen.offset else layout.bits) - 1)
    lowest, factors = None, None
    if layout.scale_bits == 8 and chosen.factored is not None:
        products = chosen.factored()
        scales, lowest, factors = products.scales, products.minima, products.factors
    elif chosen.minima is not None:
        lowest = chosen.minima()
    elif chosen.zero_points is not None:
        lowest = chosen.zero_points().astype(np.float32) + np.float32(middle)
    for numbers in (scales, lowest, factors):
        if numbers is not None and not np.isfinite(numbers).all():
            raise ExportError(
                f"{name}: got a scale or a minimum of NaN or infinity, expected numbers; quantise it again"
            )
    columns = np.arange(0, layout.k, layout.block) // chosen.group_size
    steps = _narrowed(scales[:, columns], layout.scale_bits)
    lowest = None if lowest is None else _narrowed(lowest[:, columns], layout.scale_bits)
    return pack_panels(codes.view(np.uint8) + np.uint8(middle), steps, lowest, layout.bits, layout.block, factors)


def _narrowed(numbers: np.ndarray, bits: int) -> np.ndarray:
    """The same numbers in fewer bits: whole ones in 8, halves in 16, or float32."""
    kept = numbers.astype({8: np.int8, 16: np.float16, 32: np.float32}[bits])
    assert (kept == numbers).all(), "QuantizedRows says that they are such numbers"
    return kept


def write_panel_product(use: WeightUse, layout: PanelLayout, values: Values, *, exact: bool) -> None:
    """Replace the use's node by BlockLinear, with the bias in it."""
    source = reorder(use, values, layout.order)
    flat = [] if _is_flat(source, 3) else reshaped(source, [1, -1, layout.k])
    for node in flat[-1:]:
        node.outputs[0].type, node.outputs[0].shape = source.type, _rows_shape(source, layout.k)
    inputs = [flat[-1].outputs[0] if flat else source, values[PANELS], *([] if use.bias is None else [use.bias])]
    attributes = {**layout.attributes, "width": layout.n, "exact": int(exact)}
    product = ir.node(BLOCK_LINEAR.name, inputs, domain=DOMAIN, attributes=attributes)
    product.outputs[0].shape = _rows_shape(source, layout.n)
    after = _with_sizes_of(source, {"end": -1}, product, layout.n) if flat else []
    use.replace([*flat, product, *after], adds_bias=True)


def write_panel_lookup(use: WeightUse, layout: PanelLayout, values: Values) -> None:
    """Replace the use's node by BlockLookup."""
    flat = [] if _is_flat(use.input, 2) else reshaped(use.input, [1, -1])
    for node in flat[-1:]:
        node.outputs[0].type = use.input.type
    ids = flat[-1].outputs[0] if flat else use.input
    lookup = ir.node(BLOCK_LOOKUP.name, [values[PANELS], ids], domain=DOMAIN, attributes=layout.attributes)
    use.replace([*flat, lookup, *(_with_sizes_of(use.input, {}, lookup, layout.k) if flat else [])])


def _is_flat(value: ir.Value, rank: int) -> bool:
    """Whether the value has one leading size, of 1, before the tokens, as the ops want it."""
    return value.shape is not None and len(value.shape) == rank and value.shape[0] == 1


def _rows_shape(source: ir.Value, width: int) -> ir.Shape | None:
    """The shape [1, T, width] of the rows of `source`; None where T is a product of sizes."""
    if source.shape is None or len(source.shape) not in (2, 3) or (len(source.shape) == 3 and source.shape[0] != 1):
        return None
    return ir.Shape([1, source.shape[-2], width])


def _with_sizes_of(source: ir.Value, end: dict[str, int], node: ir.Node, width: int) -> list[ir.Node]:
    """The nodes that give what `node` makes, [1, T, width], the leading sizes of `source`, up to the axis `end`."""
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    sizes = ir.node("Shape", [source], attributes={"start": 0, **end})
    last = ir.node("Constant", [], attributes={"value": ir.tensor(np.array([width], np.int64))})
    whole = ir.node("Concat", [sizes.outputs[0], last.outputs[0]], attributes={"axis": 0})
    return [sizes, last, whole, ir.node("Reshape", [node.outputs[0], whole.outputs[0]])]
