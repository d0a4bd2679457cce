"""The tokenizer: text to token ids and back, by the tokenizer files of the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.errors import ArtifactError, RequestError
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.chat.template_set import DEFAULT, TemplateSet

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FILE = "tokenizer/tokenizer.json"
_ADVICE = "correct the checkpoint's tokenizer, and build the engine again"


class Tokenizer:
    """The tokenizer of an engine, and its chat templates if it has any; created by `Tokenizer.load`.

    core: the tokenizer of tokenizer.json.
    templates: the chat templates, None where there are none.
    """

    def __init__(self, core: tokenizers.Tokenizer, templates: TemplateSet | None) -> None:
        self._core = core
        self._templates = TemplateSet({}, {}, where="tokenizer") if templates is None else templates

    @classmethod
    def load(cls, root: Path, manifest: Manifest) -> Tokenizer | None:
        """Return the engine's tokenizer, or None if the checkpoint had none.

        Raises:
            ArtifactError: a tokenizer file cannot be read.
        """
        paths = {Path(file.path).name: root / file.path for file in manifest.tokenizer}
        if not paths:
            return None
        if "tokenizer.json" not in paths:
            found = ", ".join(paths)
            raise ArtifactError(f"{root}/tokenizer: got {found}, expected a tokenizer.json; build the engine again")
        try:
            core = tokenizers.Tokenizer.from_file(str(paths["tokenizer.json"]))
        except Exception as e:  # the tokenizers library raises Exception itself
            raise ArtifactError(f"{paths['tokenizer.json']}: cannot be read ({e}); build the engine again") from e
        core.no_truncation()
        core.no_padding()
        config = _read_object(paths["tokenizer_config.json"]) if "tokenizer_config.json" in paths else {}
        return cls(core, _find_templates(config, paths))

    @cached_property
    def longest_token(self) -> int:
        """Number of characters of the longest token."""
        return max(map(len, self._core.get_vocab()), default=1)

    @cached_property
    def special_tokens(self) -> Mapping[int, str]:
        """The special tokens, by id: those that a text is usually shown without."""
        return {id: token.content for id, token in self._core.get_added_tokens_decoder().items() if token.special}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`, with the special tokens that the tokenizer adds around it.

        Raises:
            RequestError: it is not valid Unicode, or the tokenizer cannot take it.
        """
        _check_text(text)
        try:
            return list(self._core.encode(text, add_special_tokens=add_special_tokens).ids)
        except BaseException as error:
            if not _is_of_library(error):
                raise
            raise RequestError(
                f"{_FILE}: could not encode a prompt that begins {text[:40]!r} ({error!r}); {_ADVICE}"
            ) from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`.

        Raises:
            ArtifactError: the tokenizer cannot decode them.
        """
        try:
            return self._core.decode(ids, skip_special_tokens)
        except BaseException as error:
            if not _is_of_library(error):
                raise
            raise ArtifactError(
                f"{_FILE}: could not decode tokens such as {list(ids[-8:])} ({error!r}); {_ADVICE}"
            ) from error

    def chat(self, conversation: Conversation) -> list[int]:
        """Return the ids of a conversation, which end where the answer begins.

        Raises:
            RequestError: there is no template for the conversation, or it rejects it.
        """
        text = self.render(conversation)
        return self.encode(text, add_special_tokens=False)  # the template writes them itself

    def render(self, conversation: Conversation) -> str:
        """Return the text of a conversation."""
        return self._templates.render(conversation)


def _is_of_library(error: BaseException) -> bool:
    """Whether the tokenizers library raised it; its panics are no Exceptions, and their class cannot be imported."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _check_text(text: str) -> None:
    """Raise RequestError if `text` cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise RequestError(f"prompt: got {text[e.start]!r} at position {e.start}, expected valid Unicode text") from e


def _find_templates(config: Mapping[str, Any], paths: Mapping[str, Path]) -> TemplateSet:
    """Return the chat templates: chat_template.jinja, else those in tokenizer_config.json."""
    source: Any = config.get("chat_template")
    where = "tokenizer_config.json"
    if "chat_template.jinja" in paths:
        where = "chat_template.jinja"
        source = paths[where].read_text(encoding="utf-8")
    entries = source if isinstance(source, list) else [{"name": DEFAULT, "template": source}]
    named = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)}
    sources = {str(name): template for name, template in named.items() if isinstance(template, str)}
    special = {name: _token_text(config[name]) for name in _SPECIAL if config.get(name) is not None}
    return TemplateSet(sources, special, where=f"tokenizer/{where}")


def _token_text(token: Any) -> str:
    """Return the text of a special token, which is given as text or as an object with the text as `content`."""
    return str(token["content"] if isinstance(token, dict) and "content" in token else token)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ArtifactError(f"{path}: not valid JSON ({e}); build the engine again") from e
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: got {type(value).__name__}, expected an object; build the engine again")
    return value
