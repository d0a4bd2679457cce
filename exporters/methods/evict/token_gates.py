"""TRIM-KV's trained gates, which say of each token how long it is worth keeping: their file, and their nodes in a graph.

    logits[t, h] = W2 silu(W1 x[t] + b1) + b2       x: what the layer's attention reads, after its norm
    beta = sigmoid(logits)

The graph marks each token with the logits, and the score takes the logarithm of beta from them, where no digit is lost. Names of
tensors are those of the authors' modules: `layers.<l>.self_attn.retention_gate.` and then one of `PARTS`.

Source: arXiv 2512.03324.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from enginewright.exporters.methods.anchors import Anchors
from enginewright.exporters.weights.weight import Weight
from enginewright.plugins.ops.mark_tokens import MARK_TOKENS
from enginewright.plugins.ops.op import DOMAIN
from enginewright.runtime.errors import ExportError

PARTS = ("linear1.weight", "linear1.bias", "linear2.weight", "bias")
_NAME = re.compile(r"(?:^|\.)layers\.(\d+)\.self_attn\.retention_gate\.(.+)$")
_GIVEN = 2  # `kind` of MarkTokens
ACTIVATION = "silu"


@dataclass(frozen=True, kw_only=True)
class GateTensor:
    """A tensor of a file; `open_token_gates` creates it."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def load(self) -> NDArray[np.float32]:
        """Return its values."""
        with safe_open(self.path, framework="pt") as file:
            values: NDArray[np.float32] = file.get_tensor(self.name).float().numpy()
        return values


LayerGates = Mapping[str, GateTensor]
"""The tensors of a layer, by PARTS."""


def open_token_gates(path: Path) -> dict[int, LayerGates]:
    """Return the gates of each layer in a safetensors file, or in those of a folder.

    Raises:
        ExportError: there is no such file or gate, a tensor is missing or not known, or shapes do not fit each other.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found: dict[int, dict[str, GateTensor]] = {}
    for file in files:
        for tensor in _tensors(file):
            match = _NAME.search(tensor.name)
            if match and match[2] not in PARTS:
                raise ExportError(
                    f"{file}: got the tensor {tensor.name!r}, expected gates of {', '.join(PARTS)}; those that read keys and values "
                    "are not known"
                )
            if match:
                found.setdefault(int(match[1]), {})[match[2]] = tensor
    if not found:
        raise ExportError(
            f"{path}: got no tensor layers.<l>.self_attn.retention_gate.*, expected TRIM-KV's gates as safetensors; convert them "
            "from the authors' trimkv_weights.pth"
        )
    for layer, own in sorted(found.items()):
        _check_layer(path, layer, own)
    return dict(found)


def check_token_gates(path: Path, *, hidden_size: int, layers: int, activation: str) -> None:
    """Raise ExportError unless the gates of a file fit a model, and all their numbers are finite.

    activation: of the model's feed-forward parts, which the gates share.
    """
    if activation != ACTIVATION:
        raise ExportError(
            f"{path}: got a model of activation {activation}, which its gates share, expected {ACTIVATION}; choose another score"
        )
    for layer, own in sorted(open_token_gates(path).items()):
        if layer >= layers:
            raise ExportError(f"{path}: got gates of layer {layer}, expected layers 0 to {layers - 1} as the model has")
        first = own["linear1.weight"]
        if first.shape[1] != hidden_size:
            raise ExportError(
                f"{path}: {first.name}: got shape {list(first.shape)}, expected [any, {hidden_size}], the model's hidden size"
            )
        for tensor in own.values():
            if not np.isfinite(tensor.load()).all():
                raise ExportError(
                    f"{path}: {tensor.name}: got NaN or infinity, expected finite numbers; train it again"
                )


def add_gates(anchors: Anchors, path: Path) -> None:
    """Let each MarkTokens node of the graph that takes given values read those of its layer's gate.

    Raises:
        ExportError: a layer has no gate, or one of another number of KV heads.
    """
    gates = open_token_gates(path)
    for node in list(anchors.graph):
        if (node.domain, node.op_type) != (DOMAIN, MARK_TOKENS.name) or node.attributes["kind"].as_int() != _GIVEN:
            continue
        layer, heads = node.attributes["layer"].as_int(), node.attributes["kv_heads"].as_int()
        if layer not in gates:
            raise ExportError(
                f"{path}: got no layers.{layer}.self_attn.retention_gate.*, expected the gate of each layer"
            )
        bias = gates[layer]["bias"]
        if bias.shape != (heads,):
            raise ExportError(
                f"{path}: {bias.name}: got shape {list(bias.shape)}, expected [{heads}], the layer's KV heads"
            )
        values = _gate(anchors, layer, gates[layer])
        place = [each.name for each in MARK_TOKENS.inputs].index("values")
        node.resize_inputs(place + 1)
        node.replace_input_with(place, values)


def _gate(anchors: Anchors, layer: int, gates: LayerGates) -> ir.Value:
    """Write the nodes of a layer's gate, and return its logits [T, H]."""
    states = anchors.attention_input(layer)
    write = anchors.after(states)
    parts = [
        anchors.add_weight(
            f"evict.gates.{layer}.{part}", Weight(shape=one.shape, dtype=ir.DataType.FLOAT, load=one.load)
        )
        for part, one in ((part, gates[part]) for part in PARTS)
    ]
    width = gates["linear1.weight"].shape[1]
    rows = write("Reshape", states, write.constant([-1, width]))
    hidden = write("Gemm", rows, *parts[:2], transB=1)  # with its bias, so that no form of weights takes it
    hidden = write("Mul", hidden, write("Sigmoid", hidden))
    return write("Gemm", hidden, *parts[2:], transB=1)


def _tensors(path: Path) -> Iterator[GateTensor]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield GateTensor(path=path, name=name, shape=tuple(file.get_slice(name).get_shape()))
    except (OSError, SafetensorError) as e:
        raise ExportError(f"{path}: cannot be read ({e}); give TRIM-KV's gates as safetensors") from e


def _check_layer(path: Path, layer: int, own: LayerGates) -> None:
    """Raise ExportError unless a layer has all tensors, of shapes that fit each other."""
    if missing := [part for part in PARTS if part not in own]:
        raise ExportError(
            f"{path}: got no layers.{layer}.self_attn.retention_gate.{missing[0]}, expected it with the others"
        )
    first, bias = own["linear1.weight"], own["bias"]
    inner, heads = first.shape[0], bias.shape[0] if bias.shape else 0
    wanted = {"linear1.weight": (inner, first.shape[-1]), "linear1.bias": (inner,)}
    wanted |= {"linear2.weight": (heads, inner), "bias": (heads,)}
    for part, shape in wanted.items():
        if own[part].shape != shape:
            raise ExportError(
                f"{path}: {own[part].name}: got shape {list(own[part].shape)}, expected {list(shape)} next to {first.name} "
                f"{list(first.shape)} and {bias.name} {list(bias.shape)}"
            )
