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
from enginewright.plugins.ops.block_linear import BLOCK_LINEAR, CHUNK_COLUMNS, LINEAR_BITS, NUMBER_BITS, PANEL_ROWS
from enginewright.plugins.ops.block_lookup import BLOCK_LOOKUP
from enginewright.plugins.ops.op import DOMAIN

PANELS = "panels"
"""The last part of the name of the tensor of panels."""


@dataclass(frozen=True, kw_only=True)
class PanelLayout:
    """What a node has to know of a matrix in panels; `quantize_panels`, `keep_panels` and `round_panels`
    create it.

    n, k: rows and columns of the matrix.
    bits: of a stored code, or 16 for bfloat16.
    block: columns that share a scale.
    scale_bits: of a scale, and of a minimum.
    minima: whether a block has a minimum.
    order: hash of the order of columns; empty where they are in their order.
    """

    n: int
    k: int
    bits: int
    block: int
    scale_bits: int
    minima: bool
    order: str = ""

    @property
    def attributes(self) -> dict[str, int]:
        """Of a node that reads the matrix."""
        sizes = {"rows": self.n, "columns": self.k, "bits": self.bits, "block": self.block}
        return {**sizes, "scale_bits": self.scale_bits, "minima": int(self.minima)}

    def weight(self, load: Callable[[], np.ndarray]) -> Weight:
        """The panels as a recipe."""
        size = panel_bytes(self.k, self.bits, self.block, scale_bits=self.scale_bits, minima=self.minima)
        return Weight(shape=(-(-self.n // PANEL_ROWS), size), dtype=ir.DataType.INT8, load=load)


def quantize_panels(use: WeightUse, bits: int, block: int, *, symmetric: bool) -> Encoding:
    """Return the use's matrix of numbers as codes of `bits` bits, which are chosen for scales that are halves."""
    rows = use.rows
    n, k = rows.shape
    layout = PanelLayout(n=n, k=k, bits=bits, block=block, scale_bits=16, minima=not symmetric)

    def load() -> np.ndarray:
        codes, scales, minima = codes_with_halves(rows.load(), bits, block, symmetric=symmetric)
        return pack_panels(codes, scales, minima, bits, block)

    return Encoding(parts={PANELS: layout.weight(load)}, layout=layout)


def keep_panels(use: WeightUse, chosen: QuantizedRows) -> Encoding:
    """Return codes that were chosen before, with the scales and offsets that they have."""
    n, k = use.rows.shape
    bits = chosen.bits if chosen.bits in LINEAR_BITS else 8
    block = _block_of(chosen.group_size, k)
    minima = bool(chosen.offset)
    layout = PanelLayout(n=n, k=k, bits=bits, block=block, scale_bits=32, minima=minima, order=chosen.order_hash)
    parts = {PANELS: layout.weight(partial(_pack_chosen, chosen, bits, block)), **order_part(chosen, k)}
    offset = ", with minima" if minima else ""
    told = f"{bits} bits in panels of blocks of {block}{offset}{', reordered' if chosen.order is not None else ''}"
    return Encoding(parts=parts, layout=layout, told=told)


def round_panels(use: WeightUse) -> Encoding:
    """Return the use's matrix rounded to bfloat16; its recipe raises an ExportError where a number has no such neighbour."""
    rows = use.rows
    n, k = rows.shape
    layout = PanelLayout(n=n, k=k, bits=NUMBER_BITS, block=CHUNK_COLUMNS, scale_bits=16, minima=False)
    return Encoding(parts={PANELS: layout.weight(lambda: pack_bfloat16(rows.load()))}, layout=layout, told="bfloat16")


def _block_of(group_size: int, k: int) -> int:
    """The columns of a scale: the group's, or 16 of them where panels hold no such groups, or the padded row."""
    if group_size == k:
        return -(-k // CHUNK_COLUMNS) * CHUNK_COLUMNS
    return group_size if group_size % CHUNK_COLUMNS == 0 else CHUNK_COLUMNS // 2


def _pack_chosen(chosen: QuantizedRows, bits: int, block: int) -> np.ndarray:
    codes, scales = chosen.load()
    k, offset = codes.shape[1], 1 << (bits - 1)
    columns = np.arange(0, k, block) // chosen.group_size
    steps = scales[:, columns].astype(np.float32)
    lowest = None
    if chosen.minima is not None:
        shift = np.float32((1 << (chosen.bits - 1)) - offset)
        lowest = chosen.minima()[:, columns].astype(np.float32) + shift * steps
    elif chosen.zero_points is not None:
        lowest = -(chosen.zero_points()[:, columns].astype(np.float32) + np.float32(offset)) * steps
    return pack_panels(codes.view(np.uint8) + np.uint8(offset), steps, lowest, bits, block)


def write_panel_product(use: WeightUse, layout: PanelLayout, values: Values, *, exact: bool) -> None:
    """Replace the use's node by BlockLinear, with the bias in it."""
    source = reorder(use, values, layout.order)
    flat = [] if _is_flat(source, 3) else reshaped(source, [1, -1, layout.k])
    for node in flat[-1:]:
        node.outputs[0].type = source.type
    inputs = [flat[-1].outputs[0] if flat else source, values[PANELS], *([] if use.bias is None else [use.bias])]
    attributes = {**layout.attributes, "width": layout.n, "exact": int(exact)}
    product = ir.node(BLOCK_LINEAR.name, inputs, domain=DOMAIN, attributes=attributes)
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


def _with_sizes_of(source: ir.Value, end: dict[str, int], node: ir.Node, width: int) -> list[ir.Node]:
    """The nodes that give what `node` makes, [1, T, width], the leading sizes of `source`, up to the axis `end`."""
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    sizes = ir.node("Shape", [source], attributes={"start": 0, **end})
    last = ir.node("Constant", [], attributes={"value": ir.tensor(np.array([width], np.int64))})
    whole = ir.node("Concat", [sizes.outputs[0], last.outputs[0]], attributes={"axis": 0})
    return [sizes, last, whole, ir.node("Reshape", [node.outputs[0], whole.outputs[0]])]
