"""Writes matrices in blocks of codes for ONNX Runtime's MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from enginewright.exporters.weights.block_codes import (
    BLOCK_SIZES,
    block_form,
    quantize_blocks,
    quantize_blocks_with_zero_points,
    store_codes,
    store_zero_points,
)
from enginewright.exporters.weights.block_corrections import (
    correct_lookup,
    correct_product,
    correction_parts,
    offsets_of,
    reorder,
)
from enginewright.exporters.weights.expert_mixtures import in_panels, write_panel_mixture
from enginewright.exporters.weights.panel_products import (
    PanelLayout,
    keep_panels,
    quantize_panels,
    write_panel_lookup,
    write_panel_product,
)
from enginewright.exporters.weights.stored_form import Encoding, Mixture, StoredForm, Values, WeightUse
from enginewright.exporters.weights.weight import QuantizedRows, Weight
from enginewright.plugins.ops.block_linear import BLOCK_LINEAR
from enginewright.runtime.errors import ExportError

MICROSOFT = "com.microsoft"
PRODUCT, LOOKUP = "MatMulNBits", "GatherBlockQuantized"
ACCURACY = {"int8": 4, "float32": 1}  # type of the activations -> MatMulNBits' accuracy_level
Compute = Literal["int8", "float32"]
Linear = Literal["auto", "onnxruntime", "enginewright"]


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """Options of weights in blocks along the input axis; `choose_storage` creates it.

    block_size: weights that share a scale: 16, 32, 64, 128 or 256.
    compute: type of the activations in a product with quantised weights: int8 (faster) or float32 (exact).
    embedding: whether the embedding is quantised as well.
    lm_head: whether the output projection is quantised as well.
    symmetric: false: a block also has a zero point, so that its codes span its own range; true: they lie around 0.
    linear: whose kernels multiply: onnxruntime's, or enginewright's own for CPUs, which read weights as they are stored. auto:
        enginewright's where they suit the engine, as `Storage.for_backend` says.

    Raises:
        ExportError: a value that is not known.
    """

    block_size: int = 32
    compute: Compute = "int8"
    embedding: bool = True
    lm_head: bool = True
    symmetric: bool = True
    linear: Linear = "auto"

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            sizes = f"{', '.join(map(str, BLOCK_SIZES[:-1]))} or {BLOCK_SIZES[-1]}"
            raise ExportError(f"weights: got block_size {self.block_size}, expected {sizes}")
        check_compute(self.compute)


@dataclass(frozen=True, kw_only=True)
class ChosenOptions:
    """Options of weights whose codes, if they are such, were chosen before; `choose_storage` creates it.

    compute: type of the activations in a product with codes: int8 (faster) or float32 (exact).
    linear: whose kernels multiply by codes, as in BlockOptions.

    Raises:
        ExportError: a value that is not known.
    """

    compute: Compute = "int8"
    linear: Linear = "auto"

    def __post_init__(self) -> None:
        check_compute(self.compute)


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """Sizes of a matrix in blocks; `encode` creates it.

    n, k: rows and columns of the matrix.
    bits: of a stored code.
    block_size: columns that share a scale.
    group_size: columns that share a minimum; 0 without minima.
    order: hash of the order of columns; empty where they are in their order.
    """

    n: int
    k: int
    bits: int
    block_size: int
    group_size: int = 0
    order: str = ""


def check_compute(compute: str) -> None:
    """Raise ExportError unless `compute` is a known type of activations."""
    if compute not in ACCURACY:
        raise ExportError(f"weights: got compute {compute!r}, expected int8 or float32")


def block_codes_form(bits: int, *, max_kl: float) -> StoredForm[BlockOptions]:
    """Return the form that stores codes of 4 or 8 bits, called "int4" or "int8"."""
    return StoredForm(
        name=f"int{bits}",
        summary=f"codes of {bits} bits in blocks that share a scale",
        options=BlockOptions,
        takes=_takes,
        keeps=keeps,
        encode=partial(_quantize, bits),
        write=_write,
        write_mixture=partial(_write_mixture, partial(_quantize, bits)),
        opsets={MICROSOFT: 1},
        products=(PRODUCT, BLOCK_LINEAR.name),
        max_kl=max_kl,
    )


def chosen_codes_form(
    name: str,
    summary: str,
    describe: Callable[[str, ChosenOptions, str], dict[str, Any]],
    *,
    keeps_stored: bool = False,
    for_numbers: str = "",
) -> StoredForm[ChosenOptions]:
    """Return a form that chooses no codes itself: it keeps those of methods, and leaves matrices of numbers as they are."""
    return StoredForm(
        name=name,
        summary=summary,
        options=ChosenOptions,
        takes=lambda options, use: False,
        keeps=keeps,
        keeps_stored=keeps_stored,
        for_numbers=for_numbers,
        encode=_keep,
        write=_write,
        write_mixture=partial(_write_mixture, _keep),
        describe=describe,
        opsets={MICROSOFT: 1},
        products=(PRODUCT, BLOCK_LINEAR.name),
    )


def keeps(use: WeightUse) -> bool:
    """Whether the use's matrix is quantised in a way that blocks express; a lookup needs blocks that fill its rows."""
    chosen, k = use.rows.quantized, use.rows.shape[1]
    if chosen is None:
        return False
    if chosen.group_size != k and all(chosen.group_size % size for size in BLOCK_SIZES):
        return False
    fills = k % block_form(chosen.bits, chosen.group_size, k)[1] == 0
    return use.is_product or (fills and chosen.order is None)


