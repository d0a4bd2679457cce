"""Float32 matrix products through oneDNN; by default torch uses it only for narrower types.

Torch runs float32 products through MKL, which takes twice as long on processors that are not Intel's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# torch 2.13: the operator that torch's compiler calls for a linear layer. It is private, so a later version may lack it.
_available: Any = torch.backends.mkldnn.is_available  # untyped
_PRODUCT: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _available() else None


def multiply(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return input[..., k] weight[n, k]' + bias[n]; the arguments are named as those of `functional.linear`."""
    is_float = input.dtype == weight.dtype == torch.float32
    if _PRODUCT is None or not is_float or input.device.type != "cpu" or input.dim() < 2 or not input.numel():
        return functional.linear(input, weight, bias)
    rows = input.reshape(-1, input.shape[-1]).contiguous()
    result: torch.Tensor = _PRODUCT(rows, weight.contiguous(), bias, "none", [], "")
    return result.reshape(*input.shape[:-1], len(weight))


class FastLinear(TorchFunctionMode):
    """Replaces `functional.linear` by `multiply`, for all callers, while the context is entered."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # the mode is off in here, so multiply may call functional.linear
        return (multiply if func is functional.linear else func)(*args, **(kwargs or {}))
