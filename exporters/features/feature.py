"""The type of an attention feature, and its interface: everything that generic code asks of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedConfig, PreTrainedModel


class ValueMixer(Protocol):
    """Changes the values of one layer after another during a forward pass."""

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Return the values [T, Hkv, Dv] that take the place of `value` in attention and in the cache."""
        ...


class AttentionFeature(Protocol):
    """A feature with the settings that a config asks for; `Feature.read` creates it."""

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


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A kind of feature; its module in `exporters/features/` has one as FEATURE.

    name: that of the page in docs/methods/.
    title: the name in running text.
    summary: what it gives, as a phrase without a full stop.
    paper: its number on arXiv; empty where there is none.
    read: returns the feature with a config's settings; None where the config does not ask for it. It raises ExportError for
        settings that are missing, unknown or out of range, and UnsupportedError for a form that is not supported.
    """

    name: str
    title: str
    summary: str
    read: Callable[[PreTrainedConfig], AttentionFeature | None]
    paper: str = ""
