"""Chat templates: Jinja templates that turn a conversation into the text that the model was trained to answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from enginewright.runtime.errors import RequestError


class ChatTemplate:
    """A chat template, run in a sandbox: it can read its variables, but cannot change them or reach anything else.

    Created by `Tokenizer.load`.

    source: the template's text.
    special: the tokenizer's special tokens by name, such as bos_token.
    where: the file that the template is from, for error messages.
    """

    def __init__(self, source: str, special: Mapping[str, str], *, where: str) -> None:
        self._source = source
        self._special = special
        self._where = where
        self._template: jinja2.Template | None = None

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """Return the conversation as text, which ends where the answer begins.

        Raises:
            RequestError: the messages are malformed, or the template fails on them.
        """
        _check(messages)
        values = {**self._special, "messages": list(messages), "add_generation_prompt": True, **variables}
        try:
            if self._template is None:
                self._template = _environment().from_string(self._source)
            return self._template.render(values)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as e:
            raise RequestError(
                f"{self._where}: the chat template fails on these messages ({type(e).__name__}: {e}); "
                f"change the messages, or pass a plain prompt"
            ) from e


def _check(messages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(messages, str) or not len(messages):
        got = "text" if isinstance(messages, str) else "no messages"
        raise RequestError(
            f'chat: got {got}, expected a list of messages such as {{"role": "user", "content": "Hello"}}'
        )
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f'chat: messages[{index}]: got {message!r}, expected an object with a text "role"')


def _environment() -> jinja2.Environment:
    """Return a Jinja environment with the functions and whitespace rules of Hugging Face, for which templates are written."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _reject
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(jinja2.ext.Extension):
    """The tag `{% generation %} ... {% endgeneration %}`, which marks the answer for training; here it has no effect."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the content of the block, unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return `value` as JSON, without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _reject(message: str) -> None:
    raise jinja2.TemplateError(message)
