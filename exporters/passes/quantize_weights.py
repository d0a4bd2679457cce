"""Stores the matrices of products and lookups in the form that was chosen for the engine's weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from enginewright.exporters.passes.find_mixtures import find_mixtures
from enginewright.exporters.weights.graph_weights import KEY, add_weight, weight_of
from enginewright.exporters.weights.registry import FORMS, Storage, choose_storage
from enginewright.exporters.weights.stored_form import Encoding, Mixture, Values, WeightUse
from enginewright.exporters.weights.weight import Weight

Stored = tuple[Storage, Encoding, Values]
Told = tuple[str, str, str]
"""(type of codes in the checkpoint, "kept" or "restored", how they are held or why they are not kept)."""
_NO_FORM = "no stored form holds its groups"
_NO_PRODUCT = "it is neither in a plain product nor looked up"


class QuantizeWeightsPass(ir.passes.InPlacePass):
    """Let the stored form write the nodes that read matrices; weights that a method has quantised keep their codes.

    1. MatMul(x, W [k, n]), with the Add of a bias after it, is a product.
    2. Gemm(x, W [n, k], transB=1), the tied output projection, is a product.
    3. Gather(W, ids) is a lookup; a W that a product reads, too, is stored once.
    4. The form says which of them it takes; the others stay as they are.
    5. A router of experts, which is a product that a TopK reads after at most a few steps, stays float32: it is small, and an
       error in it picks another expert.
    6. A layer of experts becomes one node, if its codes and the form allow that; else its products are products.
    7. Codes that a method or the checkpoint has chosen, and that the form does not keep, go to the first form that does,
       with its own defaults. Those that no case above covers are restored.
    """

    def __init__(self, storage: Storage, *, for_cpu: bool = False) -> None:
        self._storage = storage
        self._told: dict[str, tuple[Told, int, int]] = {}
        self._others = tuple(choose_storage(kind) for kind in FORMS.names() if kind != storage.kind)
        self._for_cpu = for_cpu

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, stored = model.graph, dict[str, Stored]()
        head = output_projection(graph)
        mixed: list[Storage] = []
        for mixture in list(find_mixtures(graph)):
            self._store_mixture(mixture, mixed)
        if mixed:
            common.RemoveUnusedNodesPass()(model)
        for node in list(graph):
            use = _find_use(graph, node, is_head=node is head, for_cpu=self._for_cpu)
            if use is not None and not (use.is_product and _routes(node)):
                self._store(use, stored)
        for value in graph.inputs:
            left = weight_of(value)
            if left is not None and value.uses():
                self._tell(value.name or "", left, "restored", _NO_PRODUCT)
            if left is not None and left.quantized is not None:
                value.meta[KEY] = dataclasses.replace(left, quantized=None)
        for storage in (*mixed, *(storage for storage, _, _ in stored.values())):
            model.opset_imports.update(storage.form.opsets)
        return ir.passes.PassResult(model, modified=bool(stored or mixed))

    def codes(self) -> list[dict[str, Any]]:
        """Return, for each type of codes in the checkpoint, what became of them: `type`, the number of `matrices` and of
        `weights`, and `kept`, how they are held, or `restored`, why they are numbers. Known after the pass has run.
        """
        counted: dict[Told, list[int]] = {}
        for told, matrices, weights in self._told.values():
            total = counted.setdefault(told, [0, 0])
            total[0] += matrices
            total[1] += weights
        return [
            {"type": told[0], "matrices": matrices, "weights": weights, told[1]: told[2]}
            for told, (matrices, weights) in sorted(counted.items())
        ]

    def _tell(self, name: str, weight: Weight, outcome: str, how: str) -> None:
        stored = weight.stored or weight.given_up(how)
        if stored is not None and name not in self._told:
            told = ("restored", stored.restored) if stored.restored else (outcome, how)
            self._told[name] = (stored.name, *told), stored.matrices, weight.size

    def _store(self, use: WeightUse, stored: dict[str, Stored]) -> None:
        """Write the use in the form that takes it, if one does."""
        matrix, rows = _matrix_of(use), use.rows
        if matrix.name is None:
            return
        use, storage = self._choose(use)
        if use.rows is not rows:
            self._tell(matrix.name, rows, "restored", _NO_FORM)
        if storage is None:
            return
        name = matrix.name if storage is self._storage else f"{matrix.name}.{storage.kind}"
        if name not in stored:
            encoding = storage.form.encode(storage.options, use)
            values: Values = {
                part: add_weight(use.graph, f"{name}.{part}", weight) for part, weight in encoding.parts.items()
            }
            stored[name] = storage, encoding, values
        storage, encoding, values = stored[name]
        self._tell(matrix.name, use.rows, "kept", encoding.told)
        storage.form.write(storage.options, use, encoding, values)

    def _store_mixture(self, mixture: Mixture, stored: list[Storage]) -> None:
        """Write a layer of experts as one node, if one form takes all its matrices and can."""
        found = [self._expert(mixture, node) for node in (*mixture.up, *mixture.down)]
        storage = found[0][2]
        if storage is None or any(each is not storage for _, _, each in found):
            return
        uses = [use for _, use, _ in found]
        count = len(mixture.up)
        told = storage.form.write_mixture(storage.options, mixture, uses[:count], uses[count:])
        if told is None:
            return
        for (rows, use, _), how in zip(found, told, strict=True):
            kept = use.rows is rows
            self._tell(_matrix_of(use).name or "", rows, *(("kept", how) if kept else ("restored", _NO_FORM)))
        stored.append(storage)

    def _expert(self, mixture: Mixture, node: ir.Node) -> tuple[Weight, WeightUse, Storage | None]:
        """The matrix of an expert's product as it is, and its use in the form that takes it."""
        use = _find_use(mixture.graph, node, is_head=False, for_cpu=self._for_cpu)
        assert use is not None, "find_mixtures finds products with weights alone"
        return (use.rows, *self._choose(use))

    def _choose(self, use: WeightUse) -> tuple[WeightUse, Storage | None]:
        """The use as the form that takes it has it: with its codes if one keeps them, and else as numbers; and that form."""
        storage = self._keeper(use) if use.rows.quantized is not None else None
        if storage is not None:
            return use, storage
        use = dataclasses.replace(use, rows=dataclasses.replace(use.rows, quantized=None))
        return use, self._storage if self._storage.form.takes(self._storage.options, use) else None

    def _keeper(self, use: WeightUse) -> Storage | None:
        """The form that keeps the codes of the use, the chosen one before all others; None where no form does."""
        return next((found for found in (self._storage, *self._others) if found.form.keeps(use)), None)


