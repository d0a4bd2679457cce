"""Tests of an LLM in a process that was forked from its own: every call says so at once, and the parent's goes on."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from enginewright.runtime import LLM, Handle, Sampling, load
from enginewright.runtime.errors import RequestError
from tests.support.runtime.toy_model import greedy, make_llm

CALLS: dict[str, Callable[[LLM, Handle], object]] = {
    "generate": lambda llm, _: llm.generate([5, 6], Sampling(max_tokens=2)),
    "submit": lambda llm, _: llm.submit([5], Sampling(max_tokens=2)),
    "stream": lambda llm, _: list(llm.stream([5], Sampling(max_tokens=2))),
    "logits": lambda llm, _: llm.logits([5, 6]),
    "between steps": lambda llm, _: llm.loop.between_steps(list),
    "result": lambda _, handle: handle.result(),
    "iteration": lambda _, handle: list(handle),
}


def told_by_child(act: Callable[[], object]) -> object:
    """What `act` returns in a forked process, which has ten seconds for it."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writes, json.dumps(act()).encode())
        finally:
            os._exit(0)  # ends neither pytest nor, as an ordinary exit would, ONNX Runtime's threads
    os.close(writes)
    try:
        assert select.select([reads], [], [], 10)[0], "the child hangs"
        return json.loads(os.read(reads, 1 << 16))
    finally:
        os.close(reads)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def errors_of(llm: LLM, handle: Handle) -> dict[str, str]:
    """The error of each call, by its name; then the engine is closed, and a request cancelled."""
    errors = {}
    for name, call in CALLS.items():
        try:
            call(llm, handle)
        except RequestError as error:
            errors[name] = str(error)
    handle.cancel()
    llm.close()
    return errors


def check_child(llm: LLM, handle: Handle) -> None:
    errors = told_by_child(lambda: errors_of(llm, handle))
    assert isinstance(errors, dict) and errors.keys() == CALLS.keys()
    for error in errors.values():
        assert f"which was forked from {os.getpid()}" in error and "load the engine in this process" in error


@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
def test_a_forked_process_is_told_so_at_once(held: bool) -> None:
    """Also where another thread had the loop's lock at the moment of the fork."""
    with make_llm(eos=()) as llm:
        running = llm.submit([7], Sampling(max_tokens=50))
        if held:
            with llm.loop._lock:
                check_child(llm, running)
        else:
            check_child(llm, running)
        assert running.result().token_ids == tuple(greedy([7], 50)), "the parent goes on"
        assert llm.generate([5], Sampling(max_tokens=3))[0].token_ids == tuple(greedy([5], 3))


@pytest.mark.native
def test_a_forked_process_leaves_a_real_engine_as_it_was(tiny_engine: Path) -> None:
    sampling = Sampling(max_tokens=60, ignore_eos=True)
    with load(tiny_engine, 2) as llm:
        expected = llm.generate([5, 6], sampling)[0].token_ids
        running = llm.submit([5, 6], sampling)
        check_child(llm, running)
        assert running.result().token_ids == llm.generate([5, 6], sampling)[0].token_ids == expected
