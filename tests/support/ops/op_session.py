"""Runs one custom op through ONNX Runtime, with the inputs that are given.

The tensors of a variadic input are named by the input and their place in it: "sources.0", "sources.1".
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper

from enginewright.plugins.libraries.locate import ort_library
from enginewright.plugins.ops.op import DOMAIN, Tensor
from enginewright.plugins.ops.registry import OPS

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
}


def outputs_of(name: str, given: tuple[str, ...]) -> list[Tensor]:
    """The outputs of op `name` that there are with these inputs."""
    return [output for output in OPS[name].outputs if not output.optional or output.alias in given]


@cache
def open_op(
    name: str,
    given: tuple[str, ...],
    attributes: tuple[tuple[str, Any], ...],
    threads: int = 2,
    kernels: Path | None = None,
    arena: bool = True,
) -> ort.InferenceSession:
    """A session of one node of op `name`; all sizes are dynamic, optional inputs that are not `given` are absent.

    kernels: the library of kernels for GPUs, of which the node is, with halves as activations; None: the CPU's library.
    arena: let outputs share ONNX Runtime's blocks of memory; apart, a sanitizer sees the end of each.
    """
    op = OPS[name]

    def value_info(tensor: Any, name: str) -> onnx.ValueInfoProto:
        type = tensor.types[1 if kernels and len(tensor.types) > 1 else 0]
        return helper.make_tensor_value_info(name, TYPES[type], [None] * len(tensor.shape))

    def places(tensor: Any) -> list[str]:
        many = [name for name in given if name.startswith(f"{tensor.name}.")]
        return many if tensor.variadic else [tensor.name if tensor.name in given else ""]  # "": absent

    feeds = [(place, tensor) for tensor in op.inputs for place in places(tensor)]
    outputs = outputs_of(name, given)
    node = helper.make_node(
        name, [place for place, _ in feeds], [t.name for t in outputs], domain=DOMAIN, **dict(attributes)
    )
    inputs = [value_info(tensor, place) for place, tensor in feeds if place]
    graph = helper.make_graph([node], "g", inputs, [value_info(t, t.name) for t in outputs])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, op.version)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 4  # failing calls are part of the tests
    options.register_custom_ops_library(str(kernels or ort_library()))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_op(name: str, arrays: dict[str, np.ndarray], threads: int = 2, **attributes: Any) -> list[np.ndarray]:
    """The outputs of op `name`."""
    session = open_op(name, tuple(arrays), tuple(attributes.items()), threads)
    outputs: list[np.ndarray] = session.run(None, arrays)
    return outputs


def run_op_in_place(
    name: str, arrays: dict[str, np.ndarray], threads: int = 2, kernels: Path | None = None, **attributes: Any
) -> list[np.ndarray]:
    """The outputs of op `name`, where each input that an output updates shares one buffer with it."""
    session = open_op(name, tuple(arrays), tuple(attributes.items()), threads, kernels)
    binding = session.io_binding()
    values = {given: ort.OrtValue.ortvalue_from_numpy(array.copy()) for given, array in arrays.items()}
    for given, value in values.items():
        binding.bind_ortvalue_input(given, value)
    for output in outputs_of(name, tuple(arrays)):
        if output.alias is None:
            binding.bind_output(output.name)
        else:
            binding.bind_ortvalue_output(output.name, values[output.alias])
    session.run_with_iobinding(binding)
    # copies: numpy() may view memory that dies with the OrtValue
    return [value.numpy().copy() for value in binding.get_outputs()]


def run_graph(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a graph as it stands; of the feeds, those that are no input of it are left out."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.register_custom_ops_library(str(ort_library()))
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = {each.name for each in (*session.get_inputs(), *session.get_overridable_initializers())}
    outputs: list[np.ndarray] = session.run(None, {name: array for name, array in feeds.items() if name in names})
    return outputs
