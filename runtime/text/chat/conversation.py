"""A conversation that is to become a prompt, with everything else that its chat template is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.chat.plain_data import plain_copy

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients send the reasoning that precedes an answer, and templates read it; the first is the usual one."""

RESERVED = (
    "messages",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
)
"""Names that no entry of `chat_template_kwargs` can have, since they are arguments of their own."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages, and what goes with them; the fields are the arguments of `LLM.apply_chat_template`.

    messages: objects with a text "role", and "content" or whatever else the template reads.
    tools: JSON schemas of the functions that the model may call.
    documents: objects, mostly with "title" and "text", that the model is to answer from.
    chat_template: name of one of the engine's templates, or the text of another one; None for the engine's choice.
    add_generation_prompt: whether the prompt ends with the opening of an answer.
    continue_final_message: whether the prompt ends within the last message, which the model goes on with: True for its
        content, or the name of the key to go on with.
    chat_template_kwargs: variables of the template, such as enable_thinking.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[dict[str, Any]] | None = None
    documents: Sequence[dict[str, Any]] | None = None
    chat_template: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool | str = False
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_messages(self.messages)
        _check_tools(self.tools)
        _check_objects("documents", self.documents)
        _check_variables(self.chat_template_kwargs)
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            got = type(self.chat_template).__name__
            raise RequestError(f"chat_template: got {got}, expected a template's name or text")
        if not isinstance(self.continue_final_message, bool | str):
            got = type(self.continue_final_message).__name__
            raise RequestError(
                f"continue_final_message: got {got}, expected True, False or the name of a message's key"
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "continue_final_message: got add_generation_prompt too, which opens another message; "
                "pass add_generation_prompt=False"
            )

    def given(self) -> list[str]:
        """Return the names of everything with content that a template might ignore."""
        lists = [name for name in ("tools", "documents") if getattr(self, name)]
        return [*lists, *self.chat_template_kwargs]

    def variables(self) -> dict[str, Any]:
        """Return the template's variables: plain copies, so that neither a template nor its caller can change them."""
        return {
            **plain_copy(self.chat_template_kwargs, "chat_template_kwargs"),
            "messages": [_complete(message) for message in plain_copy(list(self.messages), "messages")],
            "tools": plain_copy(self.tools if self.tools is None else list(self.tools), "tools"),
            "documents": plain_copy(self.documents, "documents"),
            "add_generation_prompt": self.add_generation_prompt,
        }


def _complete(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message as transformers shows it to templates: without nulls, its reasoning under the usual names."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _check_messages(messages: Any) -> None:
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not len(messages):
        got = "no messages" if isinstance(messages, list | tuple) else type(messages).__name__
        raise RequestError(
            f'chat: got {got}, expected a list of messages such as {{"role": "user", "content": "Hello"}}'
        )
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f'chat: messages[{index}]: got {message!r}, expected an object with a text "role"')


def _check_tools(tools: Any) -> None:
    if isinstance(tools, list | tuple):
        for index, tool in enumerate(tools):
            if callable(tool):
                raise RequestError(
                    f"tools[{index}]: got a function, expected its JSON schema; pass what "
                    "transformers.utils.get_json_schema makes of it"
                )
    _check_objects("tools", tools)


def _check_objects(name: str, objects: Any) -> None:
    if objects is None:
        return
    if not isinstance(objects, list | tuple):
        raise RequestError(f"{name}: got {type(objects).__name__}, expected a list of objects")
    for index, item in enumerate(objects):
        if not isinstance(item, dict):
            raise RequestError(f"{name}[{index}]: got {type(item).__name__}, expected an object")


def _check_variables(variables: Any) -> None:
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise RequestError(
            f"chat_template_kwargs: got {variables!r}, expected an object of the template's variables by name"
        )
    if reserved := [name for name in variables if name in RESERVED]:
        raise RequestError(
            f"chat_template_kwargs: got {reserved[0]}, which is an argument of its own; pass it there, not as a variable"
        )
