"""A sample method that only chooses a decoding kind: an engine that decodes by Jacobi iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from enginewright.exporters.methods.hooks import Method


@dataclass(frozen=True, kw_only=True)
class Config:
    """block: the number of tokens that a row brings into a step."""

    block: int = 4


def choose_decoding(config: Config, decoding: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest's decoding."""
    return {"kind": "jacobi", "k": config.block}


METHOD = Method(
    name="jacobi",
    summary="Decodes by Jacobi iteration",
    config=Config,
    choose_decoding=choose_decoding,
)
