"""Steering: a request may name a vector, which is added to the states of chosen layers from the prompt's last token on.

An engine with steering has the condition `steering`, whose entries are vectors [n, d] for n chosen layers. In the decoder
graph, each of these layers gets

    value + vectors[index, i] * scale

where `index` [T] is the entry of each token, 0 for none, and `scale` [T] its factor: standard ops alone. The value is the
output of the attention's projection (at=heads), or the residual stream after the layer (at=stream). A token of entry 0 gets
zeros added, which change nothing.

Source: function vectors, arXiv 2310.15213 and 2606.05079; control vectors as llama.cpp adds them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from enginewright.exporters.methods.anchors import Anchors, ConditionInputs, TypedWriter
from enginewright.exporters.methods.hooks import Entries, Method
from enginewright.exporters.methods.steering.control_vector_command import TUNERS
from enginewright.exporters.methods.steering.control_vectors import read_control_vectors
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.runtime.artifact.manifest import Condition, ConditionTensor, LayerVectors
from enginewright.runtime.artifact.vector_files import read_vectors
from enginewright.runtime.errors import ArtifactError, ExportError

NAME = "steering"
MOST_VECTORS = 4096


@dataclass(frozen=True, kw_only=True)
class Config:
    """The layers, the place in them, and the vectors; `parse_method` creates it.

    layers: their numbers from 0, separated by +, with ranges such as 10-14; all: every layer.
    capacity: how many vectors an engine holds at once.
    at: where they are added.
        heads: to the output of the attention's projection, where heads add theirs.
        stream: to the residual stream after the layer.
    tokens: to which tokens of a request they are added.
        decoded: the prompt's last one and all after it.
        all: the whole prompt as well, as llama.cpp does.
    vectors: folders with vectors that the engine has from the beginning, or llama.cpp's files of control vectors, separated
        by +; each is called as its task, or as its file.

    Raises:
        ExportError: a value that is not known or out of range.
    """

    layers: str = "all"
    capacity: int = 8
    at: Literal["heads", "stream"] = "heads"
    tokens: Literal["decoded", "all"] = "decoded"
    vectors: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"all|\d+(-\d+)?(\+\d+(-\d+)?)*", self.layers):
            raise ExportError(
                f"{NAME}: got layers={self.layers!r}, expected all, or numbers and ranges such as 3+10-14"
            )
        if not 1 <= self.capacity <= MOST_VECTORS:
            raise ExportError(f"{NAME}: got capacity={self.capacity}, expected 1 to {MOST_VECTORS} vectors")
        for name, known in (("at", ("heads", "stream")), ("tokens", ("decoded", "all"))):
            if (value := getattr(self, name)) not in known:
                raise ExportError(f"{NAME}: got {name}={value!r}, expected {' or '.join(known)}")

    def numbers(self, count: int) -> tuple[int, ...]:
        """Return the layers of a model of `count` layers, ascending; ExportError for one that it does not have."""
        if self.layers == "all":
            return tuple(range(count))
        found: set[int] = set()
        for part in self.layers.split("+"):
            first, _, last = part.partition("-")
            if int(last or first) >= count or int(first) > int(last or first):
                raise ExportError(f"{NAME}: layers: got {part}, expected layers from 0 to {count - 1}, ascending")
            found |= set(range(int(first), int(last or first) + 1))
        return tuple(sorted(found))


def check_model(config: Config, checkpoint: Checkpoint) -> None:
    """Raise ExportError for a layer that the model does not have."""
    config.numbers(int(checkpoint.config.num_hidden_layers))


def conditions(config: Config, checkpoint: Checkpoint) -> dict[str, Condition]:
    """Declare the vectors: one for each chosen layer, with a factor."""
    layers = config.numbers(int(checkpoint.config.num_hidden_layers))
    tensor = ConditionTensor(dtype="float32", shape=(len(layers), int(checkpoint.config.hidden_size)))
    return {NAME: Condition(
        capacity=config.capacity, applies=config.tokens, scaled=True, tensors={"vectors": tensor},
        vectors=LayerVectors(at=config.at, layers=layers),
    )}  # fmt: skip


def condition_entries(config: Config, conditions: dict[str, Condition]) -> Entries:
    """Read the vectors that the engine has from the beginning.

    Raises:
        ExportError: a file does not fit the engine, two have one name, or there are more than the engine holds.
    """
    found: Entries = {}
    entries: dict[str, dict[str, object]] = {}
    for place in (config.vectors or "").split("+") if config.vectors else ():
        path = Path(place).expanduser()
        read = read_control_vectors if path.suffix == ".gguf" else read_vectors
        try:
            name, values = read(path, conditions[NAME])
        except ArtifactError as e:
            raise ExportError(f"{NAME}: {e}") from e
        if name in entries:
            raise ExportError(f"{NAME}: vectors: got two called {name!r}, expected one of each name; rename one")
        entries[name] = {"vectors": values}
    if len(entries) > config.capacity:
        raise ExportError(
            f"{NAME}: vectors: got {len(entries)}, expected at most capacity={config.capacity}; build with a larger capacity"
        )
    found = {NAME: entries} if entries else {}  # type: ignore[dict-item]
    return found


def extend_graph(config: Config, anchors: Anchors) -> None:
    """Add each token's vector, times its factor, at every chosen layer.

    Raises:
        UnsupportedError: the family's graph does not show the place.
    """
    inputs = anchors.condition(NAME)
    for place, layer in enumerate(config.numbers(anchors.layers)):
        value = anchors.o_proj_output(layer) if config.at == "heads" else anchors.block_output(layer)
        anchors.add_after(value, partial(_add, inputs, place))


def _add(inputs: ConditionInputs, place: int, write: TypedWriter, value: ir.Value) -> ir.Value:
    assert inputs.scale is not None
    of_layer = write("Gather", inputs.tensors["vectors"], write.constant(place), axis=1)
    vector = write("Gather", of_layer, inputs.index)
    return write("Add", value, write("Mul", vector, write("Unsqueeze", inputs.scale, write.constant([1]))))


METHOD = Method(
    name=NAME,
    summary="vectors that requests name, added to the states of chosen layers",
    paper="2606.05079",
    config=Config,
    check_model=check_model,
    conditions=conditions,
    condition_entries=condition_entries,
    extend_graph=extend_graph,
    tuners=TUNERS,
)
