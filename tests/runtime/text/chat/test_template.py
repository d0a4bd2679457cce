"""Tests of chat templates: what they find, what is refused, and which names of errors tell why."""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.chat.template import ChatTemplate
from enginewright.runtime.text.chat.template_set import TemplateSet

MESSAGES = [{"role": "user", "content": "the cat"}]
TOOLS = [{"type": "function", "function": {"name": "find"}}]
WHERE = "tokenizer/chat_template.jinja"


def render(source: str, messages: Any = MESSAGES, **given: Any) -> str:
    """The text that a template writes."""
    template = ChatTemplate(source, {"bos_token": "<s>"}, where=WHERE)
    return template.render(Conversation(messages=messages, **given))


class Role(enum.StrEnum):
    USER = "user"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}", "<s>the cat"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("a{% generation %}{{ messages[0].role }}{% endgeneration %}b", "auserb"),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
        ("{% if x is defined %}{{ x }}{% else %}none{% endif %}", "none"),
        ("{{ tools is none }}{{ documents is none }}{{ tools is defined }}", "TrueTrueTrue"),
        ("  {% if true %}\nline\n  {% endif %}\nend", "line\nend"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = 5 %}{{ ns.n }}", "5"),
    ],
)
def test_templates_find_what_they_are_written_for(source: str, expected: str) -> None:
    assert render(source) == expected


def test_null_content_is_as_if_it_were_missing() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": None}]}
    assert render("{{ messages[0].content is defined }}", [call]) == "False"
    assert render("{{ messages[0] }}", [call]) == "{'role': 'assistant', 'tool_calls': [{'id': None}]}"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_found_under_either_name(name: str) -> None:
    source = "{{ messages[0].reasoning_content }},{{ messages[0].thinking }}"
    assert render(source, [{"role": "assistant", "content": "4", name: "2 + 2"}]) == "2 + 2,2 + 2"


def test_templates_know_the_date_and_the_callers_variables() -> None:
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.now().year), str(datetime.now().year - 1)}
    assert render("{{ enable_thinking }}", chat_template_kwargs={"enable_thinking": False}) == "False"
    assert render("{{ bos_token }}", chat_template_kwargs={"bos_token": "<x>"}) == "<x>"


def test_values_are_plain() -> None:
    messages = ({"role": Role.USER, "content": [{"n": np.int64(3), "x": np.float32(0.5), "yes": np.bool_(True)}]},)
    assert render("{{ messages }}", messages) == "[{'role': 'user', 'content': [{'n': 3, 'x': 0.5, 'yes': True}]}]"
    assert isinstance(messages[0]["role"], Role), "the caller's messages are as they were"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{% for m in messages %}{% generation %}{% break %}{% endgeneration %}{% endfor %}", "SyntaxError"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ 2.0 ** 9999 }}", "OverflowError"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ dict.__call__.__globals__ }}", "SecurityError"),
        ("{{ namespace(_x=1) }}", "SecurityError"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "SecurityError"),
        ("{{ missing.field }}", "UndefinedError"),
        ("{% include 'other' %}", "TypeError"),
    ],
)
def test_a_failing_template_is_a_request_error(source: str, message: str) -> None:
    with pytest.raises(RequestError, match=rf"chat_template.jinja: .*{message}"):
        render(source)


@pytest.mark.parametrize("messages", [[], ["hello"], [{"content": "x"}], [{"role": 3}], "text", 7, iter(MESSAGES)])
def test_malformed_messages_are_refused(messages: Any) -> None:
    with pytest.raises(RequestError, match="chat: "):
        render("x", messages)


