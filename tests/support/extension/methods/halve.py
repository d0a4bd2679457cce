"""A method for tests: multiplies the weights of one kind of layer by a factor."""

from __future__ import annotations

from dataclasses import dataclass

from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.weight import Weight


@dataclass(frozen=True, kw_only=True)
class Config:
    """The layers and the factor.

    ends: the end of the names of the weights.
    factor: what they are multiplied by.
    """

    ends: str = "mlp.down_proj.weight"
    factor: float = 0.5


def transform_weights(config: Config, weights: dict[str, Weight], checkpoint: Checkpoint) -> dict[str, Weight]:
    """Return `weights` with the chosen ones multiplied when they are written."""
    return {
        name: weight.derive(weight.shape, lambda x: (x * config.factor).astype(x.dtype))
        if name.endswith(config.ends)
        else weight
        for name, weight in weights.items()
    }


METHOD = Method(name="halve", summary="smaller weights", config=Config, transform_weights=transform_weights)
