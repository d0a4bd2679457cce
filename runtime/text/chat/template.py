"""Chat templates: Jinja templates that turn a conversation into the text that the model was trained to answer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.chat.continuation import cut, mark_end
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.chat.render_pool import ask


class ChatTemplate:
    """A chat template, run in a sandbox: it can read its variables, but cannot change them or reach anything else.

    Compilation and rendering happen in another process, which has limits of time and memory.

    It gives the text that `apply_chat_template` of transformers gives.

    source: the template's text.
    special: the tokenizer's special tokens by name, such as bos_token.
    where: the template's name in error messages.
    """

    def __init__(self, source: str, special: Mapping[str, str], *, where: str) -> None:
        self._source = source
        self._special = special
        self._where = where

    def reads(self) -> frozenset[str]:
        """Return the names of the variables that the template reads.

        Raises:
            RequestError: it is no valid template.
        """
        try:
            return _reads_of(self._source)
        except _FailedError as failed:
            self._fail(failed.answer)

    def render(self, conversation: Conversation) -> str:
        """Return the conversation as text, which ends where the answer begins.

        Raises:
            RequestError: the template does not read a part of what it is given, or fails on it, or takes more than it may.
        """
        self._check_read(conversation)
        values = {**self._special, **conversation.variables()}
        key = conversation.continue_final_message
        last = mark_end(values["messages"], key, self._source) if key else ""
        try:
            answer = ask({"source": self._source, "values": values, "now": datetime.now().isoformat()})
        except (RecursionError, ValueError) as e:
            raise RequestError(
                f"{self._where}: got values that cannot be handed to the chat template ({e}); pass flatter and smaller ones"
            ) from e
        if "text" not in answer:
            self._fail(answer)
        prompt: str = answer["text"]
        return cut(prompt, last) if key else prompt

    def _fail(self, answer: dict[str, Any]) -> NoReturn:
        """Raise the error of a template that gave neither names nor a text."""
        what = f"({answer['kind']}: {answer['reason']})"
        if answer.get("stage") == "compile":
            raise RequestError(
                f"{self._where}: is no valid chat template {what}; pass another one as chat_template, or a plain prompt"
            )
        raise RequestError(
            f"{self._where}: the chat template fails on these messages {what}; change the messages, or pass a plain prompt"
        )

    def _check_read(self, conversation: Conversation) -> None:
        reads = self.reads()
        if unread := [name for name in conversation.given() if name not in reads]:
            raise RequestError(
                f"{self._where}: got {', '.join(unread)}, expected no more than the chat template reads, which is "
                f"{', '.join(sorted(reads)) or 'nothing'}; leave out the rest, or choose another template"
            )


class _FailedError(Exception):
    """The answer about a template that does not compile; raised so that it is not remembered."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer)
        self.answer = answer


@functools.lru_cache(maxsize=32)
def _reads_of(source: str) -> frozenset[str]:
    """Return the names of the variables that the template of this text reads."""
    answer = ask({"source": source})
    if "reads" not in answer:
        raise _FailedError(answer)
    return frozenset(answer["reads"])
