"""Products with frozen weights for training: the input's gradient alone, through the faster of torch's two libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from enginewright.exporters.calibration.fast_linear import multiply

_WIDE = 8192  # outputs, from which on copying the transposed weight costs more than MKL's slower product


class _FrozenProduct(torch.autograd.Function):
    """x W' + bias, whose backward gives the gradient of x and none of W and bias."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return multiply(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        (gradient,) = gradients
        made = gradient @ weight if len(weight) > _WIDE else multiply(gradient, weight.T)
        return made, None, None


class FrozenLinear(TorchFunctionMode):
    """Computes linear layers whose weights need no gradient through `multiply`, forward and backward, while it is entered."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not functional.linear:
            return func(*args, **(kwargs or {}))
        return _linear(*args, **(kwargs or {}))


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return functional.linear(input, weight, bias)
    if not (input.requires_grad and torch.is_grad_enabled()):
        return multiply(input, weight, bias)
    made: torch.Tensor = _FrozenProduct.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return made
