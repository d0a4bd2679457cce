"""The interface of an attention feature: everything that generic code asks of one."""

from __future__ import annotations

from typing import Protocol

import torch
from transformers import PreTrainedModel


class ValueMixer(Protocol):
    """Changes the values of one layer after another during a forward pass."""

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Return the values [T, Hkv, Dv] that take the place of `value` in attention and in the cache."""
        ...


class AttentionFeature(Protocol):
    """A feature that a config asks for; its `read` function in the registry creates it."""

    def graph_mixer(self) -> ValueMixer:
        """Return a mixer whose work is nodes of the decoder graph."""
        ...

    def add_to_reference(self, model: PreTrainedModel) -> None:
        """Give transformers' model the feature, so that engines can be compared with it; its parameters stay the same."""
        ...

    def whole_model_reason(self) -> str | None:
        """Return why a block cannot run without the ones before it; None where it can."""
        ...

    def describe(self) -> str:
        """Return text that differs where the feature's settings do."""
        ...
