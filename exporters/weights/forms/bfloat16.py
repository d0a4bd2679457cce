"""Weights as numbers of bfloat16 for CPUs: half the bytes of float32, multiplied by our own kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from enginewright.exporters.weights.panel_products import round_panels, write_panel_lookup, write_panel_product
from enginewright.exporters.weights.stored_form import Encoding, StoredForm, Values, WeightUse
from enginewright.plugins.ops.block_linear import BLOCK_LINEAR
from enginewright.runtime.errors import ExportError

Compute = Literal["bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Bfloat16Options:
    """Options of weights in bfloat16; `choose_storage` creates it.

    compute: type of the activations in a product: bfloat16 (faster where the CPU multiplies it) or float32 (exact).
    embedding: whether the embedding is rounded as well.
    lm_head: whether the output projection is rounded as well.

    Raises:
        ExportError: a value that is not known.
    """

    compute: Compute = "bfloat16"
    embedding: bool = True
    lm_head: bool = True

    def __post_init__(self) -> None:
        if self.compute not in ("bfloat16", "float32"):
            raise ExportError(f"weights: got compute {self.compute!r}, expected bfloat16 or float32")


def _takes(options: Bfloat16Options, use: WeightUse) -> bool:
    return (options.lm_head or not use.is_head) if use.is_product else options.embedding


def _encode(options: Bfloat16Options, use: WeightUse) -> Encoding:
    if not use.for_cpu:
        raise ExportError(
            "weights: got bfloat16 and a graph that is not float32 with our ops, expected one for CPUs; do --dtype bfloat16 "
            "without --weights for GPUs, or --dtype float32 --plugins all"
        )
    return round_panels(use)


def _write(options: Bfloat16Options, use: WeightUse, encoding: Encoding, values: Values) -> None:
    if use.is_product:
        write_panel_product(use, encoding.layout, values, exact=options.compute == "float32")
    else:
        write_panel_lookup(use, encoding.layout, values)


FORM = StoredForm(
    name="bfloat16",
    summary="numbers of bfloat16, half the bytes of float32; for CPUs",
    options=Bfloat16Options,
    takes=_takes,
    encode=_encode,
    write=_write,
    products=(BLOCK_LINEAR.name,),
    max_kl=1e-2,
)
