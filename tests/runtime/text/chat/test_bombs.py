"""Tests of the limits of chat templates: whatever a template asks for, its own request alone fails, soon."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.chat import render_pool
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.chat.render_limits import ADDRESS_SPACE, FREE_CHARACTERS
from enginewright.runtime.text.chat.render_pool import RenderPool
from enginewright.runtime.text.chat.template import ChatTemplate
from tests.support.paths import ROOT
from tests.support.runtime.template_bombs import DEPTH, MEMORY, TIME

MESSAGES = [{"role": "user", "content": "the cat"}]
PLAIN = "<{{ messages[0].role }}>{{ messages[0].content }}"


def render(source: str, content: str = "the cat") -> str:
    messages = [{"role": "user", "content": content}]
    return ChatTemplate(source, {}, where="t").render(Conversation(messages=messages, add_generation_prompt=False))


def refused(source: str) -> str:
    """The error of a template that must fail within a minute, on a quiet machine six seconds, without memory of this process."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # compilers of other tests among them
    with pytest.raises(RequestError, match=r"^t: ") as caught:
        render("{{ messages }}" + source)
    assert time.monotonic() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    most = max(1 << 20, children, before) + (16 << 10)  # a child has this process's pages until it starts its program
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= most, "KiB"
    return str(caught.value)


def check_others() -> None:
    assert render(PLAIN) == "<user>the cat"


@pytest.mark.parametrize("name", ["text times number", "percent", "to_bytes", "center filter"])
def test_memory_is_bounded(name: str) -> None:
    assert "MemoryError" in refused(MEMORY[name])
    check_others()


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORY)
def test_whatever_asks_for_memory_is_refused(name: str) -> None:
    refused(MEMORY[name])
    check_others()


@pytest.mark.slow
@pytest.mark.parametrize("name", TIME)
def test_whatever_asks_for_time_is_refused(name: str) -> None:
    refused(TIME[name])
    check_others()


@pytest.mark.parametrize("name", DEPTH)
def test_whatever_nests_too_deep_is_refused(name: str) -> None:
    refused(DEPTH[name])
    check_others()


def test_the_text_is_bounded_by_what_it_is_made_of() -> None:
    assert len(render("{{ messages[0].content * 4 }}", "a" * FREE_CHARACTERS)) == 4 * FREE_CHARACTERS
    with pytest.raises(RequestError, match=r"OverflowError: it writes \d+ characters, more than 1"):
        render("{{ messages[0].content * 10**6 }}")


@pytest.mark.slow
def test_others_are_served_while_a_template_takes_its_time() -> None:
    errors: list[BaseException] = []

    def explode() -> None:
        try:
            render(TIME["nested ranges"])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=explode, daemon=True) for _ in range(render_pool._MOST - 1)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    served = 0
    while any(thread.is_alive() for thread in threads):
        check_others()
        served += 1
    assert served > 5
    assert len(errors) == len(threads) and all(isinstance(error, RequestError) for error in errors)


def test_many_threads_get_their_own_texts() -> None:
    got: dict[int, set[str]] = {}

    def run(number: int) -> None:
        got[number] = {render(PLAIN, str(number)) for _ in range(20)}

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {i: {f"<user>{i}"} for i in range(8)}
    assert len(render_pool._pool._idle) <= render_pool._IDLE


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> RenderPool:
    """A pool of this test's own, with one process that has nothing to do."""
    pool = RenderPool()
    monkeypatch.setattr(render_pool, "_pool", pool)
    check_others()
    return pool


def test_a_process_that_was_killed_is_replaced(pool: RenderPool) -> None:
    (process,) = pool._idle
    process._process.kill()
    process._process.wait()
    check_others()
    assert pool._idle != [process]
    pool.close()
    assert not pool._idle
    check_others()


def test_a_rendering_that_is_interrupted_leaves_nothing_to_the_next(
    pool: RenderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (process,) = pool._idle

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "_receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        render("{{ messages[0].content }} for nobody")
    assert not process.is_alive
    check_others()


@pytest.mark.parametrize("program", ["no_such_module", "this"])
def test_a_program_that_does_not_start_is_named(
    pool: RenderPool, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    pool.close()
    monkeypatch.setattr(render_pool, "PROGRAM", program)
    with pytest.raises(
        RequestError, match=f"chat: the process that renders templates does not start; try `.*{program}`"
    ):
        render("{{ messages }}{{ 'never seen' }}")


def test_a_python_that_is_not_there_is_named(pool: RenderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.close()
    monkeypatch.setattr(render_pool, "_interpreter", lambda: "/no/such/python")
    with pytest.raises(RequestError, match="chat: the process that renders templates cannot be started"):
        render("{{ messages }}{{ 'never seen either' }}")


def test_a_fork_has_processes_of_its_own(pool: RenderPool) -> None:
    (process,) = pool._idle
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            text = render(PLAIN, "child")
            os.write(writes, json.dumps([text, render_pool._pool is pool]).encode())
            render_pool._pool.close()
        finally:
            os._exit(0)
    os.close(writes)
    assert {render(PLAIN, str(i)) for i in range(50)} == {f"<user>{i}" for i in range(50)}
    assert json.loads(os.read(reads, 1000)) == ["<user>child", False]
    os.waitpid(child, 0)
    os.close(reads)
    assert pool._idle == [process] and process.is_alive


ORPHAN = """
import os
from enginewright.runtime.text.chat import render_pool
from tests.runtime.text.chat.test_bombs import render, PLAIN
render(PLAIN)
print(render_pool._pool._idle[0]._process.pid, flush=True)
END
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "pass"], ids=["exit", "killed", "end"])
def test_no_process_outlives_its_parent(end: str) -> None:
    code = ORPHAN.replace("END", end)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    place = Path(f"/proc/{int(done.stdout)}/stat")
    wait_until(lambda: not place.exists() or place.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_may_write_no_file_and_map_no_more_than_it_may(pool: RenderPool) -> None:
    (process,) = pool._idle
    limits = Path(f"/proc/{process._process.pid}/limits").read_text().splitlines()
    bounds = {line[:25].strip(): line[25:].split()[:2] for line in limits}
    assert bounds["Max address space"] == [str(ADDRESS_SPACE)] * 2
    assert bounds["Max file size"] == bounds["Max core file size"] == ["0", "0"]
