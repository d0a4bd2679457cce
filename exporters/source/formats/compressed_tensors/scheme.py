"""Reads how the weights of one group of modules are quantised from compressed-tensors' settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from enginewright.exporters.source.quantized.shared_scales import ScaleTile
from enginewright.runtime.errors import ExportError, UnsupportedError

DENSE = "dense"
# Format -> the types that its weights may have, with the least and the greatest number of bits; the group size, 0 for any.
FORMATS: dict[str, tuple[dict[str, tuple[int, int]], int]] = {
    "pack-quantized": ({"int": (1, 8)}, 0),
    "int-quantized": ({"int": (1, 8)}, 0),
    "float-quantized": ({"float": (8, 8)}, 0),
    "naive-quantized": ({"int": (1, 8), "float": (8, 8)}, 0),
    "nvfp4-pack-quantized": ({"float": (4, 4)}, 16),
    "mxfp4-pack-quantized": ({"float": (4, 4)}, 32),
    "mxfp6-pack-quantized": ({"float": (6, 6)}, 32),
    "mxfp8-quantized": ({"float": (8, 8)}, 32),
}
SPARSE = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24")
STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block")
_KNOWN = {
    "num_bits",
    "type",
    "symmetric",
    "group_size",
    "strategy",
    "block_structure",
    "dynamic",
    "actorder",
    "scale_dtype",
    "zp_dtype",
    "observer",
    "observer_kwargs",
}
_REORDERS = (True, "group", "dynamic")
_KEEPS_ORDER = (None, False, "weight", "static")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The settings of one group's weights; `read_scheme` creates it.

    where: the file and the setting, for error messages.
    format: of the stored tensors.
    bits: of a number.
    is_float: whether numbers have an exponent.
    is_symmetric: whether there are no zero points.
    strategy: what shares a scale: tensor, channel, group, tensor_group or block.
    group_size: columns that share a scale; 0 without groups.
    block: rows and columns that share a scale; (0, 0) without blocks.
    is_reordered: whether columns of a group need not be neighbours ("actorder": "group").
    """

    where: str
    format: str
    bits: int
    is_float: bool
    is_symmetric: bool
    strategy: str
    group_size: int = 0
    block: tuple[int, int] = (0, 0)
    is_reordered: bool = False

    def tile(self, name: str, shape: tuple[int, int]) -> ScaleTile:
        """Return the tiles of the tensor `name` [n, k] that share a scale.

        Raises:
            ExportError: the groups do not divide its columns.
        """
        n, k = shape
        if self.strategy == "block":
            return ScaleTile(shape=shape, rows=min(self.block[0], n), columns=min(self.block[1], k))
        if self.group_size and k % self.group_size:
            raise ExportError(
                f"{self.where}: group_size: got {self.group_size}, expected a divisor of the {k} columns of {name!r}; "
                "the settings belong to another checkpoint"
            )
        return ScaleTile(shape=shape, rows=n if self.strategy == "tensor" else 1, columns=self.group_size or k)


