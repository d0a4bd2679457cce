"""The continuation of a conversation's last message: the prompt ends where that message's text ends.

Templates close every message. So a mark is appended to the text before the template runs, and the prompt is cut at the mark.
"""

from __future__ import annotations

from typing import Any

from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.chat.conversation import REASONING

_WORD = "CONTINUED_FROM_THIS_ENDING"
_MARK = f"{_WORD} "  # a template that strips the text takes the space away, and with it the text's own last spaces


def mark_end(messages: list[dict[str, Any]], key: bool | str, source: str) -> str:
    """Append the mark to the last message's text, in place, and return the text without it.

    key: the message's key that has the text, True for "content".
    source: the text of the template, which has to mention the key.
    """
    last = messages[-1]
    key = "content" if key is True else str(key)
    value = last.get(key)
    if value is None:
        raise RequestError(
            f"continue_final_message: got a last message without {key!r}; give it the text to go on with"
        )
    keys = [key] if key not in REASONING else [name for name in REASONING if last.get(name) == value]
    if not any(name in source for name in keys):
        raise RequestError(f"continue_final_message: got {key!r}, which the chat template does not read")
    if isinstance(value, list | tuple):
        return _mark_part(value)
    for name in keys:
        last[name] = _append(last[name])
    return str(value)


def cut(prompt: str, text: str) -> str:
    """Return the prompt up to the mark, after checking that `text` is there, and is written once."""
    at = prompt.find(_WORD)
    if at < 0 or text.strip() not in prompt:
        raise RequestError(
            "continue_final_message: the chat template changes or leaves out the last message's text, so an answer cannot "
            "go on with it; begin an answer with add_generation_prompt instead"
        )
    if _WORD in prompt[at + 1 :]:
        raise RequestError(
            "continue_final_message: the chat template writes the last message's text more than once; "
            "begin an answer with add_generation_prompt instead"
        )
    return prompt[:at] if prompt.startswith(_MARK, at) else prompt[:at].rstrip()


def _mark_part(parts: list[Any] | tuple[Any, ...]) -> str:
    """Append the mark to the last part that has a text."""
    for part in reversed(parts):
        if not isinstance(part, dict):
            raise RequestError(
                f"continue_final_message: got a part of content that is {type(part).__name__}, expected an object"
            )
        if "text" in part:
            text = part["text"]
            part["text"] = _append(text)
            return str(text)
    raise RequestError("continue_final_message: got a last message whose content has no part with a text")


def _append(text: Any) -> str:
    if not isinstance(text, str):
        raise RequestError(f"continue_final_message: got {type(text).__name__} to go on with, expected text")
    return text + _MARK
