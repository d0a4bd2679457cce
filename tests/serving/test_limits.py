"""Tests of cancellation, time-outs, the queue's limit, priorities, several instances and metrics."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enginewright.runtime import LLM, Sampling, cli
from tests.support.serving import tritonserver
from tests.support.serving.streams import MODEL, Stream, ask, generate
from tests.support.serving.tritonserver import Installation, Server

pytestmark = [pytest.mark.native, pytest.mark.slow]

LONG = {"input_ids": [60], "max_tokens": 4000, "ignore_eos": True, "stream": True}


def wait_for(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def serve_with(
    installation: Installation, engine: Path, folder: Path, *options: str, server_options: tuple[str, ...] = ()
) -> Iterator[Server]:
    """A server of a model repository that is written with these options."""
    command = ["triton", str(engine), "--output", str(folder / "repository"), "--name", MODEL, *options]
    assert cli.main(command) == 0
    with tritonserver.serve(installation, folder / "repository", folder / "log", *server_options) as server:
        yield server


@pytest.fixture(scope="module")
def narrow(installation: Installation, engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model runs one request and lets two wait."""
    folder = tmp_path_factory.mktemp("narrow")
    with serve_with(installation, engine, folder, "--max-batch", "1", "--max-queue", "2", "--threads", "1") as server:
        yield server


def test_a_cancelled_request_frees_its_slot_within_one_step(server: Server) -> None:
    before = server.measure("enginewright_requests_total", outcome="cancelled")
    generated = server.measure("enginewright_tokens_total")
    stream = Stream(server)
    responses = stream.responses(stream.send(**LONG))
    for _ in range(5):
        next(responses)
    stream.cancel()
    wait_for(lambda: server.measure("enginewright_requests_total", outcome="cancelled") == before + 1)
    wait_for(lambda: server.measure("enginewright_running") == 0)
    assert server.measure("enginewright_cancel_steps_max") <= 1
    assert server.measure("enginewright_cache_use_ratio") == 0
    assert server.measure("enginewright_tokens_total") - generated < 2000, "it was stopped on its way"


def test_an_http_client_that_hangs_up_is_a_cancellation(server: Server) -> None:
    body = b'{"input_ids": [60], "max_tokens": 3000, "ignore_eos": true, "stream": true}'
    before = server.measure("enginewright_requests_total", outcome="cancelled")
    generated = server.measure("enginewright_tokens_total")
    host, _, port = server.http.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v2/models/{MODEL}/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert connection.recv(100)
    wait_for(lambda: server.measure("enginewright_requests_total", outcome="cancelled") == before + 1)
    wait_for(lambda: server.measure("enginewright_running") == 0)
    assert server.measure("enginewright_tokens_total") - generated < 2500, "it was stopped on its way"
    assert ask(server, text_input="1 + 1", max_tokens=3).error is None


def test_a_time_out_ends_the_request(server: Server) -> None:
    answer = ask(server, **{**LONG, "timeout_ms": 100})
    assert answer.error is not None and "request: not done after 0.1 seconds" in answer.error
    assert answer.responses[:-1], "what came before stands"
    with pytest.raises(ValueError, match=r"request: not done after 0\.05 seconds"):
        generate(server, input_ids=[60], max_tokens=4000, ignore_eos=True, timeout_ms=50)
    with Stream(server) as stream:
        answer = stream.answer(stream.send(**LONG, timeout_us=100_000))
        assert answer.error is not None and "not done after 0.1 seconds" in answer.error


def test_the_queue_is_full(narrow: Server) -> None:
    running = Stream(narrow)
    with Stream(narrow) as stream:
        next(running.responses(running.send(**LONG)))
        waiting = [stream.send(input_ids=[61], max_tokens=3) for _ in range(2)]
        wait_for(lambda: narrow.measure("enginewright_waiting") == 2)
        answer = ask(narrow, input_ids=[61], max_tokens=3)
        assert answer.error is not None and "queue: full, 1 requests run and 2 wait; try again later" in answer.error
        with pytest.raises(ValueError, match="queue: full"):
            generate(narrow, input_ids=[61], max_tokens=3)
        running.cancel()
        assert [stream.answer(name).error for name in waiting] == [None, None]
    assert generate(narrow, input_ids=[61], max_tokens=3)["num_output_tokens"] == 3, "there is room again"


def test_lower_numbers_run_first(narrow: Server) -> None:
    with Stream(narrow) as stream:
        running = stream.responses(stream.send(**{**LONG, "max_tokens": 600}))
        next(running)
        late = stream.send(input_ids=[61], max_tokens=3, priority=5)
        soon = stream.send(input_ids=[61], max_tokens=3, priority=-5)
        assert stream.answer(soon).responses[-1].at < stream.answer(late).responses[-1].at
        list(running)


def test_two_instances_share_the_clients(installation: Installation, engine: Path, llm: LLM, tmp_path: Path) -> None:
    options = ("--instances", "2", "--threads", "1", "--cache-tokens", "32768")
    with serve_with(installation, engine, tmp_path, *options) as server, Stream(server) as stream:
        prompts = [[60 + n] for n in range(24)]
        names = [stream.send(input_ids=prompt, max_tokens=100, ignore_eos=True, stream=True) for prompt in prompts]
        expected = llm.generate(prompts, Sampling(max_tokens=100, ignore_eos=True))
        assert [stream.answer(name).token_ids for name in names] == [each.token_ids for each in expected]
        for instance in (f"{MODEL}_0_0", f"{MODEL}_0_1"):
            wait_for(
                lambda instance=instance: (
                    server.measure("enginewright_requests_total", outcome="completed", instance=instance) > 0
                )
            )
        wait_for(lambda: server.measure("enginewright_tokens_total") == 2400)


def test_metrics_tell_what_was_served(server: Server) -> None:
    names = ("tokens_total", "first_tokens_total", "first_token_seconds_total", "steps_total")
    before = {name: server.measure(f"enginewright_{name}") for name in names}
    with Stream(server) as stream:
        sent = [stream.send(input_ids=[60 + n], max_tokens=300, ignore_eos=True, stream=True) for n in range(8)]
        for name in sent:
            assert stream.answer(name).error is None
    wait_for(lambda: server.measure("enginewright_tokens_total") - before["tokens_total"] == 2400)
    wait_for(lambda: server.measure("enginewright_running") == 0)
    grown = {name: server.measure(f"enginewright_{name}") - before[name] for name in names}
    assert grown["tokens_total"] == 2400
    assert grown["first_tokens_total"] == 8
    assert 0 < grown["first_token_seconds_total"] < 8 * 10
    assert 300 <= grown["steps_total"] < 2400, "requests shared steps"
    text = server.read("/metrics", port=server.metrics).decode()
    for name in ("tokens_per_second", "batch_size", "cache_use_ratio", "waiting", "first_token_seconds"):
        assert f"# TYPE enginewright_{name} gauge" in text


def test_a_server_without_metrics_serves(installation: Installation, engine: Path, tmp_path: Path) -> None:
    with serve_with(installation, engine, tmp_path, server_options=("--allow-metrics=false",)) as server:
        assert ask(server, text_input="1 + 1", max_tokens=3).error is None
