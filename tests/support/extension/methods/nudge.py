"""A method for tests: a request may name a vector that is added to the attention's output of chosen layers.

`--apply nudge:layers=0+2,capacity=4` adds the condition `nudge`, with one vector [hidden_size] for each chosen layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from enginewright.exporters.methods.anchors import Anchors, ConditionInputs, TypedWriter
from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.runtime.artifact.manifest import Condition, ConditionTensor
from enginewright.runtime.errors import ExportError

NAME = "nudge"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The layers, and how many vectors an engine holds.

    layers: their numbers, separated by +.
    capacity: vectors at once.
    """

    layers: str = "0"
    capacity: int = 4

    @property
    def numbers(self) -> list[int]:
        """The layers as numbers."""
        return [int(number) for number in self.layers.split("+")]


def check_model(config: Config, checkpoint: Checkpoint) -> None:
    """Raise ExportError for a layer that the model does not have."""
    count = int(checkpoint.config.num_hidden_layers)
    if wrong := [number for number in config.numbers if not 0 <= number < count]:
        raise ExportError(f"nudge: got layer {wrong[0]}, expected 0 to {count - 1}")


def conditions(config: Config, checkpoint: Checkpoint) -> dict[str, Condition]:
    """Declare the vectors: one for each chosen layer, for the tokens from the prompt's last on, with a factor."""
    vectors = ConditionTensor(dtype="float32", shape=(len(config.numbers), int(checkpoint.config.hidden_size)))
    return {NAME: Condition(capacity=config.capacity, applies="decoded", scaled=True, tensors={"vectors": vectors})}


def extend_graph(config: Config, anchors: Anchors) -> None:
    """Add each token's vector, times its factor, to the output of the attention's projection."""
    inputs = anchors.condition(NAME)
    for place, layer in enumerate(config.numbers):
        anchors.add_after(anchors.o_proj_output(layer), partial(_add, inputs, place))


def _add(inputs: ConditionInputs, place: int, write: TypedWriter, value: ir.Value) -> ir.Value:
    assert inputs.scale is not None
    of_layer = write("Gather", inputs.tensors["vectors"], write.constant(place), axis=1)
    vector = write("Gather", of_layer, inputs.index)
    return write("Add", value, write("Mul", vector, write("Unsqueeze", inputs.scale, write.constant([1]))))


METHOD = Method(
    name=NAME,
    summary="vectors that a request may name",
    config=Config,
    check_model=check_model,
    conditions=conditions,
    extend_graph=extend_graph,
)
