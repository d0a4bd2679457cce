"""Tests that a client's mistake gives that client an error with a clear text, and that all others are still served."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import LLM, Sampling
from tests.support.serving.streams import MODEL, Stream, ask, generate, post
from tests.support.serving.tritonserver import Server

pytestmark = [pytest.mark.native, pytest.mark.slow]


def texts(*values: bytes) -> np.ndarray:
    return np.array(values, np.object_)


BY_STREAM: list[tuple[dict[str, Any], str]] = [
    ({"text_input": ""}, "text_input: got nothing, expected a prompt"),
    ({"text_input": texts(b"a\xff")}, "text_input: got byte 0xff at position 1, expected text in UTF-8"),
    ({"stop": texts(b"\xc3")}, "stop: got byte 0xc3"),
    ({"temperature": float("nan")}, "Sampling.temperature: got nan, expected a number from 0"),
    ({"top_p": float("inf")}, "Sampling.top_p: got inf"),
    ({"max_tokens": 10**12}, "Sampling.max_tokens: got 1000000000000 after a prompt of"),
    ({"max_tokens": -1}, "Sampling.max_tokens: got -1"),
    ({"max_tokens": np.array([1.5], np.float32)}, "data-type"),
    ({"temperature": np.array([1], np.int64)}, "data-type"),
    ({"text_input": np.array([1], np.int64)}, "data-type"),
    ({"max_tokens": np.array([1, 2])}, "shape"),
    ({"max_tokens": np.array([[1]])}, "shape"),
    ({"text_input": "7 " * 5000}, "the context limit"),
    ({"text_input": "7 " * 500_000}, "the context limit, can hold; shorten the prompt"),
    ({"input_ids": [1]}, "prompt: got text_input and input_ids"),
    ({"conditions": ["mood=calm"]}, "Sampling.conditions: got 'mood', and the engine has the conditions none"),
    (
        {"logits_processors": ['{"ban": {}}']},
        "Sampling.logits_processors: got 'ban', expected one that is installed (bad_words, begin_suppress_tokens, ",
    ),
    ({"logprobs": 10**6}, "Sampling.logprobs: got 1000000"),
]


@pytest.mark.parametrize(("values", "message"), BY_STREAM, ids=range(len(BY_STREAM)))
def test_refused_in_a_stream(server: Server, values: dict[str, Any], message: str) -> None:
    answer = ask(server, **{"text_input": "1 + 1", "stream": True, **values})
    assert answer.error is not None and message in answer.error
    assert len(answer.responses) == 1


def test_unknown_names(server: Server) -> None:
    with Stream(server) as stream:
        answer = stream.answer(stream.send({"beam_width": 2}, text_input="1"))
        assert answer.error is not None and "beam_width: unknown parameter; known: text_input" in answer.error
        ids = np.array([10**7])
        answer = stream.answer(stream.send(input_ids=ids))
        assert answer.error is not None and "prompt: got token id 10000000 at position 0" in answer.error
        assert stream.answer(stream.send(text_input="1", max_tokens=2)).error is None, "the stream itself goes on"
    with pytest.raises(ValueError, match="400 beam_width: unknown parameter"):
        generate(server, text_input="1", beam_width=2)
    with pytest.raises(ValueError, match="400 beam_width: unknown parameter"):
        generate(server, text_input="1", parameters={"beam_width": 2})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"text_input": ""}', "400 text_input: got nothing"),
        (b'{"text_input": "a\xff"}', "400 text_input: got byte 0xff at position 1"),
        (b'{"text_input": "a", "temperature": NaN}', "400 Sampling.temperature: got nan"),
        (b'{"text_input": "a", "max_tokens": 1000000000000}', "400 Sampling.max_tokens: got 1000000000000"),
        (b'{"text_input": "a", "max_tokens": "5"}', "Unable to parse"),
        (b'{"text_input": 5}', "Unable to parse"),
        (b'{"text_input": ["a", "b"]}', "proper shape"),
        (b'{"text_input": "a", "seed": -1}', "Unable to parse"),
        (b'{"max_tokens": 5}', "400 prompt: got none, expected one of text_input, input_ids, messages"),
        (b'{"messages": "hello"}', "400 messages: not valid JSON"),
        (b'{"text_input": "a"', "failed to parse"),
        (b"[]", "non-object"),
    ],
)
def test_refused_over_http(server: Server, body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[45]") as caught:
        post(server, f"/v2/models/{MODEL}/generate", body)
    assert message in str(caught.value)


def test_others_are_unharmed(server: Server, llm: LLM) -> None:
    """Streams run while every bad request is made; each still gets what it gets alone."""
    expected = llm.generate([[60 + n] for n in range(4)], Sampling(max_tokens=900, ignore_eos=True))
    answers: list[Any] = [None] * 4

    def read(n: int) -> None:
        answers[n] = ask(server, input_ids=[60 + n], max_tokens=900, ignore_eos=True, stream=True)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    refused = 0
    while any(thread.is_alive() for thread in threads):
        values, _ = BY_STREAM[refused % len(BY_STREAM)]
        refused += ask(server, **{"text_input": "1 + 1", "stream": True, **values}).error is not None
    for thread in threads:
        thread.join()
    assert refused >= 3
    assert [answer.token_ids for answer in answers] == [each.token_ids for each in expected]
    assert json.loads(server.read(f"/v2/models/{MODEL}"))["name"] == MODEL
