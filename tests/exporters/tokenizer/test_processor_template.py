"""Tests of the chat templates of multimodal models, which lie in a file of their processors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.tokenizer.engine_tokenizer import read_tokenizer
from enginewright.runtime.errors import ExportError
from enginewright.runtime.text.chat.conversation import Conversation
from tests.exporters.tokenizer.test_engine_tokenizer import load_engine
from tests.support.exporters.tokenizer_kinds import open_folder, save_json, write_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
)
"""As multimodal models have them: content is a text, or a list of parts."""


def text_part(folder: Path, template: object, **settings: object) -> Checkpoint:
    """A checkpoint of a multimodal model's text part, with a template in its processor's file."""
    write_tokenizer(folder, "vocab and merges", **settings)
    save_json(folder / "chat_template.json", {"chat_template": template})
    return dataclasses.replace(open_folder(folder), is_text_part=True)


@pytest.mark.parametrize("content", ["the cat", [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]])
def test_a_processors_template_makes_prompts_of_text(content: object, tmp_path: Path) -> None:
    checkpoint = text_part(tmp_path / "model", TEMPLATE)
    found = read_tokenizer(checkpoint)
    assert found is not None
    (tmp_path / "engine").mkdir()
    found.write(tmp_path / "engine/tokenizer")
    messages = [{"role": "user", "content": content}]
    assert load_engine(tmp_path / "engine").render(Conversation(messages=messages)) == "<user>the cat"
    assert not checkpoint.unused.parts


def test_the_template_of_a_tokenizer_goes_first(tmp_path: Path) -> None:
    found = read_tokenizer(text_part(tmp_path / "model", TEMPLATE, chat_template="mine"))
    assert found is not None
    assert found.settings["chat_template"] == "mine"


def test_the_template_of_another_model_is_named_and_not_used(tmp_path: Path) -> None:
    checkpoint = dataclasses.replace(text_part(tmp_path / "model", TEMPLATE), is_text_part=False)
    found = read_tokenizer(checkpoint)
    assert found is not None
    assert "chat_template" not in found.settings
    assert [part.file for part in checkpoint.unused.parts] == ["chat_template.json"]


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"chat_template.json: chat_template: got \[1\], expected a text; correct the file"
    ):
        read_tokenizer(text_part(tmp_path / "model", [1]))
