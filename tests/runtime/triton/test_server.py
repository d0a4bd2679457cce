"""Tests of many clients in one batch, without Triton: responses, cancellation, time-outs, queue, errors, metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from enginewright.runtime import LLM, RequestError, Sampling
from enginewright.runtime.triton.counters import METRICS, Values
from enginewright.runtime.triton.served_request import ServedRequest
from enginewright.runtime.triton.server import CancelledError, GoneError, Piece, QueueFullError, Server, TimedOutError
from tests.support.runtime.toy_model import greedy, make_llm

SECONDS = 60


class Waiting:
    """A client that waits for its last response.

    gone_after: the number of responses that it takes before it is gone.
    """

    def __init__(self, gone_after: int | None = None) -> None:
        self.pieces: list[Piece] = []
        self.error: Exception | None = None
        self.lasts = 0
        self.cancelled = False
        self.gone_after = gone_after
        self.ended = threading.Event()

    def send(self, piece: Piece) -> None:
        if self.gone_after is not None and len(self.pieces) >= self.gone_after:
            self.ended.set()
            raise GoneError("the client is gone")
        self.pieces.append(piece)
        if piece.end is not None:
            self._end()

    def fail(self, error: Exception) -> None:
        self.error = error
        self._end()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def _end(self) -> None:
        self.lasts += 1
        self.ended.set()

    @property
    def token_ids(self) -> list[int]:
        assert self.ended.wait(SECONDS)
        return [token for piece in self.pieces for token in piece.token_ids]


class Board:
    """Keeps the metrics that it is shown."""

    def __init__(self) -> None:
        self.values: Values = {}

    def publish(self, values: Values) -> None:
        self.values.update(values)

    def of(self, name: str, label: str | None = None) -> float:
        return self.values[f"enginewright_{name}", ("outcome", label) if label else None]


@pytest.fixture
def serve(byte_tokenizer: Any) -> Any:
    """Makes servers of the toy, and closes them."""
    opened: list[Server] = []

    def make(max_queue: int = 8, board: Board | None = None, **options: Any) -> Server:
        llm = make_llm(byte_tokenizer, eos=(), **options)
        opened.append(Server(llm, max_queue=max_queue, publisher=board))
        return opened[-1]

    yield make
    for server in opened:
        server.close()


def slow(llm: LLM, seconds: float = 0.01) -> None:
    """Make every step take at least `seconds`."""
    run = llm.loop.session.run

    def later(step: Any) -> Any:
        time.sleep(seconds)
        return run(step)

    llm.loop.session.run = later  # type: ignore[method-assign]


def submit(server: Server, prompt: Sequence[int], tokens: int, *, stream: bool = True, **options: Any) -> Waiting:
    client = options.pop("client", None) or Waiting()
    server.submit(ServedRequest(prompt=prompt, sampling=Sampling(max_tokens=tokens), stream=stream, **options), client)
    return client


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_everyone_gets_their_own(serve: Any) -> None:
    server = serve(max_queue=40)
    clients = [submit(server, [i + 1], 3 + i % 9, stream=bool(i % 2)) for i in range(30)]
    assert [client.token_ids for client in clients] == [greedy([i + 1], 3 + i % 9) for i in range(30)]
    for i, client in enumerate(clients):
        assert client.error is None and client.lasts == 1
        end = client.pieces[-1].end
        assert end is not None and end.prompt_tokens == 1 and list(end.token_ids) == client.token_ids
        assert "".join(piece.text for piece in client.pieces) == end.text
        assert i % 2 or len(client.pieces) == 1


def test_a_stream_comes_token_by_token_and_what_gathers_leaves_together(serve: Any) -> None:
    server = serve()
    slow(server.llm)
    quick = submit(server, [1], 9)
    assert len(quick.token_ids) == 9 and len(quick.pieces) >= 8  # the last token and the end may come apart
    late = Waiting()
    send = late.send
    late.send = lambda piece: (time.sleep(0.05), send(piece))[1]  # type: ignore[method-assign]
    submit(server, [1], 20, client=late)
    assert late.token_ids == greedy([1], 20)
    assert len(late.pieces) < 12, "a client that takes long gets several tokens at once"


def test_a_cancelled_request_is_out_by_the_next_step(serve: Any) -> None:
    board = Board()
    server = serve(board=board, rows=2, context=4096)
    slow(server.llm, 0.03)
    free = server.llm.loop.scheduler.snapshot().free_tiles
    client, other = submit(server, [1], 4000), submit(server, [2], 30)
    wait_for(lambda: len(client.pieces) > 2)
    client.cancelled = True
    assert client.ended.wait(SECONDS)
    assert isinstance(client.error, CancelledError) and client.lasts == 1
    before = len(client.pieces)
    assert other.token_ids == greedy([2], 30), "the other one goes on"
    wait_for(lambda: board.of("running") == 0)
    assert board.of("cancel_steps_max") <= 1
    assert len(client.pieces) == before
    assert server.llm.loop.scheduler.snapshot().free_tiles == free
    assert board.of("requests_total", "cancelled") == 1 and board.of("requests_total", "completed") == 1


def test_cancelling_one_that_waits(serve: Any) -> None:
    server = serve(rows=1, context=4096)
    slow(server.llm)
    running, waiting = submit(server, [1], 40), submit(server, [2], 4000)
    waiting.cancelled = True
    assert waiting.ended.wait(SECONDS)
    assert isinstance(waiting.error, CancelledError) and not waiting.pieces
    assert running.token_ids == greedy([1], 40)


def test_time_outs_end_what_runs_and_what_waits(serve: Any) -> None:
    board = Board()
    server = serve(board=board, rows=1, context=4096)
    slow(server.llm)
    running, waiting = submit(server, [1], 4000, timeout=0.2), submit(server, [2], 4000, timeout=0.1)
    for client in (waiting, running):
        assert client.ended.wait(SECONDS)
        assert isinstance(client.error, TimedOutError) and client.lasts == 1
    assert "not done after 0.2 seconds" in str(running.error)
    assert running.pieces and not waiting.pieces
    assert submit(server, [3], 4).token_ids == greedy([3], 4)
    wait_for(lambda: board.of("requests_total", "timed_out") == 2)


def test_the_queue_has_a_limit(serve: Any) -> None:
    server = serve(max_queue=2, rows=1, context=4096)
    slow(server.llm)
    clients = [submit(server, [i], 30) for i in range(3)]
    with pytest.raises(QueueFullError, match="queue: full, 1 requests run and 2 wait; try again later"):
        submit(server, [9], 1)
    assert [client.token_ids for client in clients] == [greedy([i], 30) for i in range(3)]
    wait_for(lambda: not server._live)
    assert submit(server, [9], 2).token_ids == greedy([9], 2), "there is room again"


def test_priorities_decide_who_waits(serve: Any) -> None:
    server = serve(rows=1, context=4096)
    slow(server.llm)
    first = submit(server, [1], 20)
    wait_for(lambda: bool(first.pieces))
    late, soon = submit(server, [2], 3, priority=1), submit(server, [3], 3, priority=-1)
    assert soon.token_ids == greedy([3], 3)
    assert not late.ended.is_set()
    assert late.token_ids == greedy([2], 3)


def test_what_cannot_be_served_touches_nobody(serve: Any) -> None:
    server = serve(max_queue=0, rows=1)
    client = Waiting()
    for _ in range(3):
        with pytest.raises(RequestError, match="expected 0 to 289"):
            submit(server, [10**6], 3, client=client)
    assert not client.ended.is_set()
    assert submit(server, [1], 3).token_ids == greedy([1], 3), "it left no trace in the queue"
    server.refuse(client, ValueError("no"))
    assert str(client.error) == "no" and client.lasts == 1


def test_a_client_that_is_gone_stops_costing(serve: Any) -> None:
    server = serve(rows=1, context=4096)
    gone = submit(server, [1], 4000, client=Waiting(gone_after=2))
    assert gone.ended.wait(SECONDS)
    assert submit(server, [2], 3).token_ids == greedy([2], 3), "its slot is free"
    wait_for(lambda: not server._live)


def test_an_answer_that_cannot_be_written_is_its_clients_alone(serve: Any) -> None:
    board = Board()
    server = serve(board=board, rows=2, context=4096)
    broken, other = Waiting(), Waiting()

    def fail(_: Piece) -> None:
        raise ValueError("inhomogeneous shape")

    broken.send = fail  # type: ignore[method-assign]
    submit(server, [1], 4000, client=broken)
    submit(server, [2], 30, client=other)
    assert broken.ended.wait(SECONDS) and str(broken.error) == "inhomogeneous shape"
    assert other.token_ids == greedy([2], 30)
    wait_for(lambda: not server._live and board.of("requests_total", "failed") == 1)


def test_a_failed_step_is_told_to_those_in_it(serve: Any) -> None:
    board = Board()
    server = serve(board=board, rows=2)
    server.llm.loop.session.failures.append(OSError("the device is lost"))
    client = submit(server, [1], 5)
    assert client.ended.wait(SECONDS)
    assert str(client.error) == "the device is lost" and client.lasts == 1
    assert submit(server, [1], 5).token_ids == greedy([1], 5)
    wait_for(lambda: board.of("requests_total", "failed") == 1)


def test_closing_answers_everyone(serve: Any) -> None:
    server = serve(rows=2, context=4096)
    clients = [submit(server, [i + 1], 4000, stream=bool(i % 2)) for i in range(6)]
    wait_for(lambda: bool(clients[1].pieces))
    server.close()
    for client in clients:
        assert client.ended.is_set() and client.lasts == 1
        assert isinstance(client.error, CancelledError) and "unloaded" in str(client.error)
    with pytest.raises(CancelledError, match="being unloaded"):
        submit(server, [1], 1)
    server.close()
    assert not server._thread.is_alive()


def test_every_metric_is_published_and_counts(serve: Any) -> None:
    board = Board()
    server = serve(board=board)
    slow(server.llm)
    clients = [submit(server, [i + 1], 60) for i in range(4)]
    wait_for(lambda: bool(board.values) and board.of("running") == 4)
    assert board.of("cache_use_ratio") > 0
    wait_for(lambda: board.of("batch_size") == pytest.approx(4, abs=0.5))
    assert board.of("tokens_per_second") > 0
    for client in clients:
        assert client.token_ids
    wait_for(lambda: board.of("running") == 0 and board.of("cache_use_ratio") == 0)
    assert set(board.values) == {(metric.name, metric.label) for metric in METRICS}
    assert board.of("tokens_total") == 240
    assert board.of("first_tokens_total") == 4
    assert 0 < board.of("first_token_seconds_total") < 4 * SECONDS
    assert board.of("requests_total", "completed") == 4
    assert board.of("steps_total") >= 60
