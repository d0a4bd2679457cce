"""Tests of loading, unloading and ending a server with requests in flight."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.serving import tritonserver
from tests.support.serving.streams import MODEL, Answer, Stream, ask, post
from tests.support.serving.tritonserver import Installation, Server

pytestmark = [pytest.mark.native, pytest.mark.slow]

LONG = {"input_ids": [60], "max_tokens": 3000, "ignore_eos": True, "stream": True}


def state(server: Server, model: str = MODEL) -> tuple[str, str]:
    """The model's state and its reason, by the repository's index."""
    (entry,) = [e for e in json.loads(post(server, "/v2/repository/index", b"")) if e["name"] == model]
    return entry.get("state", ""), entry.get("reason", "")


def wait_for_state(server: Server, wanted: tuple[str, str], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while state(server) != wanted:
        assert time.monotonic() < end, f"stays {state(server)}"
        time.sleep(0.02)


@pytest.fixture
def controlled(installation: Installation, repository: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that loads and unloads models when told."""
    options = ("--model-control-mode=explicit", f"--load-model={MODEL}")
    with tritonserver.serve(installation, repository, tmp_path / "log", *options) as server:
        yield server


def test_unloads_and_loads_again_after_streaming(controlled: Server) -> None:
    first = ask(controlled, **{**LONG, "max_tokens": 50})
    for _ in range(3):
        with Stream(controlled) as stream:  # one that ends, and one that is cancelled
            stream.answer(stream.send(**{**LONG, "max_tokens": 50}))
            next(stream.responses(stream.send(**LONG)))
            stream.cancel()
        post(controlled, f"/v2/repository/models/{MODEL}/unload", b"{}")
        wait_for_state(controlled, ("UNAVAILABLE", "unloaded"))
        post(controlled, f"/v2/repository/models/{MODEL}/load", b"{}")
        wait_for_state(controlled, ("READY", ""))
        assert ask(controlled, **{**LONG, "max_tokens": 50}).token_ids == first.token_ids


def test_unloading_waits_for_streams_and_then_ends(controlled: Server) -> None:
    """Triton's gRPC side holds every model that an open stream has used, so it is when the stream is closed that it goes."""
    with Stream(controlled) as stream:
        responses = stream.responses(stream.send(**{**LONG, "max_tokens": 1500}))
        next(responses)
        post(controlled, f"/v2/repository/models/{MODEL}/unload", b"{}")
        rest = list(responses)
        assert rest[-1].is_final and rest[-1].error is None
    wait_for_state(controlled, ("UNAVAILABLE", "unloaded"))


def test_sigterm_with_requests_in_flight(installation: Installation, repository: Path, tmp_path: Path) -> None:
    """Everyone gets an end, the server exits with 0, and no process is left."""
    answers: list[Answer] = []
    with tritonserver.serve(installation, repository, tmp_path / "log") as server:
        clients = [
            threading.Thread(
                target=lambda n=n: answers.append(ask(server, **{**LONG, "max_tokens": 1000, "input_ids": [60 + n]}))
            )
            for n in range(8)
        ]
        for client in clients:
            client.start()
        while server.measure("enginewright_running") < 8:
            time.sleep(0.02)
        processes = server.processes()
        assert len(processes) > 1
        assert server.stop(45) == 0
        for client in clients:
            client.join(10)
    assert [(answer.error, len(answer.token_ids)) for answer in answers] == [(None, 1000)] * 8
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]


def test_an_engine_of_another_version_fails_to_load(
    installation: Installation, repository: Path, tmp_path: Path
) -> None:
    """The server says what the manifest says, and serves the other model."""
    shutil.copytree(repository / MODEL, tmp_path / "repository" / MODEL)
    other = tmp_path / "repository/later"
    shutil.copytree(repository / MODEL, other)
    config = other / "config.pbtxt"
    config.write_text(config.read_text().replace(f'name: "{MODEL}"', 'name: "later"'))
    manifest = other / "1/engine/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    with tritonserver.serve(installation, tmp_path / "repository", tmp_path / "log", wait=False) as server:
        end = time.monotonic() + 60
        while not server.is_ready(MODEL):
            assert time.monotonic() < end
            time.sleep(0.05)
        name, reason = state(server, "later")
        assert name == "UNAVAILABLE"
        assert "got format 2, expected 1; upgrade enginewright" in reason
        assert ask(server, text_input="1 + 1", max_tokens=3).error is None
