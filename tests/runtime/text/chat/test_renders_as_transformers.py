"""Compares rendered conversations with those of transformers, for templates of every shape that models come with.

The templates are in templates/, written for this test. Where transformers raises, an error of the product is expected.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.chat import template
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.chat.environment import compile_template
from enginewright.runtime.text.chat.template_set import TemplateSet
from enginewright.runtime.text.tokenizer import Tokenizer
from tests.support.runtime.conversations import DOCUMENTS, MESSAGES, TOOLS, VARIABLES

SOURCES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
THEIR_MARK = "CONTINUE_FINAL_MESSAGE_TAG"  # left in the text where a template writes the continued message twice
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

STEADY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],  # Phase.explain takes minutes
    suppress_health_check=list(HealthCheck),
)


@st.composite
def cases(draw: st.DrawFn, names: st.SearchStrategy[list[str]]) -> tuple[list[str], dict[str, Any]]:
    """Names of templates that `names` draws, and a conversation with as much of the rest as one of them reads."""
    chosen = draw(names)
    reads = frozenset[str]().union(*(compile_template(SOURCES[name]).reads for name in chosen))
    wanted = [name for name in sorted(reads & {"tools", "documents", *VARIABLES}) if draw(st.integers(0, 3))]
    return chosen, {
        "messages": draw(MESSAGES),
        "tools": draw(TOOLS) if "tools" in wanted else None,
        "documents": draw(DOCUMENTS) if "documents" in wanted else None,
        "variables": {name: draw(VARIABLES[name]) for name in wanted if name in VARIABLES and draw(st.booleans())},
        "continued": draw(st.sampled_from([*[False] * 7, True, "content", "reasoning_content", "thinking"])),
        "prompted": draw(st.booleans()),
    }


class Noon(datetime):
    """A clock that stands still, so that no date changes between two renderings."""

    @classmethod
    def now(cls, tz: Any = None) -> Noon:
        """The same moment at all times."""
        return cls(2026, 2, 3, 12, 0, 0, tzinfo=tz)


@pytest.fixture(scope="module")
def theirs(byte_tokenizer: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer, **SPECIAL)


@pytest.fixture(autouse=True)
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (template, chat_template_utils):
        monkeypatch.setattr(module, "datetime", Noon)


def for_template(source: str, given: dict[str, Any]) -> Conversation:
    """The conversation with as much of the rest as the template reads."""
    reads = compile_template(source).reads
    return Conversation(
        messages=given["messages"],
        tools=given["tools"] if "tools" in reads else None,
        documents=given["documents"] if "documents" in reads else None,
        add_generation_prompt=given["prompted"] and not given["continued"],
        continue_final_message=given["continued"],
        chat_template_kwargs={name: value for name, value in given["variables"].items() if name in reads},
    )


def ask_theirs(tokenizer: PreTrainedTokenizerFast, source: str | None, asked: Conversation, **options: Any) -> Any:
    """What transformers makes of the conversation; None if it raises, or writes a mark of its own."""
    fields = {field.name: getattr(asked, field.name) for field in dataclasses.fields(asked)}
    variables = fields.pop("chat_template_kwargs")
    fields |= {"conversation": fields.pop("messages"), "chat_template": source}
    try:
        found = tokenizer.apply_chat_template(**fields, **options, **variables)
    except Exception:  # a template raises what it likes
        return None
    return None if THEIR_MARK in str(found) else found


def ask_ours(source: str, asked: Conversation) -> str | None:
    """Our text of the conversation; None if it is refused."""
    try:
        return TemplateSet({"default": source}, SPECIAL, where="test").render(asked)
    except RequestError:
        return None


def compare(tokenizer: PreTrainedTokenizerFast, names: st.SearchStrategy[list[str]], examples: int) -> Counter[str]:
    """Compare `examples` conversations, each through the templates that `names` draws.

    Returns how many texts each template wrote, and under "refused" how many both sides refused.
    """
    counts: Counter[str] = Counter()

    @settings(STEADY, max_examples=examples)
    @given(cases(names))
    def check(case: tuple[list[str], dict[str, Any]]) -> None:
        chosen, given = case
        counts["conversations"] += 1
        for name in chosen:
            asked = for_template(SOURCES[name], given)
            expected = ask_theirs(tokenizer, SOURCES[name], asked, tokenize=False)
            assert ask_ours(SOURCES[name], asked) == expected, name
            counts["refused" if expected is None else name] += 1

    check()
    return counts


def test_a_few_conversations_through_every_template(theirs: PreTrainedTokenizerFast) -> None:
    counts = compare(theirs, st.just(list(SOURCES)), examples=12)
    assert sum(counts[name] for name in SOURCES) > 150


@pytest.mark.slow
def test_thousands_of_conversations(theirs: PreTrainedTokenizerFast) -> None:
    names = st.lists(st.sampled_from(sorted(SOURCES)), min_size=2, max_size=2, unique=True)
    counts = compare(theirs, names, examples=2_000)
    written = sum(counts[name] for name in SOURCES)
    print(
        f"{counts['conversations']:,} conversations, {len(SOURCES)} templates: "
        f"{written:,} equal texts, {counts['refused']:,} refused by both"
    )
    assert len(SOURCES) >= 30 and counts["conversations"] >= 2_000 and written >= 2_000
    assert min(counts[name] for name in SOURCES) >= 2, (
        "every template wrote texts"
    )  # cases also depend on the modules that are loaded


@settings(STEADY, max_examples=15)
@given(cases(st.just(["chatml", "llama3", "parts_with_names"])))
def test_token_ids(
    byte_tokenizer: tokenizers.Tokenizer,
    theirs: PreTrainedTokenizerFast,
    case: tuple[list[str], dict[str, Any]],
) -> None:
    chosen, given = case
    for source in map(SOURCES.__getitem__, chosen):
        asked = for_template(source, given)
        expected = ask_theirs(theirs, source, asked, return_dict=False)
        tokenizer = Tokenizer(byte_tokenizer, TemplateSet({"default": source}, SPECIAL, where="test"))
        try:
            ids = tokenizer.chat(asked)
        except RequestError:
            ids = None
        assert ids == expected


NAMED = {"default": "d{{ messages[0].content }}", "tool_use": "t{{ tools | length }}", "rag": "r{{ documents }}"}
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tools": [{"type": "function"}]},
        {"tools": []},
        {"documents": [{"text": "x"}], "chat_template": "rag"},
        {"chat_template": "default", "tools": []},
        {"chat_template": "{{ messages[0].role }}"},
    ],
)
def test_the_same_template_is_chosen(theirs: PreTrainedTokenizerFast, given: dict[str, Any]) -> None:
    asked = Conversation(messages=HELLO, **given)
    theirs.chat_template = dict(NAMED)
    try:
        expected = ask_theirs(theirs, asked.chat_template, asked, tokenize=False)
    finally:
        theirs.chat_template = None
    assert expected is not None
    assert TemplateSet(NAMED, SPECIAL, where="test").render(asked) == expected
