"""Damaged tokenizer files: an error of the product when they are loaded, or for the request that meets the damage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from enginewright.runtime import cli
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.tokenizer_json import parse_tokenizer, tokenizer_errors
from enginewright.runtime.errors import ArtifactError, EnginewrightError
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.text.text_stream import open_text
from enginewright.runtime.text.tokenizer import Tokenizer
from tests.support.fuzzing.figures import Figures
from tests.support.fuzzing.rounds import draws, rounds
from tests.support.runtime.kinds_of_tokenizers import byte_level
from tests.support.runtime.mutated_tokenizers import PARTS, mutated
from tests.support.runtime.tiny_engine import write_engine
from tests.support.runtime.toy_model import greedy, make_llm

EMPTY = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
SOURCES = [
    json.dumps({"version": "1.0", "added_tokens": [], **dict.fromkeys(EMPTY), "model": model})
    for model in PARTS["model"]
]
TEXTS = ("", "a b a aab", "  aa▁é🙂 <x>" * 5, "a" * 30 + "b")
IDS = ([0], [1, 2, 3], [70_000, 0], [2**32 - 1], [2**32], [2**70, -1], list(range(50)))


def broken(number: int) -> bytes:
    return mutated(SOURCES[number % len(SOURCES)], draws(number))


def read(content: bytes) -> Tokenizer:
    with tokenizer_errors(ArtifactError):
        return Tokenizer(parse_tokenizer(content), None)


def outcome(act: Callable[..., object], *given: object) -> str:
    """How `act` ends with what it is given: whatever is no error of the product escapes, panics among it."""
    try:
        act(*given)
    except EnginewrightError:
        return "error"
    return "right"


def stream(tokenizer: Tokenizer, stop: list[str]) -> None:
    text = open_text(tokenizer, np.array([1, 0, 2]), stop, skip_special_tokens=True)
    for token in (0, 1, 2, 3, 9, 0, 70_000):
        text.push(token)
    text.flush()


def test_damaged_files_never_raise_anything_but_errors_of_the_product(figures: Figures) -> None:
    counts: Counter[str] = Counter()
    for seed in range(rounds(100)):
        with figures.timed(seed):
            counts += use(seed)
    figures.refused = counts["refused"]
    assert counts["refused"] + counts["loaded"] == rounds(100)
    assert min(counts[name] for name in ("refused", "loaded", "encode right", "decode error", "stream right")), counts


def use(seed: int) -> Counter[str]:
    """Read a damaged file, and use what was read: how each call ended."""
    try:
        tokenizer = read(broken(seed))
    except ArtifactError:
        return Counter({"refused": 1})
    counts = Counter({"loaded": int(tokenizer.longest_token >= 0 and len(tokenizer.special_tokens) >= 0)})
    counts.update(f"encode {outcome(tokenizer.encode, text)}" for text in TEXTS)
    counts.update(f"decode {outcome(tokenizer.decode, ids)}" for ids in IDS)
    counts.update(f"stream {outcome(stream, tokenizer, stop)}" for stop in ([], ["a"], ["<x>a"]))
    return counts


def test_a_request_that_meets_the_damage_ends_alone(figures: Figures) -> None:
    """Served by the toy, whose tokens go up to 289, with whatever tokenizers can be loaded."""
    counts: Counter[str] = Counter()
    for seed in range(rounds(100)):
        try:
            core = read(broken(seed)).core
        except ArtifactError:
            continue
        with figures.timed(seed):
            counts += serve(core)
    figures.refused = counts["error"]
    assert counts["right"] and counts["error"]


def serve(core: tokenizers.Tokenizer) -> Counter[str]:
    """Send requests of texts and of token ids: how they ended."""
    counts: Counter[str] = Counter()
    with make_llm(core, eos=()) as llm:
        for options in ({}, {"stop": ["a"]}, {"skip_special_tokens": False}):
            sampling = Sampling(max_tokens=6, **options)
            counts[outcome(llm.generate, "a b", sampling)] += 1
            counts[outcome(llm.generate, [7, 8], sampling)] += 1
        llm.tokenizer = None
        expected = tuple(greedy([7, 8], 6))
        assert llm.generate([7, 8], Sampling(max_tokens=6))[0].token_ids == expected, "the loop still serves"
    return counts


@pytest.mark.native
def test_the_command_says_what_is_wrong_and_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], figures: Figures
) -> None:
    """Where it does not serve: a damaged file may still be one that can be read."""
    engine = write_engine(tmp_path / "tiny", windows=(0,), encoded=(False,), tokenizer=byte_level())
    manifest, path = directory.load(engine), engine / "tokenizer/tokenizer.json"
    source, codes = path.read_text(), Counter[int]()
    others = tuple(file for file in manifest.tokenizer if not file.path.endswith("/tokenizer.json"))
    for seed in range(rounds(10)):
        path.write_bytes(mutated(source, draws(seed)))
        files = (*others, directory.describe_file(engine, path))
        directory.save(replace(manifest, tokenizer=files), engine)
        with figures.timed(seed):
            code = cli.main(["run", str(engine), "--prompt", "the cat", "--max-tokens", "3"])
        assert code in (0, 2), seed
        assert code == 0 or "enginewright run: error: " in capsys.readouterr().err
        codes[code] += 1
    figures.refused = codes[2]
    assert codes[2]
