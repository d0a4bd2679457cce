"""Models of tests with their weights, and adapters merged into those."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from enginewright.exporters.methods.lora import Config
from enginewright.exporters.methods.registry import Applied, transform_weights
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.weights.weight import Weight
from tests.support.exporters.adapters import make_base_model


@dataclass(frozen=True)
class Base:
    """A model and the weights read from its checkpoint."""

    model: PreTrainedModel
    weights: dict[str, Weight]
    checkpoint: Checkpoint


def make_base(family: str, path: Path) -> Base:
    """The model of the family, and the weights of its checkpoint at `path`, which is written if it is not there."""
    model = make_base_model(family)
    if not path.exists():
        model.save_pretrained(path)
    return make_base_of(model, path)


def make_base_of(model: PreTrainedModel, path: Path) -> Base:
    """The model, and the weights of the checkpoint at `path`."""
    checkpoint = open_checkpoint(str(path))
    return Base(model, bind_parameters(checkpoint, model), checkpoint)


def merge(base: Base, *configs: Config) -> dict[str, Weight]:
    """The weights with adapters merged, one after another."""
    return transform_weights(tuple(Applied("lora", config) for config in configs), base.weights, base.checkpoint)
