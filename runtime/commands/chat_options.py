"""The options of `enginewright run` that make conversations of its prompts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enginewright.runtime.artifact.files.json_file import parse_json, read_json
from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.chat.conversation import Conversation

_IMPLYING = ("chat", "system", "messages", "tools", "documents", "chat_template", "chat_template_kwargs")
_NOT_GIVEN: tuple[object, ...] = (None, False, [])


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--chat",
        action="store_true",
        help=f"send each prompt as a user's message (chat template); implied by {_flags(_IMPLYING[1:])}",
    )
    parser.add_argument("--system", metavar="TEXT", help="system message before each prompt")
    parser.add_argument(
        "--messages",
        action="append",
        default=[],
        metavar="FILE",
        help="a whole conversation from a JSON file, a list of messages; repeatable",
    )
    parser.add_argument("--tools", metavar="FILE", help="JSON file: a list of the schemas of tools that may be called")
    parser.add_argument("--documents", metavar="FILE", help="JSON file: a list of documents to answer from")
    parser.add_argument(
        "--chat-template",
        metavar="NAME_OR_TEXT",
        help="name of one of the engine's templates, or the text of another one",
    )
    parser.add_argument(
        "--chat-template-kwargs", metavar="JSON", help='the template\'s variables, such as {"enable_thinking": false}'
    )


def make_conversations(texts: Sequence[str], arguments: argparse.Namespace) -> list[str | Conversation]:
    """Return the texts, as conversations if an option says so, and then the conversations from files.

    Raises:
        RequestError: a file or an option is not the JSON that it has to be.
    """
    if all(getattr(arguments, name) in _NOT_GIVEN for name in _IMPLYING):  # an empty text is given, too
        return list(texts)
    if arguments.system is not None and not texts:
        raise RequestError("--system: got no prompt to go before; write the system message into the file of --messages")
    variables = arguments.chat_template_kwargs
    shared: dict[str, Any] = {
        "tools": None if arguments.tools is None else _read_list(arguments.tools, "schemas of tools"),
        "documents": None if arguments.documents is None else _read_list(arguments.documents, "documents"),
        "chat_template": arguments.chat_template,
        "chat_template_kwargs": _parse("--chat-template-kwargs", "{}" if variables is None else variables),
    }
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    asked = [[*system, {"role": "user", "content": text}] for text in texts]
    read = [_read_list(name, 'messages such as {"role": "user", "content": "Hello"}') for name in arguments.messages]
    return [Conversation(messages=messages, **shared) for messages in (*asked, *read)]


def _flags(names: Sequence[str]) -> str:
    flags = [f"--{name.replace('_', '-')}" for name in names]
    return f"{', '.join(flags[:-1])} and {flags[-1]}"


def _read_list(name: str, kind: str) -> list[Any]:
    """Return the list in a JSON file; the error for anything else names the file and what the list is of."""
    value = read_json(Path(name), RequestError, "correct it")
    if not isinstance(value, list):
        raise RequestError(
            f"{name}: got a JSON {type(value).__name__}, expected a list of {kind}; write the list alone"
        )
    return value


def _parse(where: str, text: str | bytes) -> Any:
    return parse_json(text, where, RequestError, "correct it")
