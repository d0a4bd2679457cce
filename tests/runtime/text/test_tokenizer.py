"""Tests of tokenizer files and chat templates, good and broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Cache, Limits, Manifest, Model
from enginewright.runtime.errors import ArtifactError, RequestError
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.chat.template_set import DEFAULT, TemplateSet
from enginewright.runtime.text.tokenizer import Tokenizer

CHATML = """{%- for message in messages %}
    {{- '<' + message.role + '>' + message.content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>' }}
{%- endif %}
"""
MESSAGES = [{"role": "user", "content": "the cat"}]
PANICKING = {
    "model": {"type": "WordLevel", "vocab": {" ": 0}, "unk_token": " "},
    "decoder": {"type": "Strip", "content": " ", "start": 0, "stop": 9},
}
"""A tokenizer at whose decoding the library panics: its one token is shorter than what the decoder takes off."""
Open = Callable[..., Tokenizer | None]


@pytest.fixture
def open_files(tmp_path: Path, byte_tokenizer: tokenizers.Tokenizer) -> Open:
    """Opens a tokenizer folder: tokenizer.json and what `files` adds or, with None, takes away."""

    def build(**files: str | bytes | None) -> Tokenizer | None:
        folder = tmp_path / "tokenizer"
        folder.mkdir()
        contents: dict[str, str | bytes | None] = {"tokenizer.json": byte_tokenizer.to_str()}
        contents |= {name.replace("__", "."): content for name, content in files.items()}
        for name, content in contents.items():
            if content is not None:
                (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        manifest = Manifest(
            name="t",
            created_by="t",
            model=Model(family="t", vocab_size=1, hidden_size=1, max_positions=1, parameters=1),
            limits=Limits(max_batch=1, max_context=1),
            cache=Cache(kind="paged", tile_tokens=128, kv_bits=16, layers=()),
            graphs={},
            tokenizer=tuple(directory.describe_file(tmp_path, path) for path in sorted(folder.iterdir())),
        )
        return Tokenizer.load(tmp_path, manifest)

    return build


def _config(**values: object) -> str:
    return json.dumps({"eos_token": {"content": "</s>", "special": True}, "bos_token": "<s>", **values})


def test_an_engine_may_have_no_tokenizer(open_files: Open) -> None:
    assert open_files(tokenizer__json=None) is None


def test_text_survives_the_round_trip(open_files: Open) -> None:
    tokenizer = open_files()
    assert tokenizer is not None
    text = "the cat 🙂 世界 </s>"
    assert tokenizer.decode(tokenizer.encode(text)) == "the cat 🙂 世界 "
    with pytest.raises(RequestError, match="no chat template"):
        tokenizer.chat(Conversation(messages=MESSAGES))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config__json": _config(chat_template=CHATML)},
        {"tokenizer_config__json": _config(), "chat_template__jinja": CHATML},
        {"tokenizer_config__json": _config(chat_template="wrong"), "chat_template__jinja": CHATML},
        {
            "tokenizer_config__json": _config(
                chat_template=[{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
            )
        },
    ],
    ids=["config", "file", "file wins", "named"],
)
def test_the_template_is_found_wherever_it_is(open_files: Open, files: dict[str, str]) -> None:
    tokenizer = open_files(**files)
    assert tokenizer is not None
    assert tokenizer.render(Conversation(messages=MESSAGES)) == "<user>the cat</s><assistant>"
    assert tokenizer.render(Conversation(messages=MESSAGES, add_generation_prompt=False)) == "<user>the cat</s>"
    ids = tokenizer.chat(Conversation(messages=MESSAGES))
    assert ids.count(0) == 1 and tokenizer.decode(ids) == "<user>the cat<assistant>"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer__json": "{"}, "tokenizer.json: cannot be read"),
        ({"tokenizer__json": None, "tokenizer_config__json": "{}"}, "expected a tokenizer.json"),
        ({"tokenizer_config__json": "{"}, "tokenizer_config.json: not valid JSON"),
        ({"tokenizer_config__json": "[]"}, "tokenizer_config.json: got a JSON list"),
        ({"tokenizer_config__json": "[" * 100_000}, "tokenizer_config.json: not valid JSON"),
        ({"tokenizer_config__json": "9" * 5000}, "tokenizer_config.json: not valid JSON"),
        ({"tokenizer_config__json": b"\xff"}, "tokenizer_config.json: not valid JSON"),
        ({"chat_template__jinja": b"\xff"}, "chat_template.jinja: cannot be read as UTF-8"),
        ({"tokenizer__json": b"\xff"}, "tokenizer.json: cannot be read"),
        ({"tokenizer__json": json.dumps(PANICKING)}, r"tokenizer.json: cannot be read \(PanicException"),
    ],
)
def test_a_broken_file_is_named(open_files: Open, files: dict[str, str | bytes | None], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        open_files(**files)


def _panic() -> BaseException:
    """A panic of the tokenizers library, whose class cannot be imported."""
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({" ": 0}, unk_token=" "))
    core.decoder = tokenizers.decoders.Strip(" ", 0, 9)
    with pytest.raises(BaseException, match="index out of bounds") as caught:
        core.decode([0])
    assert not isinstance(caught.value, Exception)
    return caught.value


@pytest.mark.parametrize(
    ("given", "expected"), [(_panic, RequestError), (lambda: ValueError("x"), RequestError), (KeyboardInterrupt, None)]
)
def test_text_that_the_tokenizer_cannot_take(given: Callable[[], BaseException], expected: type | None) -> None:
    error = given()

    class Core:
        def encode(self, *_: object, **__: object) -> None:
            raise error

    tokenizer = Tokenizer(Core(), TemplateSet({DEFAULT: "x{{ messages }}"}, {}, where="t"))  # type: ignore[arg-type]
    for call in (lambda: tokenizer.encode("a"), lambda: tokenizer.chat(Conversation(messages=MESSAGES))):
        with pytest.raises(
            expected or type(error), match=r"tokenizer/tokenizer\.json: could not" if expected else None
        ) as got:
            call()
        assert (got.value.__cause__ if expected else got.value) is error


def test_words_that_the_vocabulary_lacks() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="[UNK]")), None)
    with pytest.raises(
        RequestError, match=r"tokenizer/tokenizer\.json: could not encode a prompt that begins 'b'.*UNK"
    ):
        tokenizer.encode("b")


def test_special_tokens_are_those_that_a_text_is_shown_without(byte_tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer = Tokenizer(byte_tokenizer, None)
    assert tokenizer.special_tokens == {0: "</s>", 1: "<s>"}
    ids = [1, *byte_tokenizer.encode("cat").ids, 0]
    assert tokenizer.decode(ids) == "cat" and tokenizer.decode(ids, skip_special_tokens=False) == "<s>cat</s>"


def test_no_tokens_are_no_text_whatever_the_decoder() -> None:
    core = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, " ": 1}, []))
    core.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 0, 1)])
    tokenizer = Tokenizer(core, None)
    assert tokenizer.decode([0, 1]) == "a" and tokenizer.decode([]) == ""  # the library panics on the latter


def test_special_tokens_by_every_name_reach_the_template(open_files: Open) -> None:
    config = _config(
        image_token="<img>",
        extra_special_tokens={"audio": {"content": "<audio>"}},
        add_bos_token=True,
        chat_template="{{ bos_token }}{{ eos_token }}{{ image_token }}{{ audio }}{{ add_bos_token }}",
    )
    tokenizer = open_files(tokenizer_config__json=config)
    assert tokenizer is not None and tokenizer.render(Conversation(messages=MESSAGES)) == "<s></s><img><audio>"


@pytest.mark.parametrize("split", [False, True])
def test_special_tokens_may_be_split_like_other_text(open_files: Open, split: bool) -> None:
    tokenizer = open_files(tokenizer_config__json=_config(split_special_tokens=split))
    assert tokenizer is not None and tokenizer.decode(tokenizer.encode("a</s>")) == ("a</s>" if split else "a")
