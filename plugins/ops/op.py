"""Every custom op, declared once.

The torch.library op, its shape function, the ONNX schema and the names the C++ side exports all derive from these
declarations (`exporters/capture/op_bindings.py`, `tests/plugins/`), so a signature or a default is written in one place.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

DOMAIN = "enginewright"

FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Tensor:
    """One input or output of an op.

    types: the element types it may have; inputs and outputs with the same tuple of several types share one type.
    shape: named sizes; a name that stands twice means equal sizes, the name of an attribute means its value.
    optional: an input that may be absent.
    variadic: the last input, any number of tensors of one type, each of this shape.
    alias: for an output, the input whose buffer it updates in place where the host binds both to one buffer.
    """

    name: str
    types: tuple[str, ...]
    shape: tuple[str, ...]
    doc: str
    optional: bool = False
    variadic: bool = False
    alias: str | None = None


@dataclass(frozen=True)
class Attribute:
    """A constant of a node; required when it has no default."""

    name: str
    type: Literal["int", "float"]
    doc: str
    default: int | float | None = None


@dataclass(frozen=True)
class Op:
    """A custom op of domain `enginewright`; `oracle` names its numpy definition as `module:function`."""

    name: str
    version: int
    doc: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    oracle: str

    @property
    def torch_name(self) -> str:
        """The name in `torch.ops.enginewright`: PagedAttention -> paged_attention."""
        words = self.name.replace("KVarN", "Kvarn")  # one word, however its authors spell it
        return "".join("_" + c.lower() if c.isupper() else c for c in words).lstrip("_")

    def load_oracle(self) -> Callable[..., Any]:
        """Import and return the op's numpy definition."""
        module, function = self.oracle.split(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return loaded
