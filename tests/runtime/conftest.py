"""Fixtures of engines: a tiny one under ONNX Runtime, and the toy model that needs no backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers

from enginewright.runtime.llm import LLM
from tests.support.runtime.evaluated_engines import asked_engine, other_engine, scripted

__all__ = ["asked_engine", "other_engine", "scripted"]


@pytest.fixture(scope="session")
def byte_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer: all bytes, a few merges, and the special tokens </s> (0) and <s> (1)."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["</s>", "<s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the cat sat on the mat and the hat", "a cat, a hat"] * 4, trainer)
    return core


@pytest.fixture(scope="session")
def make_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a tiny engine into a new folder."""
    from tests.support.runtime.tiny_engine import write_engine

    return lambda **options: write_engine(tmp_path_factory.mktemp("engine") / "tiny", **options)


@pytest.fixture(scope="session")
def tiny_engine(make_engine: Callable[..., Path], byte_tokenizer: tokenizers.Tokenizer) -> Path:
    """An engine with windowed and full layers and the byte-level tokenizer."""
    return make_engine(tokenizer=byte_tokenizer)


@pytest.fixture
def make_toy(byte_tokenizer: tokenizers.Tokenizer) -> Iterator[Callable[..., LLM]]:
    """Makes toy LLMs and closes them."""
    from tests.support.runtime.toy_model import make_llm

    opened: list[LLM] = []

    def make(**options: object) -> LLM:
        opened.append(make_llm(byte_tokenizer, **options))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()
