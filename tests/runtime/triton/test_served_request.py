"""Tests of the reading of Triton requests: every input, and every way to get one wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from enginewright.runtime import LLM, RequestError, Sampling
from enginewright.runtime.text.tokenizer import Tokenizer
from enginewright.runtime.triton.ports import INPUTS, SAMPLING
from enginewright.runtime.triton.served_request import ServedRequest, read_request

Make = Callable[..., LLM]
TEXT = {"text_input": np.array([b"the cat"], np.object_)}


@pytest.fixture
def llm(make_toy: Make) -> LLM:
    return make_toy()


def ask(llm: LLM, parameters: dict[str, Any] | None = None, **tensors: Any) -> ServedRequest:
    return read_request(llm, {**TEXT, **tensors}, parameters or {})


def texts(*values: bytes) -> np.ndarray:
    return np.array(values, np.object_)


def test_every_sampling_field_that_has_an_input_arrives(llm: LLM) -> None:
    wanted = Sampling(
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.01,
        typical_p=0.8,
        epsilon_cutoff=0.001,
        eta_cutoff=0.002,
        repetition_penalty=1.1,
        presence_penalty=-0.3,
        frequency_penalty=0.2,
        seed=2**64 - 1,
        max_tokens=7,
        stop=["a", "ö"],
        stop_token_ids=[3, 4],
        logprobs=2,
        ignore_eos=True,
        skip_special_tokens=False,
        vector="calm",
        vector_scale=0.5,
        adapter="terse",
        adapter_scale=2.0,
        model_defaults=False,
    )
    kinds = {"STRING": np.object_, "BOOL": np.bool_, "INT64": np.int64, "UINT64": np.uint64, "FP32": np.float32}
    tensors = {}
    for port in INPUTS:
        if port.name in SAMPLING:
            value = getattr(wanted, port.name)
            values = list(value) if isinstance(value, tuple) else [value]
            tensors[port.name] = np.array([v.encode() if isinstance(v, str) else v for v in values], kinds[port.type])
    assert set(tensors) == {*vars(wanted)} - {"logit_bias", "conditions", "logits_processors"}
    assert ask(llm, **tensors).sampling == wanted, "0.7 is 0.7, though it came in single precision"
    assert ask(llm) == ServedRequest(prompt="the cat", sampling=Sampling())


def test_a_processor_of_the_models_own_can_be_switched_off(llm: LLM) -> None:
    got = ask(llm, {"logits_processors": '{"suppress_tokens": null, "no_repeat_ngram": {"size": 3}}'})
    assert got.sampling == Sampling(logits_processors={"suppress_tokens": None, "no_repeat_ngram": {"size": 3}})


def test_parameters_stand_for_inputs(llm: LLM) -> None:
    got = ask(llm, {"temperature": 1, "stream": True, "stop": "x", "max_tokens": 3, "priority": -2, "timeout_ms": 250})
    assert got.sampling == Sampling(temperature=1, stop=["x"], max_tokens=3)
    assert (got.stream, got.priority, got.timeout) == (True, -2, 0.25)


def test_names_of_other_backends(llm: LLM) -> None:
    got = ask(
        llm,
        lora_name=texts(b"terse"),
        stop_words=texts(b"x"),
        end_id=np.array([3]),
        random_seed=np.array([5], np.uint64),
    )
    assert got.sampling == Sampling(stop=["x"], stop_token_ids=[3], seed=5, adapter="terse")


def test_a_batch_dimension_of_one(llm: LLM) -> None:
    tensors = {
        "text_input": texts(b"the cat")[None],
        "max_tokens": np.array([[3]], np.int32),
        "stop": texts(b"x", b"y")[None],
    }
    assert read_request(llm, tensors, {}) == ServedRequest(
        prompt="the cat", sampling=Sampling(max_tokens=3, stop=["x", "y"])
    )


def test_the_shorter_of_two_time_outs_counts(llm: LLM) -> None:
    assert read_request(llm, TEXT, {}, 2_500_000).timeout == 2.5
    assert read_request(llm, TEXT, {"timeout_ms": 100}, 2_500_000).timeout == 0.1


def test_token_ids_and_conversations(llm: LLM) -> None:
    assert read_request(llm, {"input_ids": np.array([5, 6])}, {}).prompt == [5, 6]
    with pytest.raises(RequestError, match="no chat template"):
        read_request(llm, {"messages": texts(b'[{"role": "user", "content": "hi"}]')}, {})


def test_a_conversation_goes_through_the_template(tiny_chat: LLM) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    got = read_request(tiny_chat, {"messages": texts(json.dumps(messages).encode())}, {})
    assert got.prompt == tiny_chat.apply_chat_template(messages)


def test_what_goes_with_a_conversation(tiny_chat: LLM) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    more: dict[str, Any] = {
        "tools": [{"name": "find"}],
        "documents": [{"text": "page"}],
        "chat_template_kwargs": {"mood": "glad"},
    }
    sent = {name: json.dumps(value) for name, value in {"messages": messages, **more}.items()}
    got = read_request(tiny_chat, {name: texts(text.encode()) for name, text in sent.items()}, {})
    assert got.prompt == tiny_chat.apply_chat_template(messages, **more)
    assert got.prompt != tiny_chat.apply_chat_template(messages), "they are in the prompt"
    assert read_request(tiny_chat, {}, sent).prompt == got.prompt


@pytest.mark.parametrize("name", ["tools", "documents", "chat_template_kwargs"])
def test_what_goes_with_conversations_alone(tiny_chat: LLM, name: str) -> None:
    with pytest.raises(RequestError, match=f"{name}: got it with text_input, expected it with messages"):
        read_request(tiny_chat, {**TEXT, name: texts(b"[]")}, {})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tools": b"{}"}, "tools: got dict, expected a JSON list"),
        ({"tools": b"[3]"}, r"tools\[0\]: got int, expected an object"),
        ({"documents": b"["}, "documents: not valid JSON"),
        ({"documents": b"[" + b"9" * 5000 + b"]"}, "documents: not valid JSON"),
        ({"chat_template_kwargs": b"[]"}, "chat_template_kwargs: got list, expected a JSON object"),
        ({"chat_template_kwargs": b'{"tools": []}'}, "chat_template_kwargs: got tools, which is an argument"),
        ({"chat_template_kwargs": b'{"colour": 1}'}, "test: got colour, expected no more than the chat template reads"),
        ({"tools": b" " * 10**7}, "tools: got 10000000 characters, more than"),
    ],
)
def test_what_goes_with_a_conversation_and_is_refused(tiny_chat: LLM, more: dict[str, bytes], message: str) -> None:
    tiny_chat.capacity = type(tiny_chat.capacity)(rows=1, context=10**5, step_tokens=8, logit_rows=4, tiles=(64,))
    sent = {"messages": b'[{"role": "user", "content": "hi"}]', **more}
    with pytest.raises(RequestError, match=message):
        read_request(tiny_chat, {name: texts(text) for name, text in sent.items()}, {})


@pytest.fixture
def tiny_chat(make_toy: Make, byte_tokenizer: tokenizers.Tokenizer, tmp_path: Path) -> LLM:
    """A toy whose template writes the messages one after another, and then what goes with them."""
    from enginewright.runtime.text.chat.template_set import TemplateSet

    llm = make_toy()
    source = "{% for message in messages %}{{ message.content }}{% endfor %}{{ tools }}{{ documents }}{{ mood }}"
    llm.tokenizer = Tokenizer(byte_tokenizer, TemplateSet({"default": source}, {}, where="test"))
    return llm


BAD = [
    ({"foo": np.array([1])}, {}, "foo: unknown parameter; known: text_input, "),
    ({}, {"foo bar": 1}, "'foo bar': unknown parameter"),
    ({"text_input": texts(b"")}, {}, "text_input: got nothing, expected a prompt"),
    ({"text_input": texts()}, {}, r"text_input: got shape \[0\], expected one value"),
    ({"text_input": texts(b"a", b"b")}, {}, r"text_input: got shape \[2\], expected one value"),
    ({"text_input": texts(b"ab\xff")}, {}, "text_input: got byte 0xff at position 2, expected text in UTF-8"),
    ({"text_input": texts(b"\xed\xa0\x80")}, {}, "text_input: got byte 0xed"),  # a lone surrogate
    ({"text_input": texts(b"a " * 9999)}, {}, "more than 64 tokens, the context limit, can hold; shorten the prompt"),
    ({"stop": texts(b"a\xff")}, {}, "stop: got byte 0xff"),
    ({"stop": texts(b"")}, {}, "Sampling.stop: got ''"),
    ({"max_tokens": np.array([[1], [2]])}, {}, r"max_tokens: got shape \[2, 1\], expected one value"),
    ({"max_tokens": np.array([[1, 2]])}, {}, r"max_tokens: got shape \[2\], expected one value"),
    ({"max_tokens": np.array([0])}, {}, "Sampling.max_tokens: got 0, expected None or a whole number from 1 up"),
    ({"temperature": np.array([np.nan], np.float32)}, {}, "Sampling.temperature: got nan"),
    ({"temperature": np.array([np.inf], np.float32)}, {}, "Sampling.temperature: got inf"),
    ({"top_p": np.array([0], np.float32)}, {}, "Sampling.top_p: got 0.0"),
    (
        {"seed": np.array([1], np.uint64), "random_seed": np.array([1], np.uint64)},
        {},
        "random_seed: given twice, as seed",
    ),
    ({"seed": np.array([1], np.uint64)}, {"seed": 1}, "seed: given twice"),
    ({}, {"temperature": "hot"}, "temperature: got hot as a parameter, expected a number"),
    ({}, {"temperature": True}, "temperature: got True as a parameter"),
    ({}, {"max_tokens": 1.5}, "max_tokens: got 1.5 as a parameter, expected a whole number"),
    ({}, {"stream": 1}, "stream: got 1 as a parameter, expected true or false"),
    ({}, {"timeout_ms": 0}, "timeout_ms: got 0, expected 1 or more"),
    ({}, {"x" * 500: 1}, "unknown parameter"),
    ({"conditions": texts(b"calm")}, {}, "conditions: got calm, expected NAME=ENTRY or NAME=ENTRY"),
    ({"conditions": texts(b"a=b", b"a=c")}, {}, "conditions: got 'a=c', expected NAME=ENTRY .*each name once"),
    ({"conditions": texts(b"a=b*much")}, {}, "conditions: got the scale much, expected a number"),
    ({"logits_processors": texts(b"[1]")}, {}, r"logits_processors: got '\[1\]', expected a JSON object"),
    ({"logits_processors": texts(b'{"a": 1}')}, {}, "logits_processors: got .*expected a JSON object"),
    ({"logits_processors": texts(b'{"a":' * 100_000)}, {}, "logits_processors: got .*expected a JSON object"),
    ({"guided_decoding_guide": texts(b"")}, {}, "guided_decoding_guide: this version does not hold the output to"),
    ({}, {"guided_decoding_guide_type": "json"}, "guided_decoding_guide_type: .*; leave it out"),
    ({"return_num_input_tokens": np.array([1])}, {"return_num_input_tokens": 1}, "given twice"),
    ({}, {"return_num_output_tokens": 1}, "return_num_output_tokens: got 1 as a parameter, expected true or false"),
    ({"input_ids": np.array([1])}, {}, "prompt: got text_input and input_ids, expected one of"),
]


def test_what_the_responses_have(llm: LLM) -> None:
    yes, no = np.array([[True]]), np.array([[False]])
    assert ask(llm, return_num_input_tokens=yes, return_num_output_tokens=yes, exclude_input_in_output=yes) == ask(llm)
    assert ask(llm).left_out == frozenset() and ask(llm).echo == ""
    assert ask(llm, return_num_input_tokens=no).left_out == {"num_input_tokens"}
    assert ask(llm, {"return_num_output_tokens": False}).left_out == {"num_output_tokens"}
    assert ask(llm, exclude_input_in_output=no).echo == "the cat"
    with pytest.raises(RequestError, match="exclude_input_in_output: got false with a prompt that is not text"):
        read_request(llm, {"input_ids": np.array([5]), "exclude_input_in_output": no}, {})


def test_conditions_and_processors_come_by_name(llm: LLM) -> None:
    tensors = {
        "conditions": texts(b"steering=calm", b"tone=dry*0.5"),
        "logits_processors": texts(b'{"ban": {"ids": [3]}}'),
    }
    sampling = ask(llm, **tensors).sampling
    assert sampling.conditions == {"steering": "calm", "tone": ("dry", 0.5)}
    assert sampling.logits_processors == {"ban": {"ids": [3]}}


@pytest.mark.parametrize(("tensors", "parameters", "message"), BAD, ids=range(len(BAD)))
def test_what_is_refused(llm: LLM, tensors: dict[str, Any], parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        ask(llm, parameters, **tensors)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[", "messages: not valid JSON"),
        (b'{"role": "user"}', "messages: got dict, expected a JSON list"),
        (b"[" * 50_000, "messages: "),
        (b"[1]", r"messages\[0\]: got 1"),
    ],
)
def test_conversations_that_are_refused(tiny_chat: LLM, text: bytes, message: str) -> None:
    tiny_chat.capacity = type(tiny_chat.capacity)(rows=1, context=10**6, step_tokens=8, logit_rows=4, tiles=(64,))
    with pytest.raises(RequestError, match=message):
        read_request(tiny_chat, {"messages": texts(text)}, {})


def test_no_prompt_and_no_tokenizer(llm: LLM) -> None:
    with pytest.raises(RequestError, match="prompt: got none, expected one of text_input, input_ids, messages"):
        read_request(llm, {}, {})
    with pytest.raises(RequestError, match="input_ids: got nothing"):
        read_request(llm, {"input_ids": np.array([], np.int64)}, {})
    llm.tokenizer = None
    with pytest.raises(RequestError, match="no tokenizer; send input_ids instead"):
        ask(llm)
