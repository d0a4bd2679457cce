"""Tests of the step loop against functions of its users that raise, or that wait for the loop on its own thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

from enginewright.runtime.errors import ArtifactError, RequestError
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.completion import Completion, Event, Token
from enginewright.runtime.requests.logits_processor import Stateless
from enginewright.runtime.requests.request import describe
from enginewright.runtime.requests.sampling import Sampling
from tests.support.runtime.toy_model import greedy, make_llm
from tests.support.runtime.toy_session import VOCAB


class Unspeakable(BaseException):
    """An error that cannot even be shown."""

    def __repr__(self) -> str:
        raise ValueError("of repr")

    __str__ = __repr__


ERRORS = [
    *(SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError("the owner's own"), BaseException("bare")),
    *(StopIteration(), BaseExceptionGroup("several", [KeyboardInterrupt()]), Unspeakable()),
]


@pytest.mark.parametrize("at", [1, 3])
def test_an_owner_whose_function_raises_loses_its_own_request(at: int) -> None:
    """At its first token, or at the Completion, which is the third event."""
    got: list[Event] = []

    def take(event: Event) -> None:
        got.append(event)
        if len(got) == at:
            raise KeyError("the owner's own")

    with make_llm(eos=(), rows=3) as llm:
        others = llm.submit_all([[5, 6], [7]], Sampling(max_tokens=12))
        bad = llm.submit([3, 4], Sampling(max_tokens=2), on_event=take)
        with pytest.raises(KeyError, match="the owner's own"):
            bad.result()
        assert [other.result().token_ids for other in others] == [tuple(greedy(p, 12)) for p in ([5, 6], [7])]
        assert len(got) == at and isinstance(got[-1], Token if at == 1 else Completion)


WAITS: dict[str, Callable[[LLM], object]] = {
    "between_steps": lambda llm: llm.loop.between_steps(list),
    "generate": lambda llm: llm.generate([5], Sampling(max_tokens=2)),
    "stream": lambda llm: list(llm.stream([5], Sampling(max_tokens=2))),
    "result": lambda llm: llm.submit([5], Sampling(max_tokens=2)).result(),
    "logits": lambda llm: llm.logits([5, 6]),
}


@pytest.mark.parametrize("name", WAITS)
def test_waiting_for_the_loop_on_its_own_thread_is_refused(name: str) -> None:
    refused: list[str] = []

    def take(_: Event) -> None:
        with pytest.raises(RequestError) as caught:
            WAITS[name](llm)
        refused.append(str(caught.value))

    llm = make_llm(eos=())  # closed below: while the loop waits for itself, nothing can close it
    handle = llm.submit([1], Sampling(max_tokens=2), on_event=take)
    assert handle._request.done.wait(30), "the loop waits for itself"
    assert len(handle.result().token_ids) == 2
    llm.close()
    assert len(refused) == 3 and "on its own thread; call it from another thread" in refused[0]


def test_a_request_that_has_ended_can_be_read_on_the_loops_thread() -> None:
    read: list[object] = []
    with make_llm(eos=()) as llm:
        done = llm.submit([5, 6], Sampling(max_tokens=2))
        expected = [done.result(), [token.id for token in done]]
        again = llm.submit([5, 6], Sampling(max_tokens=2))
        again.result()
        llm.submit([1], Sampling(max_tokens=1), on_event=lambda _: read.append(again.result())).result()
        llm.submit([1], Sampling(max_tokens=1), on_event=lambda _: read.append([t.id for t in again])).result()
    assert read[0].token_ids == expected[0].token_ids and read[2] == expected[1]


def name_of(error: BaseException) -> str:
    return type(error).__name__


@pytest.fixture
def busy() -> Iterator[LLM]:
    """A toy whose other requests must end as they would without the one that fails."""
    with make_llm(eos=(), rows=4) as llm:
        others = llm.submit_all([[5, 6], [7]], Sampling(max_tokens=40))
        yield llm
        assert [other.result().token_ids for other in others] == [tuple(greedy(p, 40)) for p in ([5, 6], [7])]
        assert llm.generate([3], Sampling(max_tokens=4))[0].token_ids == tuple(greedy([3], 4)), "it still serves"


def raised_by(call: object) -> Exception:
    """The error of `call`, which must come within seconds, and be one that a thread can wait for."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            call()  # type: ignore[operator]
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert caught, "no error came"
    assert isinstance(caught[0], Exception)
    return caught[0]


