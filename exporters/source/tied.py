"""Parameters that a model ties: they part where a method has given each name a weight of its own."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from enginewright.exporters.weights.weight import Weight


def untie(model: PreTrainedModel, weights: dict[str, Weight]) -> None:
    """Give each name of a tied parameter of `model` a parameter of its own if `weights` has other values for it.

    Names with equal values get one weight, so that they stay tied.
    """
    first: dict[int, str] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        owner = first.setdefault(id(parameter), name)
        if weights[owner] is weights[name]:
            continue
        if _equal(weights[owner], weights[name]):
            weights[name] = weights[owner]
            continue
        module, _, leaf = name.rpartition(".")
        own = torch.nn.Parameter(torch.empty_like(parameter), requires_grad=False)
        model.get_submodule(module).register_parameter(leaf, own)
        model.config.tie_word_embeddings = False


def _equal(one: Weight, other: Weight) -> bool:
    return one.shape == other.shape and np.array_equal(one.load(), other.load())
