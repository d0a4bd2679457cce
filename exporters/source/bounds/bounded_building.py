"""Builds a model without weights: parameters on the meta device, tensors that are computed real, and both within bounds.

A config of a few bytes may describe a million layers, or a table of positions as large as the memory. The number of tensors
that are made is compared with that of the tensors that are stored, and the size of each with a bound, before it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from enginewright.runtime.errors import ExportError

_MOST_BYTES = 1 << 28  # of a tensor that is computed, such as a causal mask of 16,000 positions
_MOST_TOGETHER = 1 << 29  # bytes of all that are computed; those of a model of more stored bytes may have as many
_SPARE = 1000  # tensors that are made of none that is stored: buffers, tied parameters, and those that a constructor replaces
_PER_STORED = 16
_FILLERS = {torch.full, torch.normal, torch.ones, torch.rand, torch.randn, torch.zeros}
"""Functions that make what is a parameter or a mask: without a value on the meta device where it is large."""
_COUNTERS = {torch.arange, torch.eye, torch.linspace}
_GROWERS = {
    torch.einsum,
    torch.matmul,
    torch.mul,
    torch.outer,
    torch.Tensor.__matmul__,
    torch.Tensor.__mul__,
    torch.Tensor.matmul,
    torch.Tensor.mul,
    torch.Tensor.repeat,
}
"""Functions whose result may be larger than what they are given."""


@dataclass(frozen=True, kw_only=True)
class BuildingRoom:
    """What the constructor of a model may make: by default, where it is not known what is stored.

    tensors: their number. size: bytes of those that are filled with numbers, together; more of them get no numbers.
    """

    tensors: int = 1 << 17
    size: int = 1 << 36


def room_for(stored: Collection[int]) -> BuildingRoom:
    """Return the room of a model of which tensors of these sizes in bytes are stored."""
    return BuildingRoom(tensors=_PER_STORED * len(stored) + _SPARE, size=max(_MOST_TOGETHER, sum(stored)))


class BoundedBuilding(TorchFunctionMode):
    """Makes `torch.empty` allocate on the meta device while the context is entered, and counts what is made.

    room: more tensors than it has are an ExportError, and so is a computed tensor that is too large.
    """

    def __init__(self, room: BuildingRoom | None = None) -> None:
        super().__init__()
        self._room = room or BuildingRoom()
        self._left, self._size = self._room.tensors, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            self._count()
            kwargs["device"] = "meta"
        elif func in _FILLERS:
            self._count()
            made = func(*args, **{**kwargs, "device": "meta"})
            size = _size(made)
            if size > _MOST_BYTES or self._size + size > self._room.size:
                return made  # a parameter needs no value here; of a buffer, the skeleton says that it has none
            self._size += size
        elif func in _COUNTERS:
            self._count()
            self._check(func(*args, **{**kwargs, "device": "meta"}))
        elif func in _GROWERS:
            self._check(func(*_on_meta(args), **_on_meta(kwargs)))
        return func(*args, **kwargs)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ExportError(
                f"config.json: describes a model of more than {self._room.tensors} tensors, expected one of those that the checkpoint "
                "has; download it again"
            )

    def _check(self, made: torch.Tensor) -> None:
        if _size(made) > _MOST_BYTES:
            raise ExportError(
                f"config.json: describes a tensor of shape {list(made.shape)} that is computed, expected at most "
                f"{_MOST_BYTES} bytes; download it again"
            )


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _on_meta(values: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), values)
