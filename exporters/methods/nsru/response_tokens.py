"""Tokens of a prompt and an answer, and the places among them that losses and samples are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from enginewright.runtime.errors import ExportError


@dataclass(frozen=True, kw_only=True)
class ResponseTokens:
    """A prompt and an answer; `Prompts` creates it.

    The template's tokens after an answer are left out: no loss counts them, and no token before sees them.

    ids: of prompt and answer.
    prompt: how many of them are the prompt, with the template's tokens around the user's text.
    query_last: the position of the last token of the user's text.
    is_cut: whether the answer was longer.
    """

    ids: tuple[int, ...]
    prompt: int
    query_last: int
    is_cut: bool = False

    @property
    def response(self) -> int:
        """The number of the answer's tokens."""
        return len(self.ids) - self.prompt

    def sampled(self, at: str) -> slice:
        """The positions that `UnlearnOptions.at` names; "mean" and "all-tokens" are of all."""
        last = {"prompt-last": self.prompt, "query-last": self.query_last + 1, "sequence-last": len(self.ids)}
        return slice(last[at] - 1, last[at]) if at in last else slice(0, len(self.ids))


class Prompts:
    """Writes prompts as a tokenizer's chat template does, where it has one; the training creates it.

    length: tokens of prompt and answer at most.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer, self._length = tokenizer, length

    def encode(self, prompt: str, answer: str, where: str) -> ResponseTokens:
        """Return the tokens of a prompt and an answer.

        Prompt and answer are encoded apart, so that the answer's tokens follow the same tokens as in a chat.

        Raises:
            ExportError: the prompt leaves no room for the answer, or one of the two has no tokens; `where` names it.
        """
        ids, query_last = self._prompt(prompt)
        response = self._tokenizer.encode(answer, add_special_tokens=False)
        room = self._length - len(ids)
        if room < 1:
            raise ExportError(
                f"{where}: got a prompt of {len(ids)} tokens, expected fewer than {self._length}; give a larger --length "
                "or a shorter prompt"
            )
        if not ids or not response:
            raise ExportError(f"{where}: got text without tokens, expected one or more in prompt and answer")
        return ResponseTokens(
            ids=(*ids, *response[:room]), prompt=len(ids), query_last=query_last, is_cut=len(response) > room
        )

    def _prompt(self, prompt: str) -> tuple[Sequence[int], int]:
        """The prompt's ids, and the position of the user's last token."""
        if not self._tokenizer.chat_template:
            ids: list[int] = self._tokenizer.encode(prompt)
            return ids, len(ids) - 1
        asked = [{"role": "user", "content": prompt}]
        text = self._tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        end = text.rfind(prompt.strip()) + len(prompt.strip())
        inside = [i for i, (begin, _) in enumerate(encoded["offset_mapping"]) if begin < end]
        return encoded["input_ids"], inside[-1] if inside else len(encoded["input_ids"]) - 1
