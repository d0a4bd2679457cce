"""A sample stored form of an extension: matrices rounded to IEEE halves, which a Cast widens before a product or a lookup."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from enginewright.exporters.weights.stored_form import Encoding, StoredForm, Values, WeightUse


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the form.

    embedding: whether the embedding is rounded as well.
    """

    embedding: bool = True


def _encode(options: Options, use: WeightUse) -> Encoding:
    rounded = use.rows.derive(use.rows.shape, _round, ir.DataType.FLOAT16)
    return Encoding(parts={"rounded": rounded})


def _round(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float16)


def _write(options: Options, use: WeightUse, encoding: Encoding, values: Values) -> None:
    wide = ir.node("Cast", [values["rounded"]], attributes={"to": ir.DataType.FLOAT})
    nodes = [wide]
    if use.is_product:
        nodes.append(ir.node("Transpose", [wide.outputs[0]], attributes={"perm": [1, 0]}))
        nodes.append(ir.node("MatMul", [use.input, nodes[-1].outputs[0]]))
    else:
        nodes.append(ir.node("Gather", [wide.outputs[0], use.input], attributes={"axis": 0}))
    for node in nodes:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    use.replace(nodes)


FORM = StoredForm(
    name="half",
    summary="matrices rounded to IEEE halves, computed with in float32",
    options=Options,
    takes=lambda options, use: use.is_product or options.embedding,
    encode=_encode,
    write=_write,
    max_kl=1e-2,
)
