"""The tokenizer: text to token ids and back, by the tokenizer files of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from enginewright.runtime.artifact.files.bounded_file import read_bounded
from enginewright.runtime.artifact.files.json_file import MOST_BYTES, MOST_TOKENIZER, read_object
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.artifact.tokenizer_json import (
    SETTINGS,
    TOKENIZER,
    is_of_library,
    parse_tokenizer,
    tokenizer_errors,
)
from enginewright.runtime.errors import ArtifactError, RequestError
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.chat.template_set import DEFAULT, TemplateSet

_FILE = f"tokenizer/{TOKENIZER}"
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
        if TOKENIZER not in paths:
            found = ", ".join(paths)
            raise ArtifactError(f"{root}/tokenizer: got {found}, expected a tokenizer.json; build the engine again")
        path = paths[TOKENIZER]
        with tokenizer_errors(
            lambda reason: ArtifactError(f"{path}: cannot be read ({reason}); build the engine again")
        ):
            core = parse_tokenizer(read_bounded(path, MOST_TOKENIZER, ArtifactError, "build the engine again"))
        settings = _read_settings(paths)
        core.encode_special_tokens = settings.get("split_special_tokens") is True
        return cls(core, _find_templates(settings, paths))

    @staticmethod
    def load_templates(root: Path, manifest: Manifest) -> TemplateSet:
        """Return the engine's chat templates alone, without its vocabulary; ArtifactError where they cannot be read."""
        paths = {Path(file.path).name: root / file.path for file in manifest.tokenizer}
        return _find_templates(_read_settings(paths), paths)

    @property
    def core(self) -> tokenizers.Tokenizer:
        """The tokenizer of tokenizer.json; it neither cuts nor pads a text."""
        return self._core

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
        return list(self.encoding(text, add_special_tokens=add_special_tokens).ids)

    def encoding(self, text: str, *, add_special_tokens: bool = True) -> tokenizers.Encoding:
        """Return `text` in tokens, with the place of each; raises as `encode` does."""
        _check_text(text)
        try:
            return self._core.encode(text, add_special_tokens=add_special_tokens)
        except BaseException as error:
            if not is_of_library(error):
                raise
            raise RequestError(
                f"{_FILE}: could not encode a prompt that begins {text[:40]!r} ({error!r}); {_ADVICE}"
            ) from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`.

        Raises:
            ArtifactError: the tokenizer cannot decode them.
        """
        if not ids:
            return ""  # some decoders panic on no tokens
        try:
            return self._core.decode(ids, skip_special_tokens)
        except BaseException as error:
            if not is_of_library(error):
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


def _check_text(text: str) -> None:
    """Raise RequestError if `text` cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise RequestError(f"prompt: got {text[e.start]!r} at position {e.start}, expected valid Unicode text") from e


def _find_templates(settings: Mapping[str, Any], paths: Mapping[str, Path]) -> TemplateSet:
    """Return the chat templates: chat_template.jinja, else those in tokenizer_config.json."""
    source: Any = settings.get("chat_template")
    where = SETTINGS
    if "chat_template.jinja" in paths:  # of engines that were built before tokenizer_config.json held all templates
        where = "chat_template.jinja"
        source = _read_text(paths[where])
    entries = source if isinstance(source, list) else [{"name": DEFAULT, "template": source}]
    named = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)}
    sources = {str(name): template for name, template in named.items() if isinstance(template, str)}
    return TemplateSet(sources, special_tokens(settings), where=f"tokenizer/{where}")


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by the names that chat templates know them by, such as bos_token.

    settings: of tokenizer_config.json, where names of a model's own may be gathered in extra_special_tokens.
    """
    others = settings.get("extra_special_tokens")
    named = {name: token for name, token in settings.items() if name.endswith("_token")}
    named |= others if isinstance(others, dict) else {}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _read_settings(paths: Mapping[str, Path]) -> dict[str, Any]:
    return read_object(paths[SETTINGS], ArtifactError, "build the engine again") if SETTINGS in paths else {}


def _read_text(path: Path) -> str:
    try:
        return read_bounded(path, MOST_BYTES, ArtifactError, "build the engine again").decode()
    except UnicodeDecodeError as e:
        raise ArtifactError(f"{path}: cannot be read as UTF-8 text ({e}); build the engine again") from e
