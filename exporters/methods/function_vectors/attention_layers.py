"""The attention layers of a transformers decoder: where each head's output enters the output projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from enginewright.runtime.errors import UnsupportedError

PROJECTIONS = ("o_proj", "dense", "out_proj")


@dataclass(frozen=True, kw_only=True)
class HeadedLayer:
    """One attention layer of a model; `attention_layers` creates it.

    index: its number.
    block: the whole layer, whose output is the residual stream after it.
    attention: the module that calls the attention function.
    projection: the linear layer that reads the heads' outputs, one head after another.
    heads: H, the number of query heads.
    """

    index: int
    block: nn.Module
    attention: nn.Module
    projection: nn.Linear
    heads: int

    @property
    def head_dim(self) -> int:
        """D_h, the numbers of one head's output."""
        return self.projection.in_features // self.heads


def attention_layers(model: PreTrainedModel) -> list[HeadedLayer]:
    """Return the attention layers of a decoder, in order.

    Raises:
        UnsupportedError: the model does not show them as a list of blocks with one projection of heads each.
    """
    heads = int(model.config.get_text_config().num_attention_heads)
    found: list[HeadedLayer] = []
    for blocks in (each for each in model.base_model.modules() if isinstance(each, nn.ModuleList)):
        for block in blocks:
            attention = next((each for each in block.modules() if isinstance(getattr(each, "layer_idx", None), int)
                              and _projection(each) is not None), None)  # fmt: skip
            projection = None if attention is None else _projection(attention)
            if attention is None or projection is None or projection.in_features % heads:
                break
            found.append(HeadedLayer(
                index=len(found), block=block, attention=attention, projection=projection, heads=heads
            ))  # fmt: skip
        if found:
            break
    if not found or len(found) != int(model.config.get_text_config().num_hidden_layers):
        raise UnsupportedError(
            f"{model.config.model_type}: function vectors: got {len(found)} blocks with a linear layer after {heads} heads, "
            "expected one in each layer; this family is not supported"
        )
    return found


def _projection(attention: nn.Module) -> nn.Linear | None:
    """The output projection of an attention module."""
    children = dict(attention.named_children())
    return next((each for name in PROJECTIONS if isinstance(each := children.get(name), nn.Linear)), None)


def as_row(model: PreTrainedModel, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """The token ids as a batch of one row, int64 [1, S], where the model is."""
    return torch.as_tensor(ids, dtype=torch.int64, device=model.device).reshape(1, -1)


def last_logits(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """The logits after the last token of each row, [B, V], as the model's own head gives them.

    rows: int64 [B, S].
    """
    logits: torch.Tensor = model(input_ids=rows, use_cache=False, logits_to_keep=1).logits
    return logits[:, -1]
