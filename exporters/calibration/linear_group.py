"""What a calibration hands to a quantiser, and the settings of its driver."""

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
    """Linear layers of one block that read the same input; the driver makes it, the quantiser may change its tensors.

    names: of their parameters, in module order. rows: the outputs of each. tokens: how many inputs were summed.
    weights[sum(rows), D] float32: the float weights, one after another.
    hessian[D, D] float32: the sum of x~ x~' over the tokens, x~ the inputs behind the prefix as the objective has it;
    zeros when no token came here. cross[D, D] float32: the sum of x~ x', x the float model's inputs; only for
    objective cross. The tensors lie on the device that the blocks run on.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    weights: torch.Tensor
    hessian: torch.Tensor
    cross: torch.Tensor | None
    tokens: int


# Of a stage: codes[sum(rows), D] int8 and scales[sum(rows), groups] float32.
Quantize = Callable[[LinearGroup], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Settings of the driver.

    objective: which models the inputs come from. self: the quantised prefix. cross: the quantised prefix and, for
    `Stage.cross`, the float model. float: the float model alone, nothing behind it is ever quantised.
    dtype: what the blocks compute in; moments are summed in float32. device: cpu, cuda or auto.
    batch_tokens: how many tokens go through a block at once, in whole sequences, at least one of them.
    max_context: as of the export; it fixes rotary frequencies that depend on the length. None: the config's own.
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
        """What the blocks compute in."""
        return torch.float32 if self.dtype == "float32" else torch.bfloat16

    def choose_device(self) -> torch.device:
        """The device to run on.

        Raises:
            ExportError: it is not there.
        """
        available = torch.cuda.is_available()
        if self.device.startswith("cuda") and not available:
            raise ExportError(f"calibration: device: got {self.device}, but torch sees none; pass cpu or auto")
        return torch.device(("cuda" if available else "cpu") if self.device == "auto" else self.device)
