"""Tests that an engine's tokenizer is the one that transformers makes of the checkpoint, for every kind of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from enginewright.exporters.tokenizer.engine_tokenizer import read_tokenizer
from enginewright.exporters.tokenizer.transformers_tokenizer import readable_sentencepiece
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Cache, Limits, Manifest, Model
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.tokenizer import Tokenizer, special_tokens
from tests.support.exporters.tokenizer_kinds import (
    KINDS,
    SPECIAL,
    byte_level,
    open_folder,
    save_json,
    write_tokenizer,
)
from tests.support.paths import ROOT

PIECES = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from([*SPECIAL, " ", "  ", "\n", "the", " cat", "Low", "cats", "café", "世界", "🙂"]),
)
TEXT = st.lists(PIECES, max_size=8).map("".join)
_OPENED: dict[str, tuple[Tokenizer, PreTrainedTokenizerBase]] = {}


def load_engine(root: Path) -> Tokenizer:
    """The tokenizer as the runtime loads it from the engine directory `root`."""
    manifest = Manifest(
        name="t",
        created_by="t",
        model=Model(family="t", vocab_size=1, hidden_size=1, max_positions=1, parameters=1),
        limits=Limits(max_batch=1, max_context=1),
        cache=Cache(kind="paged", tile_tokens=128, kv_bits=16, layers=()),
        graphs={},
        tokenizer=tuple(directory.describe_file(root, path) for path in sorted((root / "tokenizer").iterdir())),
    )
    loaded = Tokenizer.load(root, manifest)
    assert loaded is not None
    return loaded


def open_both(checkpoint: Path, root: Path) -> tuple[Tokenizer, PreTrainedTokenizerBase]:
    """The tokenizer of an engine that is written to the new folder `root`, and transformers' of the checkpoint."""
    found = read_tokenizer(open_folder(checkpoint))
    assert found is not None
    root.mkdir()
    assert sorted(path.name for path in found.write(root / "tokenizer")) == ["tokenizer.json", "tokenizer_config.json"]
    with readable_sentencepiece():
        return load_engine(root), AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Opens both tokenizers of a kind, once."""

    def open_kind(kind: str) -> tuple[Tokenizer, PreTrainedTokenizerBase]:
        if kind not in _OPENED:
            folder = tmp_path_factory.mktemp("kind")
            _OPENED[kind] = open_both(write_tokenizer(folder / "checkpoint", kind), folder / "engine")
        return _OPENED[kind]

    return open_kind


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXT, data=st.data())
def test_ids_and_texts_are_those_of_transformers(opened: Any, kind: str, text: str, data: st.DataObject) -> None:
    ours, theirs = opened(kind)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    assert ours.core.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False)
    drawn = data.draw(st.lists(st.integers(0, len(theirs) + 5), max_size=12))
    for tokens in (ids, drawn):
        assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)
        assert ours.core.decode(tokens, skip_special_tokens=False) == theirs.decode(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_added_and_named_tokens_are_those_of_transformers(opened: Any, kind: str, tmp_path: Path) -> None:
    ours, theirs = opened(kind)
    assert ours.core.get_vocab(with_added_tokens=True) == theirs.get_vocab()
    assert {i: repr(t) for i, t in ours.core.get_added_tokens_decoder().items()} == {
        i: repr(t) for i, t in theirs.added_tokens_decoder.items()
    }
    found = read_tokenizer(open_folder(write_tokenizer(tmp_path / "checkpoint", kind)))
    assert found is not None and special_tokens(found.settings) == theirs.special_tokens_map


@pytest.mark.parametrize(
    "kind", ["vocab and merges with added tokens", "unigram with named tokens", "special tokens are split"]
)
def test_transformers_reads_what_is_written(opened: Any, kind: str, tmp_path: Path) -> None:
    _, theirs = opened(kind)
    found = read_tokenizer(open_folder(write_tokenizer(tmp_path / "checkpoint", kind)))
    assert found is not None
    found.write(tmp_path / "tokenizer")
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")
    text = "the cat <|a|> <|b|></s>"
    assert again.encode(text) == theirs.encode(text) and again.special_tokens_map == theirs.special_tokens_map


def test_a_token_that_only_the_settings_have(tmp_path: Path) -> None:
    """Fault 6: it was split on input, and invisible on output."""
    ours, _ = open_both(
        write_tokenizer(tmp_path / "checkpoint", "tokens in tokenizer_config.json"), tmp_path / "engine"
    )
    assert ours.encode("<|a|>") == [300] and ours.decode([303, 300]) == "[/INST]"


def test_a_special_token_of_the_map_alone_reaches_the_template(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "checkpoint", "additional special tokens", chat_template="{{ bos_token }}!")
    ours, theirs = open_both(folder, tmp_path / "engine")
    messages = [{"role": "user", "content": "x"}]
    assert (
        ours.render(Conversation(messages=messages)) == theirs.apply_chat_template(messages, tokenize=False) == "<s>!"
    )


@pytest.mark.parametrize(
    ("setting", "files", "expected"),
    [
        ("one", {}, "one"),
        ("one", {"chat_template.jinja": "two"}, "two"),
        (
            [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "t"}],
            {},
            {"default": "one", "tool_use": "t"},
        ),
        (
            "one",
            {"chat_template.jinja": "two", "additional_chat_templates/rag.jinja": "three"},
            {"default": "two", "rag": "three"},
        ),
        (None, {"additional_chat_templates/rag.jinja": "three"}, {"rag": "three"}),
        (None, {}, None),
    ],
)
def test_templates_are_chosen_as_in_transformers(
    tmp_path: Path, setting: Any, files: dict[str, str], expected: Any
) -> None:
    folder = write_tokenizer(
        tmp_path / "checkpoint", "words", **({} if setting is None else {"chat_template": setting})
    )
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    found = read_tokenizer(open_folder(folder))
    assert found is not None
    written = found.settings.get("chat_template")
    named = {each["name"]: each["template"] for each in written} if isinstance(written, list) else written
    assert named == expected == AutoTokenizer.from_pretrained(folder).chat_template


@pytest.mark.parametrize(
    ("kind", "changed", "told"),
    [
        (
            "words",
            {"clean_up_tokenization_spaces": True},
            "clean_up_tokenization_spaces: not used: it takes back spaces",
        ),
        ("vocab and merges", {"clean_up_tokenization_spaces": True}, ""),
        (
            "words",
            {"auto_map": {"AutoTokenizer": [None, "code.Own"]}, "tokenizer_class": "LlamaTokenizer"},
            "auto_map: not used",
        ),
        ("words", {"padding_side": "left", "model_max_length": 5, "truncation_side": "left"}, ""),
        (
            "SentencePiece BPE",
            {"tokenizer_class": "CodeLlamaTokenizer", "add_eos_token": False},
            "fill_token: not used: a text with <FILL_ME> is not rearranged",
        ),
    ],
)
def test_settings_that_an_engine_does_not_follow_are_named(
    tmp_path: Path, kind: str, changed: dict[str, Any], told: str
) -> None:
    checkpoint = open_folder(write_tokenizer(tmp_path / "checkpoint", kind, **changed))
    assert read_tokenizer(checkpoint) is not None
    parts = [str(part) for part in checkpoint.unused.parts]
    assert len(parts) == bool(told) and all(told in part for part in parts)


def test_tokens_beyond_the_vocabulary_are_named(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "checkpoint", "tokens in tokenizer_config.json")
    checkpoint = open_folder(folder, vocab_size=302)
    assert read_tokenizer(checkpoint) is not None
    (part,) = checkpoint.unused.parts
    assert part.file == "tokenizer.json" and part.names == ("cats (302)", "[/INST] (303)")
    assert "the model's vocabulary ends at id 301" in part.reason


def test_a_checkpoint_without_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    """Where transformers would make one of three tokens."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_json(folder / "config.json", {"model_type": "llama"})
    checkpoint = open_folder(folder)
    assert read_tokenizer(checkpoint) is None and not checkpoint.unused.parts
    save_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    assert read_tokenizer(checkpoint) is None
    assert [part.file for part in checkpoint.unused.parts] == ["tokenizer_config.json"]


@pytest.mark.parametrize("name", ["tiny-text", "tiny-reasoner"])
def test_the_examples_have_the_tokenizers_of_their_files(name: str) -> None:
    folder = ROOT / "examples" / name
    found = read_tokenizer(open_folder(folder, vocab_size=100_000))
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert found is not None and json.loads(found.content) == json.loads(own.to_str())


def test_texts_are_always_split_in_the_same_way(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "checkpoint", "words")
    described = json.loads(byte_level().to_str())
    described["model"]["dropout"] = 0.5
    save_json(folder / "tokenizer.json", described)
    save_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    checkpoint = open_folder(folder)
    found = read_tokenizer(checkpoint)
    assert found is not None and found.core.encode("the cat").ids == byte_level().encode("the cat").ids
    assert [str(part) for part in checkpoint.unused.parts] == [
        "tokenizer.json: model.dropout: not used: a text is always split in the most likely way"
    ]
