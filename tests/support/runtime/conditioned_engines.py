"""Adds conditions to the graph of an engine directory, and the session that names entries for every row."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.decoder_graph import added_inputs
from enginewright.runtime.artifact.manifest import Condition, ConditionTensor, File, Manifest, TensorSpec
from enginewright.runtime.backends.session import Outputs, PackedStep, Session

TYPES = {"int64": onnx.TensorProto.INT64, "int32": onnx.TensorProto.INT32, "float32": onnx.TensorProto.FLOAT}


def steering(hidden: int, **changes: Any) -> Condition:
    """A condition with one vector an entry, which is added to the embeddings."""
    tensors = {"vector": ConditionTensor(dtype="float32", shape=(hidden,))}
    return Condition(**{"capacity": 3, "tensors": tensors, **changes})


def add_conditions(root: Path, target: Path, conditions: dict[str, Condition]) -> Path:
    """Copy the engine directory `root` to `target`, and let its graph add `scale * vector` of each condition to embeddings."""
    shutil.copytree(root, target)
    manifest = dataclasses.replace(directory.load(target), conditions=conditions)
    path = target / manifest.graphs["decoder"].files[0].path
    model = onnx.load(path, load_external_data=False)
    added = [TensorSpec(name=port.name, dtype=port.dtype, shape=port.axes) for port in added_inputs(manifest)]
    _rewire(model.graph, manifest, added)
    onnx.save(model, path)
    graph = manifest.graphs["decoder"]
    files = (directory.describe_file(target, path), *graph.files[1:])
    graph = dataclasses.replace(graph, files=files, inputs=(*graph.inputs, *added), engines=())
    directory.save(dataclasses.replace(manifest, graphs={"decoder": graph}), target)
    return target


def add_entries(root: Path, name: str, entries: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write entries of a condition into an engine directory, as a method's export does."""
    manifest, files = directory.load(root), dict[str, File]()
    for called, arrays in entries.items():
        path = root / f"conditions/{name}.{called}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **arrays)
        files[called] = directory.describe_file(root, path)
    condition = dataclasses.replace(manifest.conditions[name], entries=files)
    directory.save(dataclasses.replace(manifest, conditions=manifest.conditions | {name: condition}), root)


def _rewire(graph: onnx.GraphProto, manifest: Manifest, added: Sequence[TensorSpec]) -> None:
    """Add the inputs, and the nodes that read them before the first reader of the embeddings."""
    lookup = next(node for node in graph.node if node.op_type == "Gather" and _reads_ids(graph, node.input[1]))
    embedded, fresh = lookup.output[0], 0
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        nonlocal fresh
        fresh += 1
        nodes.append(helper.make_node(kind, list(inputs), [f"conditioned.{fresh}"], **attributes))
        return f"conditioned.{fresh}"

    def constant(name: str, *values: int) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values), f"conditioned.{name}"))
        return f"conditioned.{name}"

    flat, column = constant("flat", -1), constant("column", -1, 1)
    value = embedded
    for name, condition in manifest.conditions.items():
        rows = None
        if condition.per == "row":
            rows = add("Reshape", _row_of_tokens(add, constant, name, manifest.cache.is_dense), flat)

        def each(port: str, rows: str | None = rows) -> str:
            return add("Reshape", port, flat) if rows is None else add("Gather", port, rows)

        vectors = add("Gather", f"cond.{name}.vector", each(f"cond.{name}.index"))
        if condition.scaled:
            vectors = add("Mul", vectors, add("Reshape", each(f"cond.{name}.scale"), column))
        value = add("Add", value, vectors)
    for node in graph.node:
        if node is not lookup:
            node.input[:] = [value if name == embedded else name for name in node.input]
    at = list(graph.node).index(lookup) + 1
    both = [*graph.node[:at], *nodes, *graph.node[at:]]
    del graph.node[:]
    graph.node.extend(both)
    graph.input.extend(helper.make_tensor_value_info(s.name, TYPES[s.dtype], list(s.shape)) for s in added)


