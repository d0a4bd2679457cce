"""Engines that evict and have extra heads: tokens are those without heads, and what does not go together is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import Sampling, UnsupportedError, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.errors import BuildError
from tests.support.exporters.gate_files import write_head_gates, write_token_gates
from tests.support.exporters.reasoner_engines import MODEL, Engines, alone, count_preemptions, prompts_of, together
from tests.support.paths import EXAMPLES

pytestmark = [pytest.mark.native, pytest.mark.slow]

HEADS = f"clp:heads={EXAMPLES / 'tiny-reasoner-clp'}"
VERIFIED = f"{HEADS},verify=true"
EVICT = "evict:budget=24,interval=6,kernel=3"
MANY = Sampling(max_tokens=90, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"))


def prompts(root: Path) -> list[list[int]]:
    """Prompts of different lengths, under the budget and over it."""
    with load(root, 1) as llm:
        return [tokens[: 7 * i + 5] if i % 2 else tokens for i, tokens in enumerate(prompts_of(llm, 2))]


def with_policy(root: Path, folder: Path, **changes: object) -> Path:
    """The same engine with other options of its policy."""
    shutil.copytree(root, folder)
    manifest = directory.load(root, verify=False)
    cache = dataclasses.replace(manifest.cache, policy={**manifest.cache.policy, **changes})
    directory.save(dataclasses.replace(manifest, cache=cache), folder)
    return folder


def test_tokens_are_those_without_heads(engine: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, guessing = engine(EVICT), engine(VERIFIED, EVICT)
    asked = prompts(plain)
    preempted = count_preemptions(monkeypatch)
    for budget, interval in ((24, 6), (40, 1), (17, 13), (200, 128)):
        name = f"{budget}-{interval}"
        with load(with_policy(plain, tmp_path / name, budget=budget, interval=interval), 1) as llm:
            wanted = alone(llm, asked, [MANY] * 4)
        with load(with_policy(guessing, tmp_path / f"{name}-heads", budget=budget, interval=interval), 1) as llm:
            assert alone(llm, asked, [MANY] * 4) == wanted
            assert together(llm, asked, [MANY] * 4) == wanted
            assert sum(each.agreed_tokens for each in llm.generate(asked, MANY)) > 20, "drafts are of use"
    assert not preempted[0]
    with load(guessing, 1, cache_tokens=256) as llm:
        assert together(llm, asked, [MANY] * 4) == together(llm, asked, [MANY] * 4)


@pytest.mark.parametrize("kind", ["trim", "duo"])
def test_gates_of_drafts_that_are_taken_back_leave_nothing(kind: str, engine: Engines, tmp_path: Path) -> None:
    if kind == "trim":
        own = f"{EVICT},score=trim,gates={write_token_gates(MODEL, tmp_path / 'gates.safetensors')}"
    else:
        path = write_head_gates(MODEL, tmp_path / "heads.json", ((0.1, 0.9), (0.2, 0.3), (0.8, 0.7), (0.4, 0.4)))
        own = f"{EVICT},sinks=4,allocation=duo,head_gates={path}"
    plain, guessing = engine(own), engine(VERIFIED, own)
    asked = prompts(plain)
    with load(plain, 1) as llm:
        wanted = alone(llm, asked, [MANY] * 4)
    with load(guessing, 1) as llm:
        assert alone(llm, asked, [MANY] * 4) == wanted
        assert together(llm, asked, [MANY] * 4) == wanted
        assert sum(each.agreed_tokens for each in llm.generate(asked, MANY)) > 20, "drafts are of use"


@pytest.mark.parametrize("options", ["granularity=tile,budget=384", "granularity=record,budget=256"])
def test_tokens_of_encoded_caches_are_those_without_heads(options: str, engine: Engines) -> None:
    methods = ("kvarn", f"evict:{options}")
    plain, guessing = engine(*methods, kv_bits=16), engine(VERIFIED, *methods, kv_bits=16)
    with load(plain, 1) as llm:
        asked = prompts_of(llm, 6)
        wanted = alone(llm, asked, [Sampling(max_tokens=400, ignore_eos=True)] * 4)
    with load(guessing, 1) as llm:
        found = llm.generate(asked, Sampling(max_tokens=400, ignore_eos=True))
    assert [each.token_ids for each in found] == wanted
    assert sum(each.agreed_tokens for each in found) > 20, "drafts are of use"


def test_the_order_of_methods_changes_nothing(engine: Engines) -> None:
    first, second = (directory.load(engine(*order)) for order in ((VERIFIED, EVICT), (EVICT, VERIFIED)))
    assert first.cache == second.cache and first.decoding == second.decoding
    assert {name: graph.inputs for name, graph in first.graphs.items()} == {
        name: graph.inputs for name, graph in second.graphs.items()
    }


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((HEADS, EVICT), "decides up to 3 in a step.*or with verify=true"),
        ((f"{EVICT},score=h2o", VERIFIED), "takes drafts back, whose marks would stay.*another score"),
    ],
)
def test_what_does_not_go_together(order: tuple[str, str], message: str, tmp_path: Path) -> None:
    recipe = Recipe(apply=tuple(map(parse_method, order)), kv_bits=32, max_context=256)
    with pytest.raises(BuildError, match=message):
        build(str(MODEL), tmp_path / "refused", recipe, "onnxruntime")
    assert not (tmp_path / "refused").exists()
    build(str(MODEL), tmp_path / "untried", recipe, "onnxruntime", trial="none")
    with pytest.raises(UnsupportedError, match=message):
        load(tmp_path / "untried")
