"""Depth-Attention as a feature: what its rule of sources means for the graph, the reference and calibration."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from enginewright.exporters.features.depth_attention.reference import add_depth_attention
from enginewright.exporters.features.depth_attention.rule import DepthAttention, DepthMixer, Pair, read_depth_attention
from enginewright.exporters.features.feature import Feature, ValueMixer


class DepthAttentionFeature:
    """Mixes each layer's values with those of earlier layers; `read` creates it."""

    def __init__(self, depth: DepthAttention) -> None:
        self.depth = depth

    def graph_mixer(self) -> ValueMixer:
        """Return a mixer that puts a DepthMix node into the graph for each layer that has sources."""
        return DepthMixer(self.depth, mix_over_depth)

    def add_to_reference(self, model: PreTrainedModel) -> None:
        """Mix the values in front of the model's own attention."""
        add_depth_attention(model, self.depth)

    def whole_model_reason(self) -> str:
        """Blocks read the values of earlier ones."""
        return "with depth attention a block reads the values of earlier ones"

    def describe(self) -> str:
        """Return the rule of sources."""
        return str(self.depth)


def read(config: PreTrainedConfig) -> DepthAttentionFeature | None:
    """Return the feature if `config` asks for it.

    Raises:
        ExportError, UnsupportedError: as `read_depth_attention` does.
    """
    depth = read_depth_attention(config)
    return None if depth is None else DepthAttentionFeature(depth)


def mix_over_depth(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sources: list[Pair], scale: float
) -> torch.Tensor:
    """Return the values [T, Hkv, Dv] mixed with those of earlier layers, by a node of the graph."""
    flat = [tensor for pair in sources for tensor in pair]
    mixed: torch.Tensor = torch.ops.enginewright.depth_mix(query, key, value, flat, scale)
    return mixed


FEATURE = Feature(
    name="depth_attention",
    title="Depth-Attention",
    summary="values mixed over layers, where the config asks for it",
    paper="2606.05014",
    read=read,
)
