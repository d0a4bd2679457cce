"""Tests of the choice of tokens for calibration."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import processors

from enginewright.exporters.calibration import texts
from enginewright.exporters.calibration.blocks import load_blocks
from enginewright.exporters.calibration.texts import tokens_from_file, tokens_from_model
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.paths import EXAMPLES

EXAMPLE = EXAMPLES / "tiny-text"


@pytest.fixture(scope="module")
def example() -> Checkpoint:
    """A trained model with a tokenizer."""
    return open_checkpoint(str(EXAMPLE))


def encode(text: str) -> list[int]:
    """All tokens of the text."""
    ids: list[int] = tokenizers.Tokenizer.from_file(str(EXAMPLE / "tokenizer.json")).encode(text).ids
    return ids


def test_windows_of_a_file(example: Checkpoint) -> None:
    text = (EXAMPLE / "held_out.txt").read_text()
    ids = encode(text)
    tokens = tokens_from_file(EXAMPLE / "held_out.txt", example, 12, 100, 0)
    assert tokens.shape == (12, 100) and tokens.dtype == np.int64
    places, begin = [], 0
    for row in tokens.tolist():
        begin = next(place for place in range(begin, len(ids)) if ids[place : place + 100] == row)
        places.append(begin)
        begin += 100  # the next window has none of this one's tokens
    assert np.array_equal(tokens, tokens_from_file(EXAMPLE / "held_out.txt", example, 12, 100, 0))
    assert not np.array_equal(tokens, tokens_from_file(EXAMPLE / "held_out.txt", example, 12, 100, 1))


@pytest.mark.parametrize("piece", [7, 1 << 14])
def test_a_text_is_encoded_in_pieces(piece: int, example: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokens_from_file(EXAMPLE / "held_out.txt", example, 12, 100, 0)
    monkeypatch.setattr(texts, "_PIECE", piece)
    pieces = tokens_from_file(EXAMPLE / "held_out.txt", example, 12, 100, 0)
    assert pieces.shape == whole.shape
    if piece > 7:  # lines end often enough to cut there
        np.testing.assert_array_equal(pieces, whole)


def test_a_text_may_be_just_long_enough(example: Checkpoint, tmp_path: Path) -> None:
    text = "def f(x):\n    return x + 1\n" * 9
    (tmp_path / "text").write_text(text)
    ids = encode(text)
    found = tokens_from_file(tmp_path / "text", example, 3, len(ids) // 3, 7)
    assert found.size > len(ids) - 3
    with pytest.raises(
        ExportError, match=rf"text: got {len(ids)} tokens, expected at least 4000 for 4 sequences of 1000"
    ):
        tokens_from_file(tmp_path / "text", example, 4, 1000, 7)


def test_windows_begin_as_a_text_does(example: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "model")
    tokenizer = tokenizers.Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))
    special = tokenizer.id_to_token(0)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special} $A {special}", special_tokens=[(special, 0)]
    )
    tokenizer.enable_truncation(5)  # which is to be ignored
    tokenizer.enable_padding(length=300)
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    tokens = tokens_from_file(EXAMPLE / "held_out.txt", open_checkpoint(str(tmp_path / "model")), 5, 50, 0)
    assert tokens.shape == (5, 50) and not tokens[:, 0].any()
    own = tokens_from_file(EXAMPLE / "held_out.txt", example, 5, 49, 0)
    assert np.array_equal(tokens[:, 1:], own)


def test_bad_files_are_named(example: Checkpoint, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"missing: cannot be read .No such file"):
        tokens_from_file(tmp_path / "missing", example, 1, 1, 0)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ExportError, match="binary: cannot be read as UTF-8 text"):
        tokens_from_file(tmp_path / "binary", example, 1, 1, 0)
    (tmp_path / "empty").write_text("")
    with pytest.raises(ExportError, match="empty: got 0 tokens, expected at least 1"):
        tokens_from_file(tmp_path / "empty", example, 1, 1, 0)
    with pytest.raises(ExportError, match=r"got no tokenizer, expected the"):
        tokens_from_file(tmp_path / "empty", open_checkpoint(str(checkpoint("llama"))), 1, 1, 0)
    for sequences, length in ((0, 5), (5, 0), (1, 1025)):
        with pytest.raises(ExportError, match=rf"got {sequences} sequences of {length} tokens"):
            tokens_from_file(tmp_path / "empty", example, sequences, length, 0)


def weights_of(opened: Checkpoint) -> dict[str, Weight]:
    """The weights of a checkpoint, as its own parameters."""
    return bind_parameters(opened, load_blocks(opened, None).skeleton.model)


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "gpt_oss"])
def test_own_text_follows_the_models_probabilities(
    family: str, checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing the most probable token instead gives what transformers' own model finds most probable."""
    opened = open_checkpoint(str(checkpoint(family)))
    monkeypatch.setattr(torch, "multinomial", lambda p, count, generator: p.argmax(-1, keepdim=True))
    monkeypatch.setattr(texts, "SAMPLED_AT_ONCE", 2)
    tokens = tokens_from_model(opened, weights_of(opened), 3, 30, 0)
    assert tokens.shape == (3, 30) and tokens.dtype == np.int64
    assert (tokens[:, 0] == 1).all(), "the first token is the beginning of a text"
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        expected = load_reference(str(checkpoint(family)), ())(input_ids=ids).logits[:, :-1]
    margin = expected.amax(-1) - expected.gather(-1, ids[:, 1:, None])[..., 0]
    assert margin.max() < 1e-5


def test_own_text_is_reproducible(example: Checkpoint) -> None:
    weights = weights_of(example)
    first = tokens_from_model(example, weights, 4, 40, 3)
    assert np.array_equal(first, tokens_from_model(example, weights, 4, 40, 3))
    assert not np.array_equal(first, tokens_from_model(example, weights, 4, 40, 4))
    assert len({tuple(row) for row in first.tolist()}) == 4
    example.config.bos_token_id = None
    try:
        assert len(set(tokens_from_model(example, weights, 4, 2, 3)[:, 0].tolist())) > 1
    finally:
        example.config.bos_token_id = 0


def test_own_text_of_a_broken_model(example: Checkpoint) -> None:
    weights = weights_of(example)
    norm = weights["model.norm.weight"]
    weights["model.norm.weight"] = norm.derive(norm.shape, lambda x: x * np.float32(np.inf))
    with pytest.raises(ExportError, match="its logits are NaN or infinite"):
        tokens_from_model(example, weights, 1, 5, 0)


def test_a_tokenizer_that_cannot_take_the_text_is_named(example: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="[UNK]"))
    monkeypatch.setattr(texts, "_open_tokenizer", lambda _: core)
    with pytest.raises(ExportError, match=r"held_out\.txt: the checkpoint's tokenizer cannot encode it \(.*UNK"):
        tokens_from_file(EXAMPLE / "held_out.txt", example, 2, 10, 0)