def _keep(options: ChosenOptions, use: WeightUse) -> Encoding:
    assert use.rows.quantized is not None, "it takes no other"
    if options.linear == "enginewright":
        _check_cpu(use)
        return keep_panels(use, use.rows.quantized)
    return _encode_chosen(options.compute, use, use.rows.quantized)


def _encode_chosen(compute: Compute, use: WeightUse, chosen: QuantizedRows) -> Encoding:
    """Return codes that were chosen before in blocks, without a change.

    Codes of 2 bits are stored in 2 bits for a CPU with int8 activations, and in 4 bits anywhere else.
    """
    k = use.rows.shape[1]
    symmetric = chosen.zero_points is None
    takes_two = use.for_cpu and compute == "int8" and symmetric
    bits, size = block_form(chosen.bits, chosen.group_size, k, takes_two=takes_two)

    def make() -> tuple[np.ndarray, ...]:
        rows, steps = chosen.load()
        codes, scales = store_codes(rows, steps, chosen.group_size, bits, size)
        if chosen.minima is not None:
            return codes, scales, offsets_of(chosen.bits, steps, chosen.minima())
        if chosen.zero_points is not None:
            return codes, scales, store_zero_points(chosen.zero_points(), k, chosen.group_size, bits, size)
        return codes, scales

    part = _shared(make)
    blocks = _encoding(use.rows.shape, bits, size, part, symmetric=symmetric)
    parts = {**blocks.parts, **correction_parts(chosen, use.rows.shape, lambda: part(2))}
    layout = dataclasses.replace(blocks.layout, group_size=chosen.group_size, order=chosen.order_hash)
    return Encoding(parts=parts, layout=layout, told=_describe_blocks(chosen, bits, size))


def _describe_blocks(chosen: QuantizedRows, bits: int, size: int) -> str:
    offset = {"": "", "zero_points": ", with zero points", "minima": ", with minima"}[chosen.offset]
    return f"{bits} bits in blocks of {size}{offset}{', reordered' if chosen.order is not None else ''}"


def _write(options: BlockOptions | ChosenOptions, use: WeightUse, encoding: Encoding, values: Values) -> None:
    """Replace the use's node by MatMulNBits, with the bias in it, or by GatherBlockQuantized."""
    layout = encoding.layout
    if isinstance(layout, PanelLayout):
        if use.is_product:
            write_panel_product(use, layout, values, exact=options.compute == "float32")
        else:
            write_panel_lookup(use, layout, values)
    elif use.is_product:
        _write_product(ACCURACY[options.compute], use, layout, values)
    else:
        _write_lookup(use, layout, values)


def _write_mixture(
    encode: Callable[[Any, WeightUse], Encoding],
    options: BlockOptions | ChosenOptions,
    mixture: Mixture,
    up: Sequence[WeightUse],
    down: Sequence[WeightUse],
) -> list[str] | None:
    """Replace the mixture by ExpertMixture, if all experts' matrices are panels of one layout."""
    first, second = ([encode(options, use) for use in uses] for uses in (in_panels(mixture, up), down))
    if not write_panel_mixture(mixture, first, second, exact=options.compute == "float32"):
        return None
    return [encoding.told for encoding in (*first, *second)]


