"""ctypes structures of the CUDA library's calls, from their descriptions in `plugins/ops`."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from enginewright.plugins.ops.call import Call, Field, Structure

_NUMBERS: dict[str, Any] = {"int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32, "float": ctypes.c_float}


class CallStructure(ctypes.Structure):
    """A structure that `structure_of` has made of its description."""

    description: Structure


@cache
def structure_of(description: Structure) -> type[CallStructure]:
    """The ctypes structure of a description; its layout is that of the C structure."""
    members = tuple((field.name, _type_of(field)) for field in description.fields)
    named = {"__doc__": f"`{description.c_name}`. {description.doc}", "_fields_": members, "description": description}
    return type(description.name, (CallStructure,), named)


def function_of(call: CallStructure) -> str:
    """NAME in the names of the C functions that take `call`: `ew_cuda_NAME` and `ew_cuda_NAME_workspace`.

    Raises:
        ValueError: no function takes it, because it is only a part of other structures.
    """
    if not isinstance(call.description, Call):
        raise ValueError(
            f"got a structure {call.description.name}, expected the call of a kernel that has it as a field"
        )
    return call.description.file_stem


def _type_of(field: Field) -> Any:
    if isinstance(field.type, Structure):
        return structure_of(field.type)
    return ctypes.c_void_p if field.is_pointer else _NUMBERS[field.type]
