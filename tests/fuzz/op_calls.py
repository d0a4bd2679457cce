"""Nodes of every op, and calls of them, most spoilt in a place or two: one maker an op, whose cases the op's tests share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.support.ops import (
    add_lora_cases,
    attention_cases,
    attention_inputs,
    block_linear_cases,
    block_lookup_cases,
    clp_cases,
    compact_tiles_cases,
    depth_mix_cases,
    expert_mixture_cases,
    greedy_linear_cases,
    hold_queries_cases,
    kvarn_cases,
    kvarn_inputs,
    mark_tokens_cases,
    split_qkv_cases,
    token_scores_cases,
)

Arrays = dict[str, np.ndarray]
Call = tuple[Arrays, dict[str, Any]]
MOST_BYTES = 1 << 20  # of a call's inputs: small ones find the same faults in less time
WHOLE = (0, 1, -1, 2, 7, 127, 128, 129, 255, 1 << 16, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63), 1 << 62)
FLOATS = (0.0, -1.0, 1e30, float("inf"), float("nan"), 1e-30)


def _from_cases(cases: Any, make: Callable[[Any], Arrays]) -> Callable[[random.Random], Call]:
    kept: list[Call] = []

    def choose(rng: random.Random) -> Call:
        if not kept:
            made = [(make(case), getattr(case, "attributes", {})) for case in cases]  # some ops have none
            kept.extend(call for call in made if sum(array.nbytes for array in call[0].values()) <= MOST_BYTES)
        arrays, attributes = rng.choice(kept)
        return {name: array.copy() for name, array in arrays.items()}, dict(attributes)

    return choose


def _greedy_sample(rng: random.Random) -> Call:
    shape = rng.choice(((1, 1), (3, 17), (0, 5), (5, 300)))
    return {"logits": np.random.default_rng(rng.randrange(1 << 30)).standard_normal(shape).astype(np.float32)}, {}


MAKERS: dict[str, Callable[[random.Random], Call]] = {
    "AddLora": _from_cases(add_lora_cases.CASES, add_lora_cases.make_inputs),
    "BlockLinear": _from_cases(block_linear_cases.CASES, block_linear_cases.make_inputs),
    "BlockLookup": _from_cases(block_lookup_cases.CASES, block_lookup_cases.make_inputs),
    "ClpEmit": _from_cases(clp_cases.CASES, clp_cases.make_inputs),
    "CompactTiles": _from_cases(compact_tiles_cases.CASES, compact_tiles_cases.make_inputs),
    "DepthMix": _from_cases(depth_mix_cases.CASES, depth_mix_cases.make_inputs),
    "ExpertMixture": _from_cases(expert_mixture_cases.CASES, expert_mixture_cases.make_inputs),
    "GreedyLinear": _from_cases(greedy_linear_cases.CASES, greedy_linear_cases.make_inputs),
    "GreedySample": _greedy_sample,
    "HoldQueries": _from_cases(hold_queries_cases.CASES, hold_queries_cases.make_inputs),
    "KVarNAttention": _from_cases(kvarn_cases.CASES, kvarn_inputs.make_inputs),
    "MarkTokens": _from_cases(mark_tokens_cases.CASES, mark_tokens_cases.make_inputs),
    "PagedAttention": _from_cases(attention_cases.CASES, attention_inputs.make_inputs),
    "SplitQkv": _from_cases(split_qkv_cases.CASES, split_qkv_cases.make_inputs),
    "TokenScores": _from_cases(token_scores_cases.CASES, token_scores_cases.make_inputs),
}


def kept_calls() -> Iterator[tuple[str, Arrays]]:
    """Yield the calls in which a sanitizer has found something once."""
    empty = next(case for case in hold_queries_cases.CASES if case.name == "no_tokens")
    arrays = hold_queries_cases.make_inputs(empty)
    yield "HoldQueries", {**arrays, "ring": arrays["ring"][:0]}  # no memory, and slots of rows that have no tokens


def make_node(rng: random.Random, op: str) -> Call:
    """Return the inputs and attributes of a node of an op; of three an input is missing or an attribute spoilt in one."""
    arrays, attributes = MAKERS[op](rng)
    if rng.random() < 0.33:
        rng.choice((_drop, _spoil_attribute))(rng, arrays, attributes)
    return arrays, attributes


def spoil(rng: random.Random, arrays: Arrays) -> Arrays:
    """Return copies of a node's inputs; of three of four a number or a shape is spoilt, or two are."""
    made = {name: array.copy() for name, array in arrays.items()}
    for _ in range(rng.choice((0, 1, 1, 2))):
        rng.choice((_spoil_number, _spoil_number, _spoil_number, _spoil_shape))(rng, made)
    return made


def _spoil_number(rng: random.Random, arrays: Arrays) -> None:
    whole = [name for name, array in arrays.items() if array.size and array.dtype in (np.int32, np.int64)]
    name = rng.choice(whole or list(arrays))
    array = arrays[name]
    if not array.size:
        return
    if array.dtype.kind == "f":
        value: float = rng.choice(FLOATS)
    else:
        info = np.iinfo(array.dtype)
        near = int(array.flat[rng.randrange(array.size)]) + rng.choice((-1, 1))
        value = max(info.min, min(info.max, rng.choice((*WHOLE, near))))
    with np.errstate(over="ignore"):
        array.flat[rng.randrange(array.size)] = value


def _spoil_shape(rng: random.Random, arrays: Arrays) -> None:
    name = rng.choice(list(arrays))
    array = arrays[name]
    axis = rng.randrange(array.ndim)
    sizes = list(array.shape)
    sizes[axis] = max(0, sizes[axis] + rng.choice((-1, 1, -sizes[axis])))
    arrays[name] = np.resize(array, sizes) if array.size else np.zeros(sizes, array.dtype)


def _drop(rng: random.Random, arrays: Arrays, attributes: dict[str, Any]) -> None:
    if len(arrays) > 1:
        del arrays[rng.choice(list(arrays))]


def _spoil_attribute(rng: random.Random, arrays: Arrays, attributes: dict[str, Any]) -> None:
    if attributes:
        name = rng.choice(list(attributes))
        attributes[name] = rng.choice(FLOATS if isinstance(attributes[name], float) else WHOLE)
