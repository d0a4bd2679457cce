"""Depth-Attention: the rule that names the earlier layers of each layer, and the mixing during one forward pass.

A model has it when its config says so: `"depth_attention": {"stride": 12, "recent": 0}`, or the keys of its authors'
checkpoints. It is an architecture that a model is trained with, so no option turns it on.

Source: arXiv 2606.05014. Its text counts the stride from the current layer; its code, and its own number of sources, count
from layer 0. The code is what was run, so this module counts from layer 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from enginewright.runtime.errors import ExportError, UnsupportedError

KEY = "depth_attention"
FIELDS = ("stride", "recent")
AUTHORS_NAMES = ("depth_attention", "depth_softmax")  # of the mode, in current and in earlier checkpoints
Pair = tuple[torch.Tensor, torch.Tensor]
Mix = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, list[Pair], float], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class DepthAttention:
    """The rule of sources: layer j is a source of a later layer l if j is a multiple of `stride` or at least l - `recent`.

    `read_depth_attention` creates it from a config.

    stride: 1 or more.
    recent: 0 or more.
    layers: how many the model has.

    Raises:
        ExportError: a value is out of range.
    """

    stride: int
    recent: int
    layers: int

    def __post_init__(self) -> None:
        for name, least in (("stride", 1), ("recent", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ExportError(f"config.json: {KEY}.{name}: got {value!r}, expected a whole number from {least}")
        if self.recent >= self.layers:
            raise ExportError(
                f"config.json: {KEY}.recent: got {self.recent}, expected at most {self.layers - 1}: the last of "
                f"{self.layers} layers has no more before it"
            )

    def sources(self, layer: int) -> tuple[int, ...]:
        """The layers whose values `layer` mixes into its own, in order; none for layer 0."""
        return tuple(j for j in range(layer) if j % self.stride == 0 or j >= layer - self.recent)


class DepthMixer:
    """Mixes the values of one forward pass, layer after layer; layer 0 begins a new pass.

    `PackedDecoder` creates one for a graph, `add_depth_attention` one for a PyTorch model.

    depth: the rule.
    mix: a function of query, key, value, the sources' pairs of key and mixed value, and the factor on q . k.
    """

    def __init__(self, depth: DepthAttention, mix: Mix) -> None:
        self.depth = depth
        self.mix = mix
        self._seen: dict[int, Pair] = {}

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Return the value that attention and the cache use in place of `value`.

        Raises:
            UnsupportedError: a source has other shapes than this layer, or has not run in this pass.
        """
        if layer == 0:
            self._seen.clear()
        sources = []
        for source in self.depth.sources(layer):
            if source not in self._seen:
                raise UnsupportedError(
                    f"{KEY}: layer {layer} got no values of layer {source}, expected it to run first in the same pass; "
                    "models that skip layers, or compute them again for gradients, are not supported"
                )
            pair = self._seen[source]
            if (pair[0].shape, pair[1].shape) != (key.shape, value.shape):
                raise UnsupportedError(
                    f"{KEY}: layer {layer} has keys and values of shape {list(key.shape)} and {list(value.shape)}, its "
                    f"source, layer {source}, {list(pair[0].shape)} and {list(pair[1].shape)}; expected equal ones"
                )
            sources.append(pair)
        mixed = self.mix(query, key, value, sources, scale) if sources else value
        self._seen[layer] = (key, mixed)
        if layer == self.depth.layers - 1:
            self._seen.clear()
        return mixed


def read_depth_attention(config: PreTrainedConfig) -> DepthAttention | None:
    """Return the rule that `config` asks for; None when it asks for none.

    Raises:
        ExportError: a value is missing, unknown, or names layers that the model does not have.
        UnsupportedError: the config asks for a form of model that transformers does not have.
    """
    own, authors = getattr(config, KEY, None), _read_authors_keys(config)
    if own is None:
        found = authors
    elif not isinstance(own, dict):
        raise ExportError(f'config.json: {KEY}: got {own!r}, expected {{"stride": N, "recent": N}}')
    else:
        unknown = sorted(set(own) - set(FIELDS))
        if unknown:
            raise ExportError(f"config.json: {KEY}: unknown key {unknown[0]!r}; known: {', '.join(FIELDS)}")
        found = {"recent": 0, **own}
        if authors is not None and authors != found:
            raise ExportError(f"config.json: {KEY} says {found}, the authors' keys say {authors}; keep one of the two")
    if found is None:
        return None
    if found.get("stride") is None:
        raise ExportError(
            f"config.json: {KEY}: got no stride, expected one; half the number of layers is what its authors use"
        )
    return DepthAttention(**found, layers=int(config.num_hidden_layers))


def _read_authors_keys(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return stride and recent window, read by the names of the authors' checkpoints; None when those ask for no mixing."""
    mode = getattr(config, "cross_layer_pattern", None) or getattr(config, "cross_layer_mode", None)
    if not getattr(config, "use_depth_attention", False) and mode not in AUTHORS_NAMES:
        return None
    if getattr(config, "use_qk_norm", False) and config.model_type == "llama":
        raise UnsupportedError(
            "llama: use_qk_norm asks for norms of query and key, the key's after its rotation, which transformers' llama "
            "does not have; expected a family that has them itself, like qwen3"
        )

    def first(*names: str) -> Any:
        return next((value for name in names if (value := getattr(config, name, None)) is not None), None)

    stride = first("depth_attention_stride", "depth_softmax_stride")
    return {"stride": stride, "recent": first("depth_attention_recent_window", "depth_recent_window") or 0}
