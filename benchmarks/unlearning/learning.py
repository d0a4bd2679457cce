"""Ordinary training of adapters on answers, to teach facts to a model and to bring forgotten ones back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from enginewright.exporters.methods.nsru.adapted_model import (
    AdaptedModel,
    ProjectedAdapter,
    blocks_of,
    find_projections,
)
from enginewright.exporters.methods.nsru.response_tokens import ResponseTokens
from enginewright.exporters.methods.nsru.retained_inputs import observe_inputs
from enginewright.exporters.methods.nsru.unlearn_options import UnlearnOptions
from enginewright.exporters.methods.nsru.unlearn_steps import Unlearning


def upper_layers(model: PreTrainedModel, blocks: int) -> dict[str, nn.Linear]:
    """The linear layers of the last blocks by their names; the first of them is a projection of attention."""
    first = next(iter(find_projections(model, blocks, ("q",))))
    modules, begin = blocks_of(model, first)
    inside = {id(module) for block in modules[begin:] for module in block.modules()}
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside
    }


def learn(
    model: AdaptedModel,
    texts: Sequence[ResponseTokens],
    *,
    rank: int,
    rate: float,
    batch: int,
    steps: int,
    after: Callable[[int, list[torch.Tensor] | None], bool],
    every: int,
    falls: bool = False,
) -> None:
    """Train adapters on all layers of `model` until `after` says that it is enough, or the steps are done.

    texts: the answers to learn.
    rank, rate, batch, steps: of the adapters and their training.
    falls: whether the rate falls to 0 evenly.
    after: called with the number of steps that are done and the texts' states, after each `every` steps.
    """
    kinds = {"undesired": texts[:1], "safe": texts[:1], "retain": texts}
    options = UnlearnOptions(
        method="lora",
        safe_weight=0,
        forget_weight=0,
        retain_weight=1,
        energy=0,
        rate=rate,
        batch=2 * batch,
        steps=steps,
    )
    with tempfile.TemporaryDirectory() as folder:
        inputs = observe_inputs(model, kinds, Path(folder), options, 1)
        model.adapt(
            {
                name: ProjectedAdapter(layer, rank, 1.0, torch.zeros(layer.in_features, 0), seed=number)
                for number, (name, layer) in enumerate(model.projections.items())
            }
        )
        run = Unlearning(model, kinds, inputs, options, Path(folder))
        states = inputs.states_of(range(2, 2 + len(texts)))
        for step in range(1, steps + 1):
            run.step(rate * (1 - (step - 1) / steps) if falls else None)
            if step % every == 0 or step == steps:
                for adapter in model.adapters.values():
                    adapter.refresh()
                if after(step, states):
                    break