def _row_of_tokens(add: Any, constant: Any, name: str, is_dense: bool) -> str:
    """The row of each token."""
    if is_dense:
        shape = add("Shape", "input_ids")
        count = add("Gather", shape, constant(f"{name}.first", 0))
        rows = add("Range", constant_scalar(add, 0), add("Squeeze", count), constant_scalar(add, 1))
        return add("Expand", add("Unsqueeze", rows, constant(f"{name}.last", 1)), shape)
    starts = add("Slice", "query_starts", constant(f"{name}.begin", 1), constant(f"{name}.end", 1 << 30))
    count = add("Squeeze", add("Shape", "input_ids"))
    tokens = add("Range", constant_scalar(add, 0), count, constant_scalar(add, 1))
    before = add("LessOrEqual", add("Cast", starts, to=7), add("Unsqueeze", tokens, constant(f"{name}.side", 1)))
    return add("ReduceSum", add("Cast", before, to=7), constant(f"{name}.axis", 1), keepdims=0)


def constant_scalar(add: Any, value: int) -> str:
    """A scalar constant."""
    return str(add("Constant", value_int=value))


def _reads_ids(graph: onnx.GraphProto, name: str) -> bool:
    """Whether a value is the token ids, perhaps reshaped."""
    makers = {output: node for node in graph.node for output in node.output}
    while name in makers and makers[name].op_type in ("Reshape", "Unsqueeze", "Squeeze", "Cast"):
        name = makers[name].input[0]
    return name == "input_ids"


def bake(root: Path, target: Path, vector: np.ndarray) -> Path:
    """Copy the engine directory `root` to `target`, with `vector` added to every embedding: the same as steering every token."""
    shutil.copytree(root, target)
    manifest = directory.load(target)
    graph = manifest.graphs["decoder"]
    paths = [target / file.path for file in graph.files]
    model = onnx.load(paths[0])
    lookup = next(
        node for node in model.graph.node if node.op_type == "Gather" and _reads_ids(model.graph, node.input[1])
    )
    table = next(each for each in model.graph.initializer if each.name == lookup.input[0])
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table) + vector, table.name))
    for path in paths:
        path.unlink()
    onnx.save(model, paths[0], save_as_external_data=len(paths) > 1, location=paths[-1].name)
    files = tuple(directory.describe_file(target, path) for path in paths)
    graph = dataclasses.replace(graph, files=files, engines=())
    directory.save(dataclasses.replace(manifest, graphs={"decoder": graph}), target)
    return target


class NamingSession:
    """A Session that tells `inner` the entries that each request names, as the scheduler does.

    entries: by condition, the entry and the factor of each request, by the request's first token; requests that are not
        named get none.
    steps: every step as the inner session got it.
    """

    def __init__(
        self, inner: Session, manifest: Manifest, entries: Mapping[str, Mapping[int, tuple[int, float]]]
    ) -> None:
        self.inner = inner
        self.offers = inner.offers
        self.steps: list[PackedStep] = []
        self._conditions = manifest.conditions
        self._entries = entries
        self._first: dict[int, int] = {}  # of the request in each row

    @property
    def run_seconds(self) -> float:
        return self.inner.run_seconds

    def fill(self, port: str, entry: int, values: np.ndarray) -> None:
        self.inner.fill(port, entry, values)

    def run(self, step: PackedStep) -> Outputs:
        counts = np.diff(step.query_starts)
        row_of = np.repeat(np.arange(len(counts)), counts)
        for token in np.flatnonzero(step.position_ids == 0).tolist():
            self._first[int(row_of[token])] = int(step.input_ids[token])
        arrays = {}
        for name, entries in self._entries.items():
            named = [entries.get(self._first.get(row, -1), (0, 0.0)) for row in range(len(counts))]
            rows = row_of if self._conditions[name].per == "token" else np.arange(len(counts))
            arrays[f"cond.{name}.index"] = np.array([entry for entry, _ in named], np.int32)[rows]
            if self._conditions[name].scaled:
                arrays[f"cond.{name}.scale"] = np.array([scale for _, scale in named], np.float32)[rows]
        self.steps.append(dataclasses.replace(step, conditions=arrays))
        return self.inner.run(self.steps[-1])