def read_scheme(settings: dict[str, Any], format_name: Any, where: str) -> Scheme:
    """Return the scheme of the weights' `settings`.

    where: the file and the setting, for error messages.

    Raises:
        ExportError, UnsupportedError: a setting that is not known, or settings that contradict each other.
    """
    if format_name in SPARSE:
        raise UnsupportedError(
            f"{where}: format: got {format_name!r}, whose zeros are left out, and this is not read; expected one of "
            f"{', '.join(FORMATS)}; save the model in one of these"
        )
    if not isinstance(format_name, str) or format_name not in FORMATS:
        raise UnsupportedError(
            f"{where}: format: got {format_name!r}, expected one of {', '.join(FORMATS)}; save the model in one of these"
        )
    if unknown := [key for key, value in settings.items() if key not in _KNOWN and value is not None]:
        raise UnsupportedError(
            f"{where}: got the unknown setting {unknown[0]!r}, expected {', '.join(sorted(_KNOWN))}; save the model with "
            "compressed-tensors 0.20 or earlier"
        )
    if settings.get("dynamic"):
        raise UnsupportedError(
            f"{where}: dynamic: got {settings['dynamic']!r}, expected false; weights are rounded once"
        )
    strategy, group_size, block = _read_strategy(settings, where)
    bits, is_float, symmetric = (
        settings.get("num_bits", 8),
        settings.get("type", "int"),
        settings.get("symmetric", True),
    )
    _check_numbers(format_name, bits, is_float, symmetric, group_size, where)
    order = settings.get("actorder")
    if order not in (*_REORDERS, *_KEEPS_ORDER):
        raise UnsupportedError(f"{where}: actorder: got {order!r}, expected group, weight or null")
    return Scheme(
        where=where,
        format=format_name,
        bits=bits,
        is_float=is_float == "float",
        is_symmetric=symmetric,
        strategy=strategy,
        group_size=group_size,
        block=block,
        is_reordered=order in _REORDERS,
    )


def _check_numbers(format_name: str, bits: Any, kind: Any, symmetric: Any, group_size: int, where: str) -> None:
    kinds, needed = FORMATS[format_name]
    least, most = kinds.get(kind, (0, 0)) if isinstance(kind, str) else (0, 0)
    if not isinstance(bits, int) or isinstance(bits, bool) or not least <= bits <= most or not most:
        expected = " or ".join(
            f"{low if low == high else f'{low} to {high}'} of type {name}" for name, (low, high) in kinds.items()
        )
        raise UnsupportedError(
            f"{where}: num_bits: got {bits!r} of type {kind!r} for format {format_name}, expected {expected}; the settings "
            "belong to another checkpoint"
        )
    if needed and group_size != needed:
        raise ExportError(
            f"{where}: group_size: got {group_size or None} for format {format_name}, expected {needed}; the settings "
            "belong to another checkpoint"
        )
    if not isinstance(symmetric, bool) or (kind == "float" and not symmetric):
        raise UnsupportedError(
            f"{where}: symmetric: got {symmetric!r}, expected true{'' if kind == 'float' else ' or false'}; numbers with an "
            "exponent have no zero points here"
        )


def _read_strategy(settings: dict[str, Any], where: str) -> tuple[str, int, tuple[int, int]]:
    """What shares a scale, the group size, and the block; a strategy that is not named follows from the group size."""
    size, block, strategy = settings.get("group_size"), settings.get("block_structure"), settings.get("strategy")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < -1 or size == 0):
        raise ExportError(f"{where}: group_size: got {size!r}, expected a positive number, -1 or null")
    grouped = size is not None and size > 0
    if strategy is None:
        strategy = "tensor" if size is None else "group" if grouped else "channel"
    if strategy not in STRATEGIES:
        raise UnsupportedError(f"{where}: strategy: got {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    if grouped != (strategy in ("group", "tensor_group")):
        raise ExportError(
            f"{where}: group_size: got {size} with strategy {strategy}, expected a positive number with groups, and none "
            "without; correct the settings"
        )
    if (strategy == "block") != (block is not None):
        raise ExportError(
            f"{where}: block_structure: got {block!r} with strategy {strategy}, expected [rows, columns] with blocks, and "
            "none without; correct the settings"
        )
    return strategy, size or 0 if grouped else 0, _read_block(block, where)


def _read_block(block: Any, where: str) -> tuple[int, int]:
    if block is None:
        return 0, 0
    sizes = [int(x) if x.isdecimal() else 0 for x in block.split("x")] if isinstance(block, str) else block
    if not isinstance(sizes, list) or len(sizes) != 2 or not all(isinstance(x, int) and x > 0 for x in sizes):
        raise ExportError(f"{where}: block_structure: got {block!r}, expected [rows, columns]; correct the settings")
    return sizes[0], sizes[1]
