"""A frozen model whose upper blocks have trainable adapters on the projections of attention.

Blocks below the first adapted one give the same states in every step. So the states that enter the adapted blocks are
computed once. Logits are computed where a loss counts them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from enginewright.exporters.features.registry import read_features
from enginewright.exporters.methods.nsru.frozen_linear import FrozenLinear
from enginewright.exporters.methods.nsru.response_tokens import ResponseTokens
from enginewright.exporters.methods.nsru.subspace import project
from enginewright.runtime.errors import UnsupportedError

_PROJECTION = re.compile(r"(?P<list>.+)\.(?P<block>\d+)\.(?:.+\.)?(?P<name>[qkvo])_proj$")


class ProjectedAdapter:
    """The factors of one layer: its output gains scaling * B A (I - U U') h. `AdaptedModel` creates it.

    a: [r, d], uniform at the start as PEFT's.
    b: [o, r], zeros at the start.
    basis: U [d, k].
    effective: A (I - U U'), computed once a step; its gradient, projected, is that of A.
    """

    def __init__(self, layer: nn.Linear, rank: int, scaling: float, basis: torch.Tensor, seed: int) -> None:
        self.scaling, self.basis = scaling, basis
        bound = layer.in_features**-0.5  # Kaiming's uniform bound with a slope of sqrt(5)
        generator = torch.Generator().manual_seed(seed)
        self.a = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        self.b = torch.zeros(layer.out_features, rank, requires_grad=True)
        self.effective = self.a
        self.refresh()

    def refresh(self) -> None:
        """Compute `effective` of the present A."""
        self.effective = project(self.a, self.basis).detach().clone().requires_grad_()

    def collect(self) -> None:
        """Give A the gradient that `effective` has got."""
        found = self.effective.grad
        self.a.grad = torch.zeros_like(self.a) if found is None else project(found, self.basis)

    def change(self, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """Add to a layer's output, as its forward hook."""
        low = functional.linear(inputs[0], self.effective)
        return output + self.scaling * functional.linear(low, self.b)

    def update(self) -> torch.Tensor:
        """The change of the layer's weight, [o, d] float64."""
        return self.scaling * self.b.detach().double() @ self.effective.detach().double()


def find_projections(model: PreTrainedModel, layers: int, names: Sequence[str]) -> dict[str, nn.Linear]:
    """Return the projections q, k, v or o of attention in the last blocks by their names in the model.

    Raises:
        UnsupportedError: a block does not have one of them as a linear layer of its own.
    """
    count = int(model.config.get_text_config().num_hidden_layers)
    found: dict[tuple[int, str], tuple[str, nn.Linear]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (match := _PROJECTION.match(name)):
            found[int(match["block"]), match["name"]] = name, module
    projections: dict[str, nn.Linear] = {}
    for block in range(count - layers, count):
        for each in names:
            if (block, each) not in found:
                raise UnsupportedError(
                    f"{model.config.model_type}: block {block} has no linear layer {each}_proj, expected "
                    f"{', '.join(f'{one}_proj' for one in names)} in each of the last {layers} blocks; its attention is built in "
                    "another way, and the method does not fit this model"
                )
            name, module = found[block, each]
            projections[name] = module
    return projections


def blocks_of(model: PreTrainedModel, projection: str) -> tuple[nn.ModuleList, int]:
    """The list of blocks that a projection's name lies in, and the number of its block."""
    match = _PROJECTION.match(projection)
    assert match is not None
    found = model.get_submodule(match["list"])
    assert isinstance(found, nn.ModuleList)
    return found, int(match["block"])


class AdaptedModel:
    """The model with its adapters; `unlearn` creates it.

    first: the number of the first block with adapters.
    is_split: whether there are blocks before it, of which the others read no more than the output, as far as is known.
    adapters: by the layer's name in the model; none until `adapt` gives them.
    """

    def __init__(self, model: PreTrainedModel, projections: dict[str, nn.Linear]) -> None:
        self._model, self.projections = model.requires_grad_(False), projections
        self._blocks, self.first = blocks_of(model, next(iter(projections)))
        mixes = any(feature.whole_model_reason() for feature in read_features(model.config))
        self.is_split = self.first > 0 and not mixes
        self.adapters: dict[str, ProjectedAdapter] = {}
        self._gives_tuple = False  # of some families a block returns its states in a tuple

    def adapt(self, adapters: dict[str, ProjectedAdapter]) -> None:
        """Let the layers' outputs gain the adapters'."""
        self.adapters = adapters
        for name, adapter in adapters.items():
            self.projections[name].register_forward_hook(adapter.change)

    def logits(
        self, batch: Sequence[ResponseTokens], states: Sequence[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The logits [n, V] of each sequence's answer, row t the prediction of the answer's token t.

        states: the states [T, d] of each sequence that enter the first adapted block; None: the whole model runs.
        """
        rows = [row * self._longest(batch) + t for row, each in enumerate(batch) for t in _predicting(each)]
        with ExitStack() as stack:
            stack.enter_context(FrozenLinear())
            stack.enter_context(self._only(torch.tensor(rows)))
            if states is not None:
                stack.enter_context(self._entering(_padded(states, self._longest(batch))))
            logits: torch.Tensor = self._run(batch).logits[0]
        return torch.split(logits, [each.response for each in batch])

    def observe(
        self, batch: Sequence[ResponseTokens], record: Callable[[str, torch.Tensor], None]
    ) -> list[torch.Tensor]:
        """Show `record` each projection's inputs [B, T, d], and return each sequence's states [T, d] before the first one."""
        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs, name=name: record(name, inputs[0]))
            for name, layer in self.projections.items()
        ]
        kept: list[torch.Tensor] = []
        hooks.append(
            self._blocks[self.first].register_forward_pre_hook(
                lambda _, args, kwargs: kept.append(_hidden(args, kwargs)), with_kwargs=True
            )
        )
        hooks.append(self._blocks[0].register_forward_hook(self._note_form))
        try:
            with torch.no_grad(), FrozenLinear(), self._only(torch.zeros(1, dtype=torch.int64)):
                self._run(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return [kept[0][row, : len(each.ids)].clone() for row, each in enumerate(batch)]

    def _note_form(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        self._gives_tuple = isinstance(output, tuple)

    def _pass_on(self, *args: Any, **kwargs: Any) -> Any:
        hidden = _hidden(args, kwargs)
        return (hidden,) if self._gives_tuple else hidden

    def _run(self, batch: Sequence[ResponseTokens]) -> Any:
        ids = torch.zeros(len(batch), self._longest(batch), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, each in enumerate(batch):
            ids[row, : len(each.ids)] = torch.tensor(each.ids)
            mask[row, : len(each.ids)] = 1
        return self._model(input_ids=ids, attention_mask=mask, use_cache=False)

    @staticmethod
    def _longest(batch: Sequence[ResponseTokens]) -> int:
        return max(len(each.ids) for each in batch)

    @contextmanager
    def _only(self, rows: torch.Tensor) -> Iterator[None]:
        """Let the output projection read these rows of all states [B * T, d] as [1, n, d]."""
        head = self._model.get_output_embeddings()  # type: ignore[no-untyped-call]
        hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].flatten(0, 1)[rows][None],))
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _entering(self, states: torch.Tensor) -> Iterator[None]:
        """Let `states` [B, T, d] enter the first adapted block, and the blocks before it do nothing."""

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        hook = self._blocks[self.first].register_forward_pre_hook(enter, with_kwargs=True)
        skipped = list(self._blocks[: self.first])
        for block in skipped:
            block.forward = self._pass_on
        try:
            yield
        finally:
            hook.remove()
            for block in skipped:
                del block.forward


def _predicting(each: ResponseTokens) -> range:
    """The positions whose logits predict the answer's tokens."""
    return range(each.prompt - 1, len(each.ids) - 1)


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    found: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def _padded(states: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    padded = torch.zeros(len(states), length, states[0].shape[-1])
    for row, each in enumerate(states):
        padded[row, : len(each)] = each
    return padded
