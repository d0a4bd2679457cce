"""Tests of entries that are added or replaced while requests run, from several threads."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from enginewright.runtime.artifact.manifest import Condition, ConditionTensor
from enginewright.runtime.errors import RequestError
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.scheduling.condition_store import ConditionStore
from enginewright.runtime.scheduling.row_conditions import RowConditions
from tests.support.runtime.toy_model import FULL, make_llm

TENSORS = {name: ConditionTensor(dtype="float16", shape=(1,)) for name in ("a", "b")}
CONDITIONS = {"steer": Condition(capacity=3, tensors=TENSORS)}
PROMPT = [5] * 13


@pytest.fixture
def llm() -> LLM:
    """A toy that shares prefixes of 4 tokens; it keeps what it is filled with, and computes without it."""
    made = make_llm(eos=(), span=4, windows=FULL, rows=2)
    made.manifest = dataclasses.replace(made.manifest, conditions=CONDITIONS)
    made._conditions = ConditionStore(made.manifest, made.loop)
    made.loop.scheduler._conditions = RowConditions(CONDITIONS, 2)
    return made


def filled(llm: LLM) -> dict[tuple[str, int], Any]:
    found = llm.loop.session.filled  # type: ignore[attr-defined]
    return {place: values.tolist() for place, values in found.items()}


def values_of(value: float) -> dict[str, np.ndarray]:
    return {name: np.array([value]) for name in TENSORS}


def test_entries_that_threads_add_at_once_get_numbers_of_their_own(llm: LLM) -> None:
    gate = threading.Event()
    threads = [threading.Thread(target=llm.loop.between_steps, args=(gate.wait,))]
    threads += [
        threading.Thread(target=llm.add_condition, args=("steer", name, values_of(value)))
        for value, name in enumerate(("one", "two", "three"), 1)
    ]
    for thread in threads:
        thread.start()
    while llm.loop._inbox.qsize() < 3:
        pass
    gate.set()
    for thread in threads:
        thread.join(10)
    numbers = llm._conditions.entries._numbers["steer"]
    assert {name: filled(llm)["cond.steer.a", number] for name, number in numbers.items()} == {
        "one": [1], "two": [2], "three": [3]
    }  # fmt: skip
    with pytest.raises(RequestError, match=r"new entry 'four', but the engine holds 3 \("):
        llm.add_condition("steer", "four", values_of(4))
    llm.close()


def test_a_prefix_of_replaced_values_is_not_shared(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that run just before the replacement, while it waits for its turn, leave no prefixes for later ones."""
    llm.add_condition("steer", "calm", values_of(1))
    calm, between_steps = Sampling(max_tokens=2, conditions={"steer": "calm"}), llm.loop.between_steps

    def late(action: Callable[[], None]) -> None:
        llm.generate([PROMPT, PROMPT], calm)
        between_steps(action)

    monkeypatch.setattr(llm.loop, "between_steps", late)
    llm.add_condition("steer", "calm", values_of(2))
    reused = [llm.generate([PROMPT], calm)[0].reused_tokens for _ in range(2)]
    assert reused == [0, 12]
    llm.close()


@pytest.mark.parametrize("wrong", [np.zeros(2), np.array([np.nan]), np.array([1e6])])
def test_values_that_do_not_fit_change_nothing(llm: LLM, wrong: np.ndarray) -> None:
    llm.add_condition("steer", "calm", values_of(1))
    before = filled(llm)
    for entry in ("calm", "new"):
        with pytest.raises(RequestError, match=r"cond\.steer\.b: got values (of shape|that are not finite as float16)"):
            llm.add_condition("steer", entry, {"a": np.array([2.0]), "b": wrong})
    assert filled(llm) == before and llm._conditions.entries.names("steer") == ("calm",)
    llm.close()


def test_an_entry_of_a_row_cannot_leave_out_the_prompt() -> None:
    """Else its prefixes would go to requests without it."""
    with pytest.raises(ValueError, match=r'applies: got "decoded" with an entry per row, expected "all"'):
        dataclasses.replace(CONDITIONS["steer"], per="row", applies="decoded")