def check_error(got: Exception, given: BaseException) -> None:
    if isinstance(given, Exception):
        assert given in (got, got.__cause__)
    else:
        assert isinstance(got, RequestError) and got.__cause__ is given and describe(given) in str(got)


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_an_error_of_any_kind_in_a_callback_ends_its_own_request(busy: LLM, error: BaseException) -> None:
    def take(_: Event) -> None:
        raise error

    check_error(raised_by(busy.submit([3, 4], Sampling(max_tokens=9), on_event=take).result), error)


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
@pytest.mark.parametrize("at", ["process", "accept"])
def test_an_error_of_any_kind_in_a_processor_ends_its_own_request(busy: LLM, error: BaseException, at: str) -> None:
    class Processor(Stateless):
        def process(self, logits: np.ndarray, tokens: np.ndarray) -> None:
            if at == "process":
                raise error

        def accept(self, token: int) -> None:
            if at == "accept":
                raise error

    sampling = Sampling(max_tokens=9, logits_processors={"bad": lambda prompt, vocab: Processor()})
    got = raised_by(busy.submit([3, 4], sampling).result)
    assert isinstance(got, RequestError) and got.__cause__ is error


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_an_error_of_any_kind_in_a_scorers_function_ends_its_own_request(busy: LLM, error: BaseException) -> None:
    def take(position: int, logits: np.ndarray) -> None:
        raise error

    check_error(raised_by(lambda: busy.score([[3, 4, 5]], [take])), error)


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_an_error_of_any_kind_where_a_stream_is_read_is_the_readers(busy: LLM, error: BaseException) -> None:
    """Thrown into the stream at its second token, as an interrupt is, it cancels the request."""
    stream = busy.stream([3, 4], Sampling(max_tokens=40))
    next(stream)
    with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)) as caught:
        stream.throw(error)  # type: ignore[attr-defined]
    assert error in (caught.value, caught.value.__cause__)


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_an_error_of_any_kind_between_steps_is_the_callers(busy: LLM, error: BaseException) -> None:
    def act() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        busy.loop.between_steps(act)
    assert caught.value is error


@pytest.mark.parametrize("when", ["token", "prompt", "stop string"])
def test_a_panic_of_the_tokenizers_library_ends_its_own_request(when: str) -> None:
    """Its decoder strips nine spaces from a token that has one, which ends in an index out of bounds."""
    words = {"word" + str(i): i for i in range(VOCAB)}
    spaces = greedy([3, 4], 6)[2]
    words = {word if i != spaces else " ": i for word, i in words.items()}
    core = tokenizers.Tokenizer(models.WordLevel(words, unk_token=" "))
    core.decoder = decoders.Strip(" ", 0, 9)
    with make_llm(core, eos=(), rows=4) as llm:
        others = llm.submit_all([[9], [11]], Sampling(max_tokens=1))
        if when == "prompt":
            with pytest.raises(ArtifactError, match=r"tokenizer/tokenizer\.json: could not decode tokens"):
                llm.generate([spaces], Sampling(max_tokens=1))
        else:
            sampling = Sampling(max_tokens=6, stop=["never"] if when == "stop string" else [])
            got = raised_by(llm.submit([3, 4], sampling).result)
            assert isinstance(got, ArtifactError) and "tokenizer/tokenizer.json: could not decode tokens" in str(got)
            assert "index out of bounds" in str(got) and "build the engine again" in str(got)
            assert isinstance(raised_by(lambda: list(llm.stream([3, 4], sampling))), ArtifactError)
        assert all(other.result().token_ids for other in others)
        assert llm.generate([9], Sampling(max_tokens=1))[0].token_ids == tuple(greedy([9], 1))
