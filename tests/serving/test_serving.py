"""Tests that a real tritonserver gives many clients at once the same tokens as the engine in this process."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from enginewright.runtime import LLM, Sampling, cli
from tests.support.serving import tritonserver
from tests.support.serving.streams import MODEL, Stream, ask, generate
from tests.support.serving.tritonserver import Installation, Server

pytestmark = [pytest.mark.native, pytest.mark.slow]

QUESTION = [{"role": "user", "content": "What is 47 + 385?"}]
SEEDED = Sampling(max_tokens=60, temperature=0.9, top_p=0.95, top_k=40, min_p=0.01, seed=11, repetition_penalty=1.1)


def as_values(sampling: Sampling) -> dict[str, object]:
    """The inputs that ask for this Sampling."""
    default = Sampling()
    return {name: value for name, value in vars(sampling).items() if value != getattr(default, name)}


def test_the_model_is_ready_within_seconds(installation: Installation, repository: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    with tritonserver.serve(installation, repository, tmp_path / "log") as server:
        assert server.is_ready(MODEL)
        assert time.monotonic() - start < 20
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=80), SEEDED, Sampling(max_tokens=40, logprobs=3)])
def test_a_stream_equals_this_process(server: Server, llm: LLM, sampling: Sampling) -> None:
    expected = llm.chat(QUESTION, sampling)
    answer = ask(server, messages=json.dumps(QUESTION), stream=True, **as_values(sampling))
    assert answer.error is None
    assert answer.token_ids == expected.token_ids
    assert answer.text == expected.text
    assert answer.finish_reason == expected.finish_reason
    last = answer.responses[-1].outputs
    assert last["num_input_tokens"] == [expected.prompt_tokens]
    assert last["num_output_tokens"] == [len(expected.token_ids)]
    if expected.logprobs is not None:
        got = [p for response in answer.responses for p in response.outputs["logprobs"]]
        assert got == pytest.approx([each.chosen for each in expected.logprobs], abs=1e-6)
        top = [row for response in answer.responses for row in response.outputs["top_token_ids"]]
        assert top == [[token for token, _ in each.top] for each in expected.logprobs]


def test_pieces_come_while_the_rest_is_computed(server: Server) -> None:
    start = time.perf_counter()
    answer = ask(server, input_ids=[60], max_tokens=2000, ignore_eos=True, stream=True)
    first, last = (response.at - start for response in (answer.responses[0], answer.responses[-1]))
    assert len(answer.token_ids) == 2000 and len(answer.responses) > 20
    assert first < last / 4


def test_token_ids_go_in_and_text_is_continued(server: Server, llm: LLM) -> None:
    ids = llm.apply_chat_template(QUESTION)
    assert (
        ask(server, input_ids=ids, max_tokens=30).token_ids == llm.generate([ids], Sampling(max_tokens=30))[0].token_ids
    )
    assert ask(server, text_input="12 + 3", max_tokens=9).text == llm.generate("12 + 3", Sampling(max_tokens=9))[0].text


def test_one_response_where_no_stream_is_asked_for(server: Server, llm: LLM) -> None:
    expected = llm.chat(QUESTION, Sampling(stop=["Answer"]))
    answer = ask(server, messages=json.dumps(QUESTION), stop=["Answer", "never"])
    assert len(answer.responses) == 1
    assert (answer.text, answer.token_ids, answer.finish_reason) == (expected.text, expected.token_ids, "stop")


def test_generate_over_http(server: Server, llm: LLM) -> None:
    expected = llm.chat(QUESTION)
    answer = generate(server, messages=json.dumps(QUESTION), parameters={"temperature": 0})
    assert answer["text_output"] == expected.text
    assert answer["token_ids"] == list(expected.token_ids)
    assert (answer["finish_reason"], answer["num_output_tokens"]) == ("stop", len(expected.token_ids))


def test_generate_stream_over_http(server: Server, llm: LLM) -> None:
    expected = llm.chat(QUESTION, SEEDED)
    values = as_values(SEEDED)
    answers = generate(server, path="generate_stream", messages=json.dumps(QUESTION), stream=True, **values)
    assert "".join(answer["text_output"] for answer in answers) == expected.text
    assert [answer.get("finish_reason") for answer in answers] == [None] * (len(answers) - 1) + [expected.finish_reason]


def test_the_names_of_other_backends(server: Server) -> None:
    answer = generate(
        server, text_input="1 + 2", max_tokens=5, temperature=1, random_seed=3, stop_words=["x"], end_id=7
    )
    assert (
        answer["text_output"]
        == generate(server, text_input="1 + 2", max_tokens=5, temperature=1, seed=3)["text_output"]
    )


def test_thirty_two_clients_at_once(server: Server, llm: LLM) -> None:
    prompts = [llm.apply_chat_template([{"role": "user", "content": f"What is {n} + {7 * n}?"}]) for n in range(32)]
    samplings = [Sampling(max_tokens=20 + n, temperature=0.8 * (n % 2), seed=n) for n in range(32)]
    expected = llm.generate(prompts, samplings)
    with ThreadPoolExecutor(32) as pool:
        answers = list(
            pool.map(lambda n: ask(server, input_ids=prompts[n], stream=True, **as_values(samplings[n])), range(32))
        )
    assert [answer.token_ids for answer in answers] == [each.token_ids for each in expected]
    assert [answer.text for answer in answers] == [each.text for each in expected]


def test_one_stream_carries_many_requests(server: Server, llm: LLM) -> None:
    expected = llm.chat(QUESTION)
    with Stream(server) as stream:
        names = [stream.send(messages=json.dumps(QUESTION), stream=True) for _ in range(8)]
        answers = [stream.answer(name) for name in names]
        assert {answer.token_ids for answer in answers} == {expected.token_ids}
        time.sleep(0.2)
        assert [stream.extra(name) for name in names] == [0] * 8, "the final response comes once"


def test_the_openai_frontends_requests(installation: Installation, engine: Path, llm: LLM, tmp_path: Path) -> None:
    """Triton's OpenAI frontend sends such a model shapes with a batch dimension, integers of 32 bits, and stop_words."""
    command = [
        "triton",
        str(engine),
        "--output",
        str(tmp_path / "models"),
        "--name",
        MODEL,
        "--openai",
        "--threads",
        "1",
    ]
    assert cli.main(command) == 0
    with tritonserver.serve(installation, tmp_path / "models", tmp_path / "log") as server:
        values = {
            "text_input": np.array([[b"12 + 3"]], np.object_),
            "stream": np.array([[True]]),
            "max_tokens": np.array([[9]], np.int32),
            "stop_words": np.array([[b"never", b"there"]], np.object_),
            "temperature": np.array([[0.7]], np.float32),
            "top_p": np.array([[0.9]], np.float32),
            "seed": np.array([[5]], np.uint64),
            "return_num_input_tokens": np.array([[True]]),
            "return_num_output_tokens": np.array([[True]]),
        }
        expected = llm.generate("12 + 3", Sampling(max_tokens=9, temperature=0.7, top_p=0.9, seed=5))[0]
        answer = ask(server, **values)
        assert (answer.error, answer.text, answer.finish_reason) == (None, expected.text, expected.finish_reason)
        assert answer.responses[-1].outputs["num_output_tokens"] == [[len(expected.token_ids)]]
        assert answer.responses[-1].outputs["num_input_tokens"] == [[expected.prompt_tokens]]
        echoed = ask(server, **values, exclude_input_in_output=np.array([[False]]))
        assert (echoed.error, echoed.text) == (None, "12 + 3" + expected.text)
        with_tool = {
            "guided_decoding_guide_type": np.array([[b"json_schema"]], np.object_),
            "guided_decoding_guide": np.array([[b'{"type": "object"}']], np.object_),
        }
        assert "guided_decoding_guide_type: this version does not" in str(ask(server, **values, **with_tool).error)
        adapter = ask(server, **values, lora_task_id=np.array([[1]], np.uint64))
        assert "lora_task_id" in str(adapter.error), "Triton refuses what is not declared"
        whole = generate(server, text_input="12 + 3", max_tokens=9, temperature=0.7, top_p=0.9, seed=5)
        assert whole["text_output"] == expected.text