def _find_use(graph: ir.Graph, node: ir.Node, *, is_head: bool, for_cpu: bool) -> WeightUse | None:
    """The use of a matrix that `node` is; None for any other node."""
    if node.op_type not in ("MatMul", "Gemm", "Gather") or node.domain != "":
        return None
    weight = weight_of(node.inputs[0 if node.op_type == "Gather" else 1])
    if weight is None or len(weight.shape) != 2:
        return None
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) != 0:
        return None
    if node.op_type == "Gemm" and (node.attributes.get_int("transB", 0) != 1 or len(node.inputs) > 2):
        return None
    rows = weight.transposed() if node.op_type == "MatMul" else weight
    return WeightUse(graph=graph, node=node, rows=rows, is_head=is_head, for_cpu=for_cpu)


def _matrix_of(use: WeightUse) -> ir.Value:
    """The weight that a use reads."""
    value = use.node.inputs[1 if use.is_product else 0]
    assert value is not None
    return value


def output_projection(graph: ir.Graph) -> ir.Node | None:
    """The last matrix product before the logits; None where there is none."""
    products = {"MatMul", "Gemm", *(op for form in FORMS.entries().values() for op in form.products)}
    value = next((v for v in graph.outputs if v.name == "logits"), None)
    node = value.producer() if value is not None else None
    while node is not None and node.op_type not in products:
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    return node


def _routes(node: ir.Node, steps: int = 4) -> bool:
    """Whether a TopK reads what `node` makes, through at most `steps` nodes."""
    readers = [user for output in node.outputs for user, _ in output.uses()]
    if any(user.op_type == "TopK" for user in readers):
        return True
    return steps > 0 and any(_routes(user, steps - 1) for user in readers if user.op_type not in ("MatMul", "Gemm"))
