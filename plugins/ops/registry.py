"""The registry of custom ops and of their kernels' calls: the folder `plugins/ops` is the list.

A module `scale_rows.py` declares the op SCALE_ROWS and describes its kernel's call as SCALE_ROWS_CALL: its own name in
capitals. It may have one of them alone: Int4Linear is a kernel that no graph has a node for,
and BlockLinear an op without kernels for GPUs.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import TypeVar

import enginewright.plugins.ops as folder
from enginewright.plugins.ops.call import Call
from enginewright.plugins.ops.op import Op

T = TypeVar("T", Op, Call)


def find_declared(package: ModuleType, suffix: str, kind: type[T]) -> dict[str, T]:
    """The objects of `kind` that the modules of `package` declare, by name and in alphabetical order.

    suffix: what follows the module's name in the name of its constant.

    Raises:
        ValueError: a module's constant is of another type, or two modules declare one name.
    """
    found: dict[str, T] = {}
    files: dict[str, str] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        constant, file = info.name.upper() + suffix, str(module.__file__)
        entry = getattr(module, constant, None)
        if entry is None:
            continue
        if not isinstance(entry, kind):
            raise ValueError(f"{file}: {constant}: got {type(entry).__name__}, expected {kind.__name__}")
        if entry.name in found:
            raise ValueError(
                f"{file}: {constant}: got the name {entry.name}, which is that of {files[entry.name]} already, expected "
                "one of its own; rename one of them"
            )
        found[entry.name], files[entry.name] = entry, file
    return dict(sorted(found.items()))


OPS: dict[str, Op] = find_declared(folder, "", Op)
CALLS: dict[str, Call] = find_declared(folder, "_CALL", Call)
GPU_OPS: dict[str, Op] = {name: op for name, op in OPS.items() if name in CALLS}
"""The ops that have kernels for GPUs."""


def op_versions(names: Iterable[str]) -> dict[str, int]:
    """The versions of the named ops, in order of their names."""
    return {name: OPS[name].version for name in sorted(set(names))}
