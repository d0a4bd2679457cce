"""The interface of a stored form of weights: how an engine holds a matrix, and the nodes that compute with it.

A form is one module in `exporters/weights/forms/` with a `FORM`, a `StoredForm`. Its name is the KIND of `--weights KIND`, and
the fields of its options are the keys after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import onnx_ir as ir

from enginewright.exporters.weights.graph_weights import find_bias
from enginewright.exporters.weights.weight import Weight

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class WeightUse:
    """A node that reads a matrix: a product x W^T, or a lookup of W's rows; `QuantizeWeightsPass` creates it.

    graph: of the node.
    node: MatMul or Gemm for a product, Gather for a lookup.
    rows: W [n, k]. The rows are the outputs of a product, and the entries of a lookup.
    is_head: whether it is the product that makes the logits.
    for_cpu: whether the graph is for ONNX Runtime's kernels for CPUs, which compute in float32.
    """

    graph: ir.Graph
    node: ir.Node
    rows: Weight
    is_head: bool = False
    for_cpu: bool = False

    @property
    def is_product(self) -> bool:
        """Whether the node is a product; else it is a lookup."""
        return self.node.op_type != "Gather"

    @property
    def input(self) -> ir.Value:
        """X [..., k] of a product, or the numbers of the rows to look up."""
        value = self.node.inputs[0 if self.is_product else 1]
        assert value is not None
        return value

    @cached_property
    def _addition(self) -> tuple[ir.Node, ir.Value] | None:
        return find_bias(self.node, self.rows.shape[0]) if self.is_product else None

    @property
    def bias(self) -> ir.Value | None:
        """The weight [n] that is added to a product; None where there is none."""
        return None if self._addition is None else self._addition[1]

    def replace(self, nodes: Sequence[ir.Node], *, adds_bias: bool = False) -> None:
        """Put `nodes`, the last of which computes the result, in the place of the node.

        The result's type and shape are copied. All other values that `nodes` make need a type, if they are float32.

        adds_bias: whether the result has the bias in it, so that the addition goes, too.
        """
        old = self._addition[0] if adds_bias and self._addition is not None else self.node
        result = nodes[-1].outputs[0]
        result.type, result.shape = old.outputs[0].type, old.outputs[0].shape
        self.graph.insert_before(old, list(nodes))
        old.outputs[0].replace_all_uses_with(result)
        self.graph.remove(old, safe=True)
        if old is not self.node:
            self.graph.remove(self.node, safe=True)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """A matrix in a stored form, as recipes; `StoredForm.encode` creates it.

    parts: the tensors by the last part of their names; "codes" of the matrix `w` is the graph's weight `w.codes`.
    layout: everything else that the form's nodes depend on.
    told: how the matrix is held, for reports, as "4 bits in blocks of 32".
    """

    parts: dict[str, Weight]
    layout: Any = None
    told: str = ""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The gate between the two products of an expert; `find_mixtures` creates it.

    activation: of the gate: silu, gelu_tanh, gelu, or clamped_swiglu, which is g sigmoid(slope g) (u + 1) of a gate g up to
        `limit` and of u from -limit to `limit`.
    slope, limit: of clamped_swiglu; no limit for the others.
    alternate: whether gates are the even outputs of the first product; else they are the first half.
    """

    activation: str
    alternate: bool = False
    slope: float = 1.0
    limit: float | None = None


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A layer of experts, which has products for each of them; `find_mixtures` creates it.

    graph: of the nodes.
    result: [T, H], the sum over a token's experts.
    x: [T, H].
    ids: the numbers of the tokens' experts, one token's after the other's, [T * K].
    weights: their factors, [T * K].
    chosen: experts of a token, K.
    up: the MatMul of each expert that makes the gate and what it multiplies.
    down: the MatMul of each expert that follows the gate.
    up_bias, down_bias: the weights [experts, outputs] that are added; None where there are none.
    gate: between `up` and `down`.
    """

    graph: ir.Graph
    result: ir.Value
    x: ir.Value
    ids: ir.Value
    weights: ir.Value
    chosen: int
    up: tuple[ir.Node, ...]
    down: tuple[ir.Node, ...]
    up_bias: ir.Value | None
    down_bias: ir.Value | None
    gate: Gate


Values = Mapping[str, ir.Value]
"""The graph's values of an encoding's parts."""


def describe_options(kind: str, options: Any, dtype: str) -> dict[str, Any]:
    """Return the manifest's record of a form: its name, its options, and the type of everything that it does not store."""
    return {"kind": kind, **dataclasses.asdict(options), "dtype": dtype}


@dataclass(frozen=True, kw_only=True)
class StoredForm(Generic[C]):
    """A form of weights, one per module of `exporters/weights/forms/`, there called FORM.

    name: of the form, KIND of `--weights KIND`.
    summary: a line about it.
    options: a frozen dataclass; its fields are the keys of `--weights KIND:key=value`, its defaults the form's.
    takes: whether the form stores the matrix of this use, which is one of numbers.
    keeps: whether the form stores the codes that a method or a checkpoint has chosen, `use.rows.quantized`, as they are. If
        it does not, another form that does is asked; without one the matrix counts as numbers.
    keeps_stored: whether the codes that a checkpoint stores count as chosen; else its matrices count as numbers, and codes
        are chosen anew.
    for_numbers: name of the form that takes the place of this one, with the options that it has, too, where a checkpoint
        stores no codes; empty: this form itself.
    encode: the matrix as recipes; nothing is computed yet. Uses of one matrix share the encoding of the first. It has
        `use.rows.quantized` only if the form keeps it.
    write: replaces the use's node by nodes that read the encoding.
    write_mixture: replaces a mixture by one node, from the uses that `up` and `down` of its experts are; returns how each of
        these matrices is held, as `Encoding.told`, or None where it cannot and the mixture stays.
    describe: the manifest's record, from the form's name, the options and the graph's type.
    opsets: versions of the domains besides the standard one that its nodes are of.
    products: types of its nodes that multiply by a matrix, besides MatMul and Gemm.
    max_kl: largest mean KL, in nats a token, with which an engine of this form counts as the model that it was made of;
        None: the form changes no weight.
    """

    name: str
    summary: str
    options: type[C]
    takes: Callable[[C, WeightUse], bool]
    encode: Callable[[C, WeightUse], Encoding]
    write: Callable[[C, WeightUse, Encoding, Values], None]
    write_mixture: Callable[[C, Mixture, Sequence[WeightUse], Sequence[WeightUse]], list[str] | None] = lambda *_: None
    keeps: Callable[[WeightUse], bool] = lambda use: False
    keeps_stored: bool = False
    for_numbers: str = ""
    describe: Callable[[str, C, str], dict[str, Any]] = describe_options
    opsets: dict[str, int] = field(default_factory=dict)
    products: tuple[str, ...] = ()
    max_kl: float | None = None
