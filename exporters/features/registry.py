"""The door of the attention features, and the reading of them from a model's config."""

from __future__ import annotations

from transformers import PreTrainedConfig

from enginewright.exporters.features.feature import AttentionFeature, Feature
from enginewright.runtime.artifact.extension import Door

DOOR = Door("enginewright.exporters.features", "FEATURE", Feature)


def find_features() -> dict[str, Feature]:
    """Every kind of feature by name, in alphabetical order.

    Raises:
        ExtensionError: a module of the folder has a FEATURE that is none, or two have one name.
    """
    return dict(sorted(DOOR.entries().items()))


def read_features(config: PreTrainedConfig) -> tuple[AttentionFeature, ...]:
    """Return the features that `config` asks for, in the order of their names.

    Raises:
        ExportError: a setting of a feature is missing, unknown or out of range.
        UnsupportedError: the config asks for a form of a feature that is not supported.
    """
    return tuple(found for kind in find_features().values() if (found := kind.read(config)) is not None)
