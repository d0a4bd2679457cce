"""The form of a custom op's declaration: ports, attributes, oracle.

The torch.library op, its shape function and the ONNX schema (`exporters/capture/op_bindings.py`) and the C++ declarations
(`plugins/generate.py`) all derive from these declarations, so a signature or a default is written in one place.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from enginewright.plugins.ops.call import snake_case

DOMAIN = "enginewright"
MOST_SIZE = 1 << 16
"""The largest size, number or index that an attribute gives, where its declaration names no other."""

FLOATS = ("float32", "float16", "bfloat16")
Shapes = Mapping[str, Sequence[object]]
"""Input's name -> its shape; a size is a number, or a name where it is not known before the engine runs."""


@dataclass(frozen=True)
class Tensor:
    """One input or output of an op.

    types: the element types that it may have; all inputs and outputs with the same tuple of several types share one type.
    shape: names of sizes; a name that occurs twice means equal sizes, and the name of an attribute means its value. A size of
        an output may be a product of names and numbers, such as "M*128".
    doc: one line for the reference page.
    optional: the input may be absent; an output is absent where the input that it updates is.
    variadic: the last input stands for any number of tensors of one type, each of this shape.
    alias: for an output, the input whose buffer it updates in place if the host binds both to one buffer.
    """

    name: str
    types: tuple[str, ...]
    shape: tuple[str, ...]
    doc: str
    optional: bool = False
    variadic: bool = False
    alias: str | None = None


def size_of(name: str, sizes: Mapping[str, Any]) -> Any:
    """The size that a shape has under `name`, from those of its factors; the product of one factor is that factor itself."""
    first, *others = (int(factor) if factor.isdigit() else sizes[factor] for factor in name.split("*"))
    return math.prod(others, start=first)


@dataclass(frozen=True)
class Attribute:
    """A constant of a node; it must be given if it has no default.

    least, most: the range of an int, which the C++ checks when a node is made. It keeps products of sizes within 64 bits.
    """

    name: str
    type: Literal["int", "float"]
    doc: str
    default: int | float | None = None
    least: int = 0
    most: int = MOST_SIZE

    def __post_init__(self) -> None:
        if self.type == "int" and self.default is not None and not self.least <= self.default <= self.most:
            raise ValueError(f"{self.name}: default: got {self.default}, expected {self.least} to {self.most}")


@dataclass(frozen=True)
class Op:
    """A custom op of domain `enginewright`; each file of this folder creates one.

    oracle: its numpy definition, as `module:function`.
    unsupported: a function of a node's input shapes and of its attributes, by name. It returns what no kernel for GPUs
        supports, as "got X, expected Y; do Z", or None. Without it, they support every node.
    """

    name: str
    version: int
    doc: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    oracle: str
    unsupported: Callable[[Shapes, Mapping[str, object]], str | None] | None = None

    @property
    def torch_name(self) -> str:
        """The name in `torch.ops.enginewright`: PagedAttention -> paged_attention."""
        return snake_case(self.name)

    def load_oracle(self) -> Callable[..., Any]:
        """Import and return the op's numpy definition."""
        module, function = self.oracle.split(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return loaded
