"""The group of linear layers that a quantiser is handed, and the settings of a calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from enginewright.runtime.errors import ExportError

Objective = Literal["self", "cross", "float"]
Compute = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class LinearGroup:
    """Linear layers of one block that read the same input.

    `BlockWalk` creates it. The quantiser may change its tensors, which lie on the device that the blocks run on.

    names: the layers' parameters, in module order.
    rows: the number of outputs of each layer.
    weights: float32 [sum(rows), D], the float weights of the layers, one after another.
    hessian: float32 [D, D], the sum of x~ x~' over the tokens; zeros when no token came here. x~ are the inputs in the model
        whose earlier layers are quantised, or in the float model for the objective float.
    cross: float32 [D, D], the sum of x~ x', where x are the float model's inputs; only for the objective cross.
    tokens: how many inputs were summed.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    weights: torch.Tensor
    hessian: torch.Tensor
    cross: torch.Tensor | None
    tokens: int


# Returns the group's codes[sum(rows), D] int8 and scales[sum(rows), groups] float32.
Quantize = Callable[[LinearGroup], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Settings of a calibration: how the model runs over the text. The caller of `calibrate` creates it.

    objective: the models that the inputs come from.
        self: the model with the blocks so far quantised.
        cross: that model and, for `LinearGroup.cross`, the float model.
        float: the float model alone; no layer reads what a quantised one has made.
    dtype: the type that the blocks compute in; moments are summed in float32.
    device: cpu, cuda or auto.
    batch_tokens: tokens that go through a block at once, in whole sequences and at least one of them.
    max_context: the longest context, the same as in the export, because it fixes rotary frequencies that depend on the length;
        None: the config's own.
    """

    objective: Objective
    dtype: Compute = "float32"
    device: str = "auto"
    batch_tokens: int = 4096
    max_context: int | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("objective", self.objective, get_args(Objective)),
            ("dtype", self.dtype, get_args(Compute)),
        ):
            if value not in known:
                raise ExportError(f"calibration: {name}: got {value!r}, expected one of {', '.join(known)}")
        if self.device != "auto" and self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise ExportError(f"calibration: device: got {self.device!r}, expected cpu, cuda or auto")
        if self.batch_tokens < 1:
            raise ExportError(f"calibration: batch_tokens: got {self.batch_tokens}, expected at least 1")
        if self.max_context is not None and self.max_context < 1:
            raise ExportError(f"calibration: max_context: got {self.max_context}, expected at least 1")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that the blocks compute in."""
        return torch.float32 if self.dtype == "float32" else torch.bfloat16

    def choose_device(self) -> torch.device:
        """The device to run on.

        Raises:
            ExportError: torch sees no such device.
        """
        available = torch.cuda.is_available()
        if self.device.startswith("cuda") and not available:
            raise ExportError(f"calibration: device: got {self.device}, but torch sees none; pass cpu or auto")
        return torch.device(("cuda" if available else "cpu") if self.device == "auto" else self.device)
