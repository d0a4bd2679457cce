"""Tests of engines whose layers have different numbers of KV heads: each layer reads its own part of the tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from enginewright.plugins.libraries.locate import ort_library
from enginewright.runtime import LLM, Sampling, load
from tests.support.runtime import tiny_reference
from tests.support.runtime.fake_cuda import FakeCuda
from tests.support.runtime.tensorrt_engines import add_plan, install

pytestmark = pytest.mark.native

HEADS = (1, 4, 2)
# Keys and values near the middle of two halves round the other way in float32 than in float64; logits are of size 100.
TOLERANCE = 0.15


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 290, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def plain(make_engine: Callable[..., Path]) -> Path:
    return make_engine(windows=(0, 0, 0), kv_heads=HEADS)


def check_busy(llm: LLM, root: Path) -> None:
    """Requests next to each other, in chunks, preempted, and with a shared beginning, get what each gets alone."""
    (start,) = prompts_of(140)
    prompts = [start, [*start[:129], 7], *prompts_of(1, 127, 200)]
    sampling = Sampling(max_tokens=40, ignore_eos=True)
    for prompt, completion in zip(prompts, llm.generate(prompts, sampling), strict=True):
        tokens = [*prompt, *completion.token_ids]
        wanted = tiny_reference.logits(root, tokens[:-1])[len(prompt) - 1 :]
        chosen = np.take_along_axis(wanted, np.array(completion.token_ids)[:, None], axis=1)[:, 0]
        assert (chosen >= wanted.max(axis=1) - TOLERANCE).all()
    assert llm.generate([start], sampling)[0].reused_tokens == 128


def test_logits_are_those_of_the_formula(plain: Path) -> None:
    (prompt,) = prompts_of(300)
    with load(plain, 1, prefill_chunk=96) as llm:
        assert llm.loop.scheduler.tables.kv_lens.shape == (3, 8, 4)
        assert [len(group._free) // group.heads for group in llm.loop.scheduler.tables._groups] == [64, 64, 64]
        np.testing.assert_allclose(llm.logits(prompt), tiny_reference.logits(plain, prompt), atol=TOLERANCE)


def test_on_the_cpu(plain: Path) -> None:
    with load(plain, 1, prefill_chunk=96, max_batch=3, cache_tokens=768) as llm:
        check_busy(llm, plain)


@pytest.mark.parametrize("spare", [True, False], ids=["padded", "not padded"])
def test_as_a_plan_on_a_device(spare: bool, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder's own profiles admit it, and steps that are filled up harm no row."""
    install(monkeypatch, FakeCuda(), ort_library())
    root = add_plan(plain, tmp_path / "plan", spare=spare)
    with load(root, prefill_chunk=96, max_batch=3, cache_tokens=768) as llm:
        assert type(llm.loop.session).__name__ == "TensorRTSession"
        check_busy(llm, root)


def test_with_encoded_tiles_and_windows(make_engine: Callable[..., Path]) -> None:
    """A step's own tokens are exact: a prompt of a chunk, and what was decoded after it, differ by rounding alone."""
    root = make_engine(windows=(0, 100, 0), encoded=(True, True, False), kv_heads=HEADS)
    (prompt,) = prompts_of(250)
    with load(root, 1, prefill_chunk=256) as llm, load(root, 1, prefill_chunk=256, max_batch=2) as other:
        done = llm.generate([prompt, prompt[:100]], Sampling(max_tokens=60, ignore_eos=True))
        assert [each.token_ids for each in done] == [
            other.generate([each], Sampling(max_tokens=60, ignore_eos=True))[0].token_ids
            for each in (prompt, prompt[:100])
        ]
        wanted = tiny_reference.logits(root, prompt[:128])
        # keys and queries are rotated before they become halves; sharp weights grow that, in few logits of size 100
        assert np.abs(llm.logits(prompt[:128]) - wanted).mean() < 0.5
