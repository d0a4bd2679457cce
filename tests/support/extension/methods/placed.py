"""A sample method whose attention reads an input of its own, which a decoding kind of its own fills for each token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from enginewright.exporters.capture.cache_formats import AttentionCall, CacheFormat, PagedCacheFormat, Tensors
from enginewright.exporters.methods.hooks import Method
from enginewright.runtime.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Config:
    """marked: whether the decoding kind marks every token, which then does not attend sharply."""

    marked: bool = False


class PlacedFormat(PagedCacheFormat):
    """Paged tiles; the queries of marked tokens count for nothing."""

    def attend(self, call: AttentionCall, tables: Tensors, pools: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Call PagedAttention on the queries of unmarked tokens."""
        unmarked = (tables["marks"] == 0).to(call.query.dtype)
        return super().attend(replace(call, query=call.query * unmarked[:, None, None]), tables, pools)


def choose_cache(config: Config, cache: CacheFormat) -> CacheFormat:
    """Return the format with the further input."""
    if not isinstance(cache, PagedCacheFormat):
        raise UnsupportedError(f"placed: got a {cache.kind} cache, expected a paged one")
    return PlacedFormat(bits=cache.bits, token_inputs={"marks": "int32"}, sees_later=True)


def choose_decoding(config: Config, decoding: dict[str, Any]) -> dict[str, Any]:
    """Return the kind that fills the input."""
    return {"kind": "placed", "marked": config.marked}


METHOD = Method(
    name="placed",
    summary="Attention with an input of its own",
    config=Config,
    choose_cache=choose_cache,
    choose_decoding=choose_decoding,
)
