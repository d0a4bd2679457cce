"""The form of a kernel's call: the C structure that its launcher takes.

The C declaration (`plugins/generate.py`) and the ctypes structure (`plugins/libraries/cuda_calls.py`) both derive from the
description, so the fields of a call are written in one place: next to the op's declaration.
"""

from __future__ import annotations

from dataclasses import dataclass

NUMBERS = ("int64_t", "int32_t", "float")
"""C types of a field that is neither a pointer nor a structure."""


def snake_case(name: str) -> str:
    """The name in small letters, its words apart: PagedAttention -> paged_attention."""
    words = name.replace("KVarN", "Kvarn")  # one word, in spite of its capitals
    return "".join("_" + c.lower() if c.isupper() else c for c in words).lstrip("_")


@dataclass(frozen=True)
class Structure:
    """A C structure, called `Ew` and its name.

    doc: the comment before it.
    """

    name: str
    doc: str
    fields: tuple[Field, ...]

    @property
    def c_name(self) -> str:
        """The name in C: Attention -> EwAttention."""
        return f"Ew{self.name}"

    @property
    def file_stem(self) -> str:
        """The name of its files, and of the functions that take it: ClpEmit -> clp_emit."""
        return snake_case(self.name)

    @property
    def parts(self) -> tuple[Structure, ...]:
        """The structures among its fields."""
        return tuple(field.type for field in self.fields if isinstance(field.type, Structure))


@dataclass(frozen=True)
class Field:
    """A field of a structure.

    type: a C type: one of NUMBERS, a pointer such as `const float*`, or a structure.
    doc: the comment after it; empty where the name says it.

    Raises:
        ValueError: the type is none of these.
    """

    name: str
    type: str | Structure
    doc: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.type, str) and not self.is_pointer and self.type not in NUMBERS:
            raise ValueError(
                f"{self.name}: got the type {self.type!r}, expected a pointer, a structure or one of {', '.join(NUMBERS)}"
            )

    @property
    def is_pointer(self) -> bool:
        """True for a field that is an address."""
        return isinstance(self.type, str) and self.type.endswith("*")


def fields(type: str, *names: str) -> tuple[Field, ...]:
    """Fields of one type that need no comment."""
    return tuple(Field(name, type) for name in names)


@dataclass(frozen=True)
class KernelSizes:
    """Sizes that a kernel is compiled for, or limits of them; C++ has them as a macro, EW_DEPTH_MIX_MOST_DIM of most_dim.

    values: one number, which the macro is; or a tuple of numbers or of pairs, each of which EW_..._DIMS(X) hands to X.
    doc: the comment before the macro.
    """

    name: str
    values: int | tuple[int, ...] | tuple[tuple[int, int], ...]
    doc: str


@dataclass(frozen=True)
class Call(Structure):
    """The structure that the two C functions of a kernel take.

    sizes: the sizes that the kernel is compiled for; its launcher refuses others.

    When its fields change, count up EW_CUDA_ABI of `csrc/abi/cuda_calls.h` and ABI of `libraries/cuda.py`.
    """

    sizes: tuple[KernelSizes, ...] = ()
