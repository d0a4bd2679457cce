"""Tests of many mixed requests: all are accounted for, and nothing of them stays in rows, tiles or memory."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from enginewright.runtime import cli
from enginewright.runtime.triton.counters import ENDINGS
from tests.support.serving import tritonserver
from tests.support.serving.streams import MODEL, Stream
from tests.support.serving.tritonserver import Installation, Server

pytestmark = [pytest.mark.native, pytest.mark.slow]

CLIENTS, REQUESTS, WARM_UP = 32, 1000, 2000
ROUNDS = 4  # a leak grows in every one; an allocator's new arena comes once
MALFORMED: tuple[dict[str, Any], ...] = (
    {"text_input": ""},
    {"text_input": np.array([b"\xff\xfe"], np.object_)},
    {"temperature": float("nan")},
    {"max_tokens": 10**12},
    {"text_input": "7 " * 5000},
)


def kinds(count: int) -> list[str]:
    """10 % that are cancelled, 5 % malformed, the others as they come, in a fixed random order."""
    cancelled, malformed = count // 10, count // 20
    listed = ["cancelled"] * cancelled + ["refused"] * malformed + ["completed"] * (count - cancelled - malformed)
    random.Random(0).shuffle(listed)
    return listed


def serve_one(server: Server, number: int, kind: str) -> str:
    """Make one request of that kind and return how it ended."""
    rng = random.Random(number)
    stream = Stream(server)
    try:
        if kind == "refused":
            values = {"text_input": "1 + 1", "stream": True, **MALFORMED[number % len(MALFORMED)]}
            answer = stream.answer(stream.send(**values))
            return "refused" if answer.error is not None and len(answer.responses) == 1 else "wrong"
        prompt = [rng.randrange(40, 600) for _ in range(rng.choice((1, 7, 60, 300)))]
        length = 3000 if kind == "cancelled" else rng.choice((1, 5, 40, 120))
        streamed = rng.random() < 0.7 or kind == "cancelled"
        name = stream.send(
            input_ids=prompt, max_tokens=length, ignore_eos=True, stream=streamed, temperature=rng.choice((0.0, 1.0))
        )
        if kind == "cancelled":
            next(stream.responses(name))
            stream.cancel()
            return "cancelled"
        answer = stream.answer(name)
        return "completed" if answer.error is None and len(answer.token_ids) == length else "wrong"
    finally:
        stream.close()


def ended(server: Server) -> dict[str, float]:
    """Requests that have ended, by outcome, as the server counts them."""
    return {outcome: server.measure("enginewright_requests_total", outcome=outcome) for outcome in ENDINGS}


def resident(server: Server) -> int:
    """Bytes of memory that the server and its instances hold."""
    return sum(psutil.Process(pid).memory_info().rss for pid in server.processes())


def load(server: Server, count: int) -> Counter[str]:
    """Make `count` requests from many clients, and wait until the server has counted them all and is idle."""
    before = sum(ended(server).values())
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = Counter(pool.map(lambda n, kind: serve_one(server, n, kind), range(count), kinds(count)))
    end = time.monotonic() + 30
    while (
        sum(ended(server).values()) < before + count
        or server.measure("enginewright_running") + server.measure("enginewright_waiting") > 0
    ):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@pytest.fixture
def small(installation: Installation, engine: Path, tmp_path: Path) -> Iterator[Server]:
    """A server whose cache is used to its last page soon: memory that is first touched later would look like a leak."""
    command = ["triton", str(engine), "--output", str(tmp_path / "repository"), "--name", MODEL, "--threads", "1"]
    assert cli.main([*command, "--cache-tokens", "16384"]) == 0
    with tritonserver.serve(installation, tmp_path / "repository", tmp_path / "log") as server:
        yield server


def test_a_thousand_mixed_requests_leave_nothing_behind(small: Server) -> None:
    server = small
    load(server, WARM_UP)
    before, memory = ended(server), resident(server)
    found = load(server, REQUESTS)
    after, growths = ended(server), [resident(server) / memory - 1]
    expected = {"completed": 850, "cancelled": 100, "refused": 50}
    assert found == expected, "as the clients see it"
    assert {name: after[name] - before[name] for name in ENDINGS} == {**dict.fromkeys(ENDINGS, 0), **expected}
    assert server.measure("enginewright_cache_use_ratio") == 0
    assert server.measure("enginewright_cancel_steps_max") <= 1
    while abs(growths[-1]) >= 0.02 and len(growths) < ROUNDS:
        memory = resident(server)
        load(server, REQUESTS)
        growths.append(resident(server) / memory - 1)
    assert abs(growths[-1]) < 0.02, f"resident memory changed by {growths} in the rounds"
