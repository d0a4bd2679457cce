"""The rules of layer-wise relevance propagation (AttnLRP), laid over the gradients of transformers' own modules.

Nothing of a model is rewritten: its code runs as it is, and each torch function that it calls is looked up in a table of
rules. A rule changes how the gradient flows through the function, and no value:

    1 / rms of a norm, the gate of a composed SiLU   a constant
    activation, tanh softcap                         slope f(x) / (x + 1e-10) in place of f'(x)
    product of two computed values                   half of the gradient to each: gate * up, q . k, A . V
    all others                                       as they are: softmax, linear layers, sums, rotary embedding

Weights get no gradient here, so a product with a weight is no product of two computed values. The sinks of attention are
weights.

Source: arXiv 2606.05079, appendix A; the rules are those of AttnLRP, arXiv 2402.05602.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.activations import ACT2CLS

from enginewright.runtime.errors import UnsupportedError

Rule: TypeAlias = Callable[..., Any]
TINY = 1e-10


class _Carried(torch.autograd.Function):
    """Gives `values` forward, and lets the gradient go to `path`, which has the same shape."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, grads[0]


def _carry(values: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    return _Carried.apply(values.detach(), path)  # type: ignore[no-any-return, no-untyped-call]


def _is_computed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _constant(func: Rule, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs).detach()


def _power(func: Rule, args: Any, kwargs: Any) -> Any:
    """X ** -0.5 is the 1 / rms of some norms."""
    made = func(*args, **kwargs)
    return made.detach() if len(args) > 1 and isinstance(args[1], float) and args[1] < 0 else made


def _slope(func: Rule, args: Any, kwargs: Any) -> Any:
    x = args[0]
    values = func(*args, **kwargs)
    return _carry(values, x * (values / (x + TINY)).detach()) if _is_computed(x) else values


def _half(func: Rule, args: Any, kwargs: Any) -> Any:
    made = func(*args, **kwargs)
    if len(args) < 2 or not (_is_computed(args[0]) and _is_computed(args[1])):
        return made
    half = made / 2
    return half + half.detach()


def _quotient(func: Rule, args: Any, kwargs: Any) -> Any:
    """The divisor is a constant, as the rms of a norm."""
    if _is_computed(args[0]) and _is_computed(args[1]):
        return func(args[0], args[1].detach(), *args[2:], **kwargs)
    return func(*args, **kwargs)


def _norm(func: Rule, args: Any, kwargs: Any, *, centred: bool) -> Any:
    names = ("input", "normalized_shape", "weight", "bias", "eps") if centred else ("input", "normalized_shape", "weight", "eps")  # fmt: skip
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, axes = given["input"], tuple(range(-len(given["normalized_shape"]), 0))
    values = func(*args, **kwargs)
    if not _is_computed(x):
        return values
    path = x - x.mean(axes, keepdim=True) if centred else x
    eps = given.get("eps")
    eps = (1e-5 if centred else torch.finfo(x.dtype).eps) if eps is None else eps
    path = path * (path.pow(2).mean(axes, keepdim=True) + eps).rsqrt().detach()
    weight = given.get("weight")
    return _carry(values, path if weight is None else path * weight)


def _refuse(func: Rule, args: Any, kwargs: Any) -> Any:
    raise UnsupportedError(
        "function vectors: got a model that calls scaled_dot_product_attention itself, whose products no rule reaches; expected "
        "attention of the family's eager kind"
    )


RULES: Mapping[Any, Rule] = {
    **dict.fromkeys((torch.rsqrt, torch.Tensor.rsqrt, torch.sigmoid, torch.Tensor.sigmoid, F.sigmoid), _constant),
    **dict.fromkeys((torch.pow, torch.Tensor.pow, torch.Tensor.__pow__), _power),
    **dict.fromkeys((torch.tanh, torch.Tensor.tanh, F.tanh), _slope),
    **dict.fromkeys((F.silu, F.gelu, F.relu, torch.relu, F.mish, F.softplus, F.hardtanh, F.leaky_relu), _slope),
    **dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__), _half),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm), _half),
    **dict.fromkeys((torch.div, torch.Tensor.div, torch.Tensor.__truediv__), _quotient),
    F.layer_norm: functools.partial(_norm, centred=True),
    F.rms_norm: functools.partial(_norm, centred=False),
    F.scaled_dot_product_attention: _refuse,
}
"""Torch function -> how it is called, so that its gradient follows the rule."""


class RelevanceRules(TorchFunctionMode):
    """Applies RULES to every torch function that is called while it is entered."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = RULES.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(func, args, kwargs or {})


@contextmanager
def relevance_rules(model: PreTrainedModel) -> Iterator[None]:
    """Let gradients of `model` follow the rules: only what comes from its embeddings gets any, and dropout is off.

    Activations that are modules get the rule as a whole, because some are composed of several functions.
    """
    parameters = [each for each in model.parameters() if each.requires_grad]
    training = [each for each in model.modules() if each.training]
    activations = [each for each in model.modules() if isinstance(each, _activation_types())]
    with ExitStack() as stack:
        stack.callback(_restore, parameters, training, activations)
        for parameter in parameters:
            parameter.requires_grad_(False)
        model.eval()  # type: ignore[no-untyped-call]
        for activation in activations:
            activation.forward = functools.partial(_activate, activation.forward)
        hook = model.get_input_embeddings().register_forward_hook(_begin)
        stack.callback(hook.remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(RelevanceRules())
        yield


def _restore(parameters: list[nn.Parameter], training: list[nn.Module], activations: list[nn.Module]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(True)
    for module in training:
        module.training = True
    for activation in activations:
        del activation.forward  # the instance's own; the class has the module's


def _begin(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """The embeddings are what gradients go back to."""
    return output.detach().requires_grad_()


def _activate(forward: Rule, x: torch.Tensor) -> Any:
    with torch.no_grad():
        values = forward(x)
    return _carry(values, x * (values / (x + TINY)).detach()) if _is_computed(x) else values


@functools.cache
def _activation_types() -> tuple[type, ...]:
    """The classes of the modules that transformers calls activations; sums and products alone are none."""
    known = {each[0] if isinstance(each, tuple) else each for each in ACT2CLS.values()}
    return tuple(each for each in known if isinstance(each, type) and "Linear" not in each.__name__)
