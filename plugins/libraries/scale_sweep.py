"""Calls the search for quantisation scales in `libenginewright_ort`. Standard library only."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from enginewright.plugins.libraries.cpu import load_ort_library


class ScaleSweep(ctypes.Structure):
    """`ew::ScaleSweep` of csrc/cpu/quantise/scale_sweep.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weights", "targets", "block", "grid", "codes", "scales", "errors")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "levels")),
        *((name, ctypes.c_int32) for name in ("is_double", "is_diagonal", "refit", "reserved")),
    )


def sweep_scales(
    addresses: Sequence[int], sizes: Sequence[int], *, is_double: bool, is_diagonal: bool, refit: bool
) -> None:
    """Search the scales of some rows and fill in their codes, scales and errors; releases the GIL.

    addresses: the values of the structure's pointers, in order.
    sizes: rows, columns, levels.

    Raises:
        LibraryError: the library was not built.
    """
    call = ScaleSweep(*addresses, *sizes, is_double, is_diagonal, refit, 0)
    load_ort_library().ew_sweep_scales(ctypes.byref(call))
