"""Conversations made by hypothesis: orderly ones, as clients send them, and wild ones, with whatever a message may hold."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            *("", " ", "Hello", " padded \n", "two\nlines\n\n", "世界 🙂 é", '"quoted" \\ {{ braces }} {% tag %}'),
            *("<think>\nx\n</think>\n\ny", "a</think>b", "/no_think", "/think be brief", "<|im_end|>", "</s>"),
            *("<tool_response>r</tool_response>", "<b>&amp;</b> 'x'", "long words " * 300),
        ]
    ),
)
NAMES = st.sampled_from(["find", "add_up", "brave_search", "code_interpreter", "größe"])
IDS = st.one_of(st.sampled_from(["abcdefghi", "call00001"]), TEXTS)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=4,
)
OBJECTS = st.dictionaries(st.sampled_from(["city", "n", "unit", "items"]), VALUES, max_size=3)

_SCALARS = st.sampled_from(["string", "integer", "number", "boolean", "object", ["string", "null"]])
_SCHEMAS = st.one_of(
    st.fixed_dictionaries({"type": _SCALARS}, optional={"description": TEXTS, "enum": st.just(["a", "b"])}),
    st.fixed_dictionaries({"type": st.just("array"), "items": st.fixed_dictionaries({"type": _SCALARS})}),
    st.fixed_dictionaries({"type": st.just("string"), "default": TEXTS, "nullable": st.booleans()}),
)
_PARAMETERS = st.fixed_dictionaries(
    {
        "type": st.just("object"),
        "properties": st.dictionaries(st.sampled_from(["city", "n", "unit"]), _SCHEMAS, max_size=3),
    },
    optional={"required": st.lists(st.sampled_from(["city", "n"]), max_size=2, unique=True)},
)
_FUNCTIONS = st.fixed_dictionaries(
    {"name": NAMES, "description": TEXTS, "parameters": _PARAMETERS}, optional={"return": OBJECTS, "strict": st.none()}
)
TOOLS = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": _FUNCTIONS}), max_size=3)
DOCUMENTS = st.lists(
    st.fixed_dictionaries({"title": TEXTS, "text": TEXTS}, optional={"doc_id": st.integers(0, 9), "more": VALUES}),
    max_size=3,
)

_ARGUMENTS = st.one_of(OBJECTS, st.dictionaries(NAMES, TEXTS, max_size=2), OBJECTS.map(json.dumps))
_CALLED = st.fixed_dictionaries({"name": NAMES, "arguments": _ARGUMENTS})
_CALLS = st.one_of(
    st.fixed_dictionaries({"id": IDS, "type": st.just("function"), "function": _CALLED}),
    st.fixed_dictionaries({"function": _CALLED}, optional={"id": st.none()}),
    _CALLED,
)
_TEXT_PARTS = st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS})
_PARTS = st.one_of(
    _TEXT_PARTS,
    _TEXT_PARTS,
    st.sampled_from([{"type": "image"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "audio"}]),
)
_REASONING = st.sampled_from(["reasoning_content", "thinking", "reasoning"])


def _message(
    role: str, content: SearchStrategy[Any], **optional: SearchStrategy[Any]
) -> SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"role": st.just(role), "content": content}, optional=optional)


@st.composite
def _rounds(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A question, calls of tools with their results, and an answer, each in its place."""
    contents = draw(st.sampled_from([TEXTS, TEXTS, TEXTS, st.lists(_TEXT_PARTS, min_size=1, max_size=2)]))
    messages = [draw(_message("user", contents))]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        call = {"role": "assistant", "tool_calls": draw(st.lists(_CALLS, min_size=1, max_size=2))}
        call |= draw(st.sampled_from([{}, {"content": None}, {"content": ""}, {"content": "Let me see."}]))
        messages.append(call)
        messages += [
            draw(_message("tool", TEXTS, tool_call_id=IDS, name=NAMES)) for _ in range(len(call["tool_calls"]))
        ]
    answer = draw(_message("assistant", contents))
    if draw(st.booleans()):
        answer[draw(_REASONING)] = draw(TEXTS)
    return [*messages, answer]


@st.composite
def _orderly(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages = [draw(_message("system", TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += draw(_rounds())
    return messages if draw(st.sampled_from([False, False, True])) else messages[:-1]


_CONTENTS = st.one_of(
    TEXTS, TEXTS, st.none(), st.lists(_PARTS, max_size=3), st.lists(TEXTS, max_size=2), OBJECTS, st.integers()
)
_WILD = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "user", "assistant", "assistant", "system", "tool", "developer", "x y"])},
    optional={
        "content": _CONTENTS,
        "name": st.one_of(st.none(), NAMES),
        "tool_calls": st.one_of(st.none(), st.lists(_CALLS, max_size=2)),
        "tool_call_id": IDS,
        "reasoning_content": st.one_of(st.none(), TEXTS),
        "thinking": st.one_of(st.none(), TEXTS, st.booleans()),
        "reasoning": TEXTS,
        "tools": st.one_of(st.none(), TEXTS),
        "extra": VALUES,
    },
)
MESSAGES = st.one_of(_orderly(), _orderly(), _orderly(), st.lists(_WILD, min_size=1, max_size=5))

VARIABLES: dict[str, SearchStrategy[Any]] = {
    "enable_thinking": st.booleans(),
    "thinking": st.one_of(st.none(), st.booleans()),
    "date_string": TEXTS,
    "custom_tools": TOOLS,
    "xml_tools": TOOLS,
    "builtin_tools": st.lists(NAMES, max_size=2),
    "tools_in_user_message": st.booleans(),
    "controls": OBJECTS,
    "citation_mode": st.sampled_from(["fast", "accurate"]),
    "model_identity": TEXTS,
    "reasoning_effort": st.sampled_from(["low", "high"]),
    "bos_token": TEXTS,
}
"""Variables of chat templates by name."""
