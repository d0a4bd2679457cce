"""The attention features by the functions that read them from a config."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedConfig

from enginewright.exporters.features.depth_attention import feature as depth_attention
from enginewright.exporters.features.feature import AttentionFeature

READERS: tuple[Callable[[PreTrainedConfig], AttentionFeature | None], ...] = (depth_attention.read,)


def read_features(config: PreTrainedConfig) -> tuple[AttentionFeature, ...]:
    """Return the features that `config` asks for.

    Raises:
        ExportError: a setting of a feature is missing, unknown or out of range.
        UnsupportedError: the config asks for a form of a feature that is not supported.
    """
    return tuple(found for read in READERS if (found := read(config)) is not None)
