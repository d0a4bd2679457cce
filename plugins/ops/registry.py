"""The registry of custom ops, by name."""

from __future__ import annotations

from collections.abc import Iterable

from enginewright.plugins.ops.clp_emit import CLP_EMIT
from enginewright.plugins.ops.depth_mix import DEPTH_MIX
from enginewright.plugins.ops.greedy_sample import GREEDY_SAMPLE
from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.op import Op
from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION
from enginewright.plugins.ops.split_qkv import SPLIT_QKV

OPS: dict[str, Op] = {
    op.name: op for op in (PAGED_ATTENTION, KVARN_ATTENTION, DEPTH_MIX, SPLIT_QKV, GREEDY_SAMPLE, CLP_EMIT)
}


def op_versions(names: Iterable[str]) -> dict[str, int]:
    """The versions of the named ops, in order of their names."""
    return {name: OPS[name].version for name in sorted(set(names))}
