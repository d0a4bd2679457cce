"""Chat templates: Jinja templates that turn a conversation into the text that the model was trained to answer."""

from __future__ import annotations

from collections.abc import Mapping

from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.chat.continuation import cut, mark_end
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.chat.environment import CompiledTemplate, compile_template


class ChatTemplate:
    """A chat template, run in a sandbox: it can read its variables, but cannot change them or reach anything else.

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
        return self._compile().reads

    def render(self, conversation: Conversation) -> str:
        """Return the conversation as text, which ends where the answer begins.

        Raises:
            RequestError: the template does not read a part of what it is given, or fails on it.
        """
        compiled = self._compile()
        self._check_read(conversation)
        values = {**self._special, **conversation.variables()}
        key = conversation.continue_final_message
        last = mark_end(values["messages"], key, self._source) if key else ""
        try:
            prompt = compiled.template.render(values)
        except Exception as e:  # a template is a program that anyone may have written, and raises what it likes
            raise RequestError(
                f"{self._where}: the chat template fails on these messages ({type(e).__name__}: {e}); "
                f"change the messages, or pass a plain prompt"
            ) from e
        return cut(prompt, last) if key else prompt

    def _compile(self) -> CompiledTemplate:
        try:
            return compile_template(self._source)
        except Exception as e:  # Jinja's errors, and those of Python's compiler, recursion and memory among them
            raise RequestError(
                f"{self._where}: is no valid chat template ({type(e).__name__}: {e}); "
                f"pass another one as chat_template, or a plain prompt"
            ) from e

    def _check_read(self, conversation: Conversation) -> None:
        reads = self.reads()
        if unread := [name for name in conversation.given() if name not in reads]:
            raise RequestError(
                f"{self._where}: got {', '.join(unread)}, expected no more than the chat template reads, which is "
                f"{', '.join(sorted(reads)) or 'nothing'}; leave out the rest, or choose another template"
            )