def _takes(options: BlockOptions, use: WeightUse) -> bool:
    if use.is_product:
        return options.lm_head or not use.is_head
    return options.embedding and use.rows.shape[1] % options.block_size == 0  # a lookup has no padded last block


def _quantize(bits: int, options: BlockOptions, use: WeightUse) -> Encoding:
    rows, size = use.rows, options.block_size
    if options.linear == "enginewright":
        _check_cpu(use)
        if rows.quantized is not None:
            return keep_panels(use, rows.quantized)
        return quantize_panels(use, bits, size, symmetric=options.symmetric)
    if rows.quantized is not None:
        return _encode_chosen(options.compute, use, rows.quantized)

    def make() -> tuple[np.ndarray, ...]:
        quantize = quantize_blocks if options.symmetric else quantize_blocks_with_zero_points
        return quantize(rows.load(), bits, size)

    return _encoding(rows.shape, bits, size, _shared(make), symmetric=options.symmetric)


def _check_cpu(use: WeightUse) -> None:
    """Raise ExportError for a use that is in no graph for CPUs, which alone have kernels for panels."""
    if not use.for_cpu:
        raise ExportError(
            "weights: got linear=enginewright and a graph that is not float32 with our ops, expected one for CPUs; do "
            "linear=onnxruntime, or --dtype float32 --plugins all"
        )


def _encoding(
    shape: tuple[int, ...], bits: int, block_size: int, part: Callable[[int], np.ndarray], *, symmetric: bool
) -> Encoding:
    """Describe the arrays that `part` returns by number: codes, scales, and zero points unless `symmetric`."""
    n, k = shape
    blocks = -(-k // block_size)
    parts = {
        "codes": Weight(shape=(n, blocks, block_size * bits // 8), dtype=ir.DataType.UINT8, load=lambda: part(0)),
        "scales": Weight(shape=(n, blocks), dtype=ir.DataType.FLOAT, load=lambda: part(1)),
    }
    if not symmetric:
        parts["zero_points"] = Weight(shape=(n, -(-blocks * bits // 8)), dtype=ir.DataType.UINT8, load=lambda: part(2))
    return Encoding(parts=parts, layout=BlockLayout(n=n, k=k, bits=bits, block_size=block_size))


def _shared(make: Callable[[], tuple[np.ndarray, ...]]) -> Callable[[int], np.ndarray]:
    """Return a function of a number that gives that part of the result of `make`.

    `make` runs once for all parts: the others are kept until they are asked for.
    """
    kept: dict[int, np.ndarray] = {}

    def part(index: int) -> np.ndarray:
        if index not in kept:
            kept.update(enumerate(make()))
        return kept.pop(index)

    return part


def _write_product(accuracy: int, use: WeightUse, layout: BlockLayout, values: Values) -> None:
    source = reorder(use, values, layout.order)
    inputs = [source, values["codes"], values["scales"], values.get("zero_points"), None, use.bias]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {
        "K": layout.k,
        "N": layout.n,
        "bits": layout.bits,
        "block_size": layout.block_size,
        "accuracy_level": accuracy,
    }
    product = ir.node(PRODUCT, inputs, domain=MICROSOFT, attributes=attributes)
    use.replace(correct_product(use, source, product, values, layout.group_size), adds_bias=True)


def _write_lookup(use: WeightUse, layout: BlockLayout, values: Values) -> None:
    shape = ir.node("Constant", [], attributes={"value": ir.tensor(np.array([layout.n, -1], np.int64))})
    rows = ir.node("Reshape", [values["codes"], shape.outputs[0]])
    inputs = [rows.outputs[0], use.input, values["scales"]]
    if "zero_points" in values:
        inputs.append(values["zero_points"])
    attributes = {"gather_axis": 0, "quantize_axis": 1, "bits": layout.bits, "block_size": layout.block_size}
    lookup = ir.node(LOOKUP, inputs, domain=MICROSOFT, attributes=attributes)
    use.replace([shape, rows, *correct_lookup(lookup, use.input, values, layout.group_size)])