def nest(depth: int) -> list[Any]:
    """Lists within lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


READS_ALL = "{{ messages }}{{ tools }}{{ documents }}{{ x }}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tools": {"name": "find"}}, "tools: got dict, expected a list of objects"),
        ({"tools": ["find"]}, r"tools\[0\]: got str, expected an object"),
        ({"tools": [nest]}, r"tools\[0\]: got a function, expected its JSON schema; pass what transformers"),
        ({"documents": ["text"]}, r"documents\[0\]: got str, expected an object"),
        ({"documents": [{"text": object()}]}, r"documents\[0\].text: got object, expected text, a number"),
        ({"chat_template_kwargs": {"x": nest(5000)}}, "chat_template_kwargs: got values nested too deeply"),
        ({"chat_template_kwargs": ["x"]}, "chat_template_kwargs: got .*, expected an object"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs: got tools, which is an argument of its own"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs: got messages, which is an argument"),
        ({"chat_template": 3}, "chat_template: got int"),
        ({"continue_final_message": 3}, "continue_final_message: got int"),
        ({"continue_final_message": True}, "continue_final_message: got add_generation_prompt too"),
    ],
)
def test_malformed_arguments_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        render(READS_ALL, **given)


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("{{ messages }}", {"tools": TOOLS}, "got tools, expected no more than .* reads, which is messages; leave"),
        ("{{ messages }}{{ tools }}", {"documents": [{}]}, "got documents, .* which is messages, tools; leave out"),
        ("{% set tools = [] %}{{ tools }}{{ messages }}", {"tools": TOOLS}, "got tools"),
        ("{{ messages }}", {"chat_template_kwargs": {"enable_thinking": True}}, "got enable_thinking, expected"),
    ],
)
def test_what_a_template_does_not_read_is_refused(source: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"{WHERE}: {message}"):
        render(source, **given)
    assert render("{{ messages[0].role }}", tools=[], documents=[]) == "user", "nothing is lost of empty lists"


def continuing(source: str, last: Any, key: bool | str = True) -> str:
    """The prompt that ends within the last message."""
    return render(source, [*MESSAGES, last], add_generation_prompt=False, continue_final_message=key)


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"


def test_the_last_message_is_continued() -> None:
    assert continuing(TURNS, {"role": "assistant", "content": " It sat "}) == "<user>the cat</><assistant> It sat "
    trimmed = TURNS.replace("m.content", "m.content | trim")
    assert continuing(trimmed, {"role": "assistant", "content": " It sat "}) == "<user>the cat</><assistant>It sat"
    think = "{% for m in messages %}<{{ m.thinking }}>{{ m.content }}{% endfor %}"
    assert continuing(think, {"role": "assistant", "reasoning": "hm"}, "reasoning") == "<>the cat<hm"


@pytest.mark.parametrize(
    ("source", "last", "key", "message"),
    [
        (TURNS, {"role": "assistant"}, True, "got a last message without 'content'"),
        (TURNS, {"role": "assistant", "note": "x"}, "note", "got 'note', which the chat template does not read"),
        (TURNS, {"role": "assistant", "content": [{"type": "image"}]}, True, "no part with a text"),
        (TURNS, {"role": "assistant", "content": ["x"]}, True, "a part of content that is str"),
        (TURNS, {"role": "assistant", "content": 3}, True, "got int to go on with"),
        ("{{ messages[0].content }}", {"role": "assistant", "content": "x"}, True, "changes or leaves out"),
        (TURNS + "{{ messages[-1].content }}", {"role": "assistant", "content": "x"}, True, "more than once"),
        (TURNS, {"role": "assistant", "content": None}, True, "without 'content'"),
    ],
)
def test_what_cannot_be_continued(source: str, last: Any, key: bool | str, message: str) -> None:
    with pytest.raises(RequestError, match=f"continue_final_message: .*{message}"):
        continuing(source, last, key)


@pytest.fixture
def choose() -> Callable[..., str]:
    """Renders through one of several templates."""
    templates = TemplateSet({"rag": "{{ documents }}", "other": "x"}, {}, where="tokenizer")
    return lambda **given: templates.render(Conversation(messages=MESSAGES, **given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "tokenizer: got several chat templates and no default, expected a choice; pass one of rag, other"),
        ({"chat_template": "rga"}, r"chat_template: got 'rga', expected the name of .*\(rag, other\), or the text"),
        ({"chat_template": ""}, "chat_template: got ''"),
        ({"chat_template": "{% x %}"}, "chat_template: is no valid chat template"),
        ({"chat_template": "other", "tools": TOOLS}, "tokenizer: 'other': got tools, expected .* which is nothing"),
    ],
)
def test_choices_that_are_refused(choose: Callable[..., str], given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        choose(**given)
    assert choose(chat_template="rag", documents=[{"text": "x"}]) == "[{'text': 'x'}]"


def test_an_engine_without_templates_takes_the_callers() -> None:
    none = TemplateSet({}, {}, where="tokenizer")
    with pytest.raises(RequestError, match="chat: the engine's tokenizer has no chat template"):
        none.render(Conversation(messages=MESSAGES))
    assert none.render(Conversation(messages=MESSAGES, chat_template="{{ messages[0].content }}")) == "the cat"
