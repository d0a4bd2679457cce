"""The plugins for TensorRT, called as TensorRT calls them (`tests/plugins/hosts/tensorrt/host_program/run.cpp`), without it.

kernels: what they start: "emulated", or "cuda" for those that a GPU runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from enginewright.plugins.build import OBJECTS, build_tensorrt_tests
from enginewright.plugins.libraries.locate import file_name
from enginewright.plugins.ops.registry import OPS
from tests.support.kernels.device import GUARD_BYTES, POISON, from_bits, to_bits
from tests.support.once import locked

TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bfloat16": 7, "int64": 8}
"""TensorRT's numbers of element types."""
DTYPES = {"float32": np.float32, "int8": np.int8, "int32": np.int32, "int64": np.int64}
Arrays = Mapping[str, np.ndarray]


class Output(NamedTuple):
    """An output's name, its element type, its shape, and for one that updates an input that input's name."""

    name: str
    type: str
    shape: tuple[int, ...]
    alias: str | None = None


class _Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("is_float", ctypes.c_bool),
        ("integer", ctypes.c_int32),
        ("number", ctypes.c_float),
    )


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", ctypes.c_int64 * 8),
        ("data", ctypes.c_void_p),
    )


@cache
def built_folder(kernels: str = "emulated") -> Path:
    """Where `enginewright_trt_test` and the libraries are, built."""
    with locked(OBJECTS / f"{kernels}.lock"):  # processes of pytest-xdist
        return build_tensorrt_tests(cuda=kernels == "cuda")


def plugin_library() -> Path:
    """The plugins over the emulated kernels."""
    return built_folder() / file_name("enginewright_trt_tested")


@cache
def _library(kernels: str = "emulated") -> ctypes.CDLL:
    library = ctypes.CDLL(str(built_folder(kernels) / file_name("enginewright_trt_run")))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.ew_trt_test_run.argtypes = [ctypes.c_char_p, pointer, integer, pointer, integer, pointer, integer]
    library.ew_trt_test_workspace.argtypes = [ctypes.c_char_p, pointer, integer, pointer, integer]
    library.ew_trt_test_workspace.restype = ctypes.c_int64
    library.ew_trt_test_message.restype = library.ew_trt_test_creators.restype = ctypes.c_char_p
    return library


def creators() -> str:
    """What `ew_trt_test_creators` says."""
    return str(_library().ew_trt_test_creators().decode())


def element_type(op: str, name: str, activations: str) -> str:
    """The type of an input, or of the tensor that `sources.3` names, where activations have type `activations`."""
    types = next(tensor.types for tensor in OPS[op].inputs if tensor.name == name.partition(".")[0])
    return types[0] if len(types) == 1 or op == "GreedySample" else activations


class _Buffer:
    """An array at a multiple of 256, poisoned after its end."""

    def __init__(self, array: np.ndarray) -> None:
        self.owner = np.full(array.nbytes + GUARD_BYTES + 256, POISON, np.uint8)
        self.start = -self.owner.ctypes.data % 256
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes
        self.owner[self.start : self.start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def tensor(self, type: str) -> _Tensor:
        sizes = (ctypes.c_int64 * 8)(*self.shape)
        return _Tensor(TYPES[type], len(self.shape), sizes, self.owner.ctypes.data + self.start)

    def contents(self) -> np.ndarray:
        """The array as it is now; nothing may have been written after its end."""
        end = self.start + self.nbytes
        assert (self.owner[end : end + GUARD_BYTES] == POISON).all(), "a kernel wrote beyond a buffer"
        return self.owner[self.start : end].copy().view(self.dtype).reshape(self.shape)


def _poison(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Bytes that no kernel writes everywhere."""
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(POISON)
    return array


def fields_of(op: str, arrays: Arrays, attributes: Mapping[str, Any]) -> Any:
    """The node's fields: attributes, and `present` where an optional input is absent before one that is given."""
    names = [tensor.name for tensor in OPS[op].inputs]
    given = {name.partition(".")[0] for name in arrays}
    present = sum(1 << i for i, name in enumerate(names) if name in given or OPS[op].inputs[i].variadic)
    every = {**attributes, "present": present} if present != (1 << len(names)) - 1 else dict(attributes)
    floats = {attribute.name for attribute in OPS[op].attributes if attribute.type == "float"}
    fields = [
        _Field(name.encode(), name in floats, *((0, value) if name in floats else (value, 0.0)))
        for name, value in every.items()
    ]
    return (_Field * len(fields))(*fields)


def _in_order(op: str, arrays: Arrays) -> list[str]:
    """Names of the arrays as the node lists them: by input, `sources.10` after `sources.9`."""
    places = {tensor.name: i for i, tensor in enumerate(OPS[op].inputs)}

    def key(name: str) -> tuple[int, int]:
        base, _, index = name.partition(".")
        return places[base], int(index or 0)

    return sorted(arrays, key=key)


def run_node(
    kernels: str, op: str, arrays: Arrays, attributes: Mapping[str, Any], type: str, outputs: Sequence[Output]
) -> list[np.ndarray]:
    """The outputs of a node whose activations are of `type`; float32 arrays become and were activations.

    Raises:
        ValueError: the plugin refuses the node or the call.
    """
    names = _in_order(op, arrays)
    types = {name: element_type(op, name, type) for name in names}
    buffers = {
        name: _Buffer(arrays[name] if types[name] in DTYPES or name == "exact" else to_bits(arrays[name], types[name]))
        for name in names
    }
    results = {
        out.name: buffers[out.alias] if out.alias else _Buffer(_poison(out.shape, DTYPES.get(out.type, np.uint16)))
        for out in outputs
    }
    fields = fields_of(op, arrays, attributes)
    given = (_Tensor * len(names))(*(buffers[name].tensor(types[name]) for name in names))
    wanted = (_Tensor * len(outputs))(*(results[out.name].tensor(out.type) for out in outputs))
    library = _library(kernels)
    if library.ew_trt_test_run(op.encode(), fields, len(fields), given, len(given), wanted, len(wanted)) != 0:
        raise ValueError(library.ew_trt_test_message().decode())
    for name in names:
        buffers[name].contents()  # which looks behind its end
    contents = [(out, results[out.name].contents()) for out in outputs]
    return [array if out.type in DTYPES or out.alias else from_bits(array, type) for out, array in contents]


def workspace_bound(op: str, shapes: Mapping[str, tuple[int, ...]], attributes: Mapping[str, Any], type: str) -> int:
    """Bytes that the plugin asks for where no size is larger than these.

    Raises:
        ValueError: the plugin refuses the node or the sizes.
    """
    arrays = {name: np.empty(0) for name in shapes}
    names = _in_order(op, arrays)
    fields = fields_of(op, arrays, attributes)
    tensors = [
        _Tensor(TYPES[element_type(op, name, type)], len(shapes[name]), (ctypes.c_int64 * 8)(*shapes[name]), None)
        for name in names
    ]
    given = (_Tensor * len(tensors))(*tensors)
    library = _library()
    found = int(library.ew_trt_test_workspace(op.encode(), fields, len(fields), given, len(given)))
    if found < 0:
        raise ValueError(library.ew_trt_test_message().decode())
    return found
