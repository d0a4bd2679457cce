"""Engines with steering: rows of one batch are as alone, through everything that a scheduler does; bad input is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from enginewright.exporters.build import build
from enginewright.exporters.export import _declare
from enginewright.exporters.methods.function_vectors.vectors import steered
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.methods.steering.vector_folder import write_vectors
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime import LLM, ArtifactError, RequestError, Sampling, UnsupportedError, load
from enginewright.runtime.errors import ExportError
from tests.support.exporters.reasoner_engines import MODEL, Engines, alone, count_preemptions, prompts_of, together
from tests.support.paths import EXAMPLES

pytestmark = [pytest.mark.native, pytest.mark.slow]

STEER = "steering:capacity=2"
GREEDY = Sampling(max_tokens=24, ignore_eos=True)
CALM = Sampling(max_tokens=24, ignore_eos=True, vector="calm")
WILD = Sampling(max_tokens=24, ignore_eos=True, vector="wild", vector_scale=1.5)
MIXED = [CALM, GREEDY, WILD, GREEDY]


@pytest.fixture(scope="module")
def facts() -> SimpleNamespace:
    """The sizes and the hash of the model."""
    checkpoint = open_checkpoint(str(MODEL))
    config = checkpoint.config
    return SimpleNamespace(layers=config.num_hidden_layers, size=config.hidden_size, sha256=hash_of(checkpoint))


def vectors(facts: SimpleNamespace, seed: int) -> dict[int, np.ndarray]:
    """A vector for two layers, large enough to change answers."""
    rng = np.random.default_rng(seed)
    return {layer: rng.normal(0, 6, facts.size).astype(np.float32) for layer in (0, facts.layers - 1)}


def write(folder: Path, facts: SimpleNamespace, seed: int, **changes: object) -> Path:
    """A folder of vectors that fits the model."""
    by_layer = changes.pop("by_layer", None) or vectors(facts, seed)
    tensors = {f"dfv.{layer}": vector for layer, vector in by_layer.items()}  # type: ignore[attr-defined]
    given = {"task": folder.name, "model": {"name": "it", "sha256": facts.sha256}, "layer": 0, "more": {}, **changes}
    write_vectors(folder, {**tensors, "fv": sum(by_layer.values())}, **given)  # type: ignore[arg-type, attr-defined]
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, facts: SimpleNamespace) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vectors")
    return {name: write(root / name, facts, seed) for seed, name in enumerate(("calm", "wild", "third"))}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def llm(engine: Engines, folders: dict[str, Path]) -> Iterator[LLM]:
    """An engine with two vectors, which tests leave there."""
    with load(engine(STEER), 1) as loaded:
        give(loaded, folders)
        yield loaded


def give(llm: LLM, folders: dict[str, Path]) -> None:
    assert [llm.load_vector(folders[name]) for name in ("calm", "wild")] == ["calm", "wild"]


def test_rows_without_a_vector_are_those_of_a_plain_engine(llm: LLM, engine: Engines) -> None:
    """Bit for bit; and next to rows with vectors, every row is as alone."""
    prompts = prompts_of(llm)
    with load(engine(), 1) as plain:
        np.testing.assert_array_equal(llm.logits(prompts[2]), plain.logits(prompts[2]))
        expected = alone(plain, prompts, [GREEDY] * 4)
    found = together(llm, prompts, MIXED)
    assert found == alone(llm, prompts, MIXED)
    assert (found[1], found[3]) == (expected[1], expected[3])
    assert found[0] != expected[0] and found[2] != expected[2]
    off = Sampling(max_tokens=24, ignore_eos=True, vector="calm", vector_scale=0)
    assert alone(llm, prompts[:1], [off]) == expected[:1]


def test_logits_are_those_of_pytorch(llm: LLM, facts: SimpleNamespace) -> None:
    """Scores are steered from the first token on; tokens from the prompt's last one on."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    ids = prompts_of(llm)[2]
    at_heads = {layer: torch.from_numpy(vector) for layer, vector in vectors(facts, 0).items()}
    with torch.no_grad(), steered(model, heads=at_heads, scale=0.5, first=0):
        expected = model(torch.tensor([ids])).logits[0].numpy()
    got = llm.logits(ids, Sampling(vector="calm", vector_scale=0.5))
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    tokens = llm.generate(ids, CALM)[0].token_ids
    with torch.no_grad(), steered(model, heads=at_heads, first=len(ids) - 1):
        logits = model(torch.tensor([[*ids, *tokens[:-1]]])).logits[0, len(ids) - 1 :].numpy()
    chosen = np.take_along_axis(logits, np.array(tokens)[:, None], axis=1)[:, 0]
    assert (chosen >= logits.max(axis=1) - 1e-3).all()


def test_chunks_and_preemption(
    llm: LLM, engine: Engines, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in pieces, in a cache that holds no two whole requests: rows are given up, and computed again."""
    samplings = [
        Sampling(max_tokens=150, ignore_eos=True, vector=each.vector, vector_scale=each.vector_scale) for each in MIXED
    ]
    prompts = [prompt[:100] for prompt in prompts_of(llm, 20)]
    expected = alone(llm, prompts, samplings)
    preempted = count_preemptions(monkeypatch)
    with load(engine(STEER), 1, cache_tokens=512, prefill_chunk=32) as small:
        give(small, folders)
        assert together(small, prompts, samplings) == expected
    assert preempted[0]


def test_prefixes_are_shared_up_to_the_prompts_last_token(llm: LLM, engine: Engines, folders: dict[str, Path]) -> None:
    with load(engine(STEER), 1) as fresh:
        give(fresh, folders)
        prompt = (prompts_of(fresh)[2] * 40)[:384]  # three whole tiles
        first, plain, again, other = (
            fresh.generate(tokens, sampling)[0]
            for tokens, sampling in ((prompt, CALM), ([*prompt, 5, 6], GREEDY), (prompt, CALM), (prompt, WILD))
        )
    assert [each.reused_tokens for each in (first, plain, again, other)] == [0, 256, 256, 256]
    with load(engine(STEER), 1, prefix_reuse=False) as whole:
        give(whole, folders)
        expected = alone(whole, [prompt, [*prompt, 5, 6], prompt], [CALM, GREEDY, WILD])
    assert [first.token_ids, plain.token_ids, other.token_ids] == expected and again.token_ids == expected[0]


def test_kvarn(engine: Engines, folders: dict[str, Path]) -> None:
    with load(engine("kvarn", STEER, kv_bits=None), 1) as encoded:
        give(encoded, folders)
        prompts = [prompt[:300] for prompt in prompts_of(encoded, 40)]
        found = together(encoded, prompts, MIXED)
        assert found == alone(encoded, prompts, MIXED)
        assert found[0] != alone(encoded, prompts[:1], [GREEDY])[0]


def test_guesses_that_the_model_verifies(llm: LLM, engine: Engines, folders: dict[str, Path]) -> None:
    expected = together(llm, prompts_of(llm), MIXED)
    with load(engine(f"clp:heads={EXAMPLES / 'tiny-reasoner-clp'},verify=true", STEER), 1) as guessing:
        give(guessing, folders)
        assert together(guessing, prompts_of(guessing), MIXED) == expected
        done = guessing.generate(prompts_of(guessing)[1], Sampling(max_tokens=60))[0]
        assert done.guessed_tokens > 0, "it guesses at all"


def test_an_engine_of_standard_ops(llm: LLM, engine: Engines, folders: dict[str, Path]) -> None:
    with load(engine(STEER, plugins="none"), 1) as dense:
        give(dense, folders)
        assert together(dense, prompts_of(dense), MIXED) == together(llm, prompts_of(llm), MIXED)


def test_the_sum_in_the_stream_and_vectors_from_the_beginning(
    engine: Engines, folders: dict[str, Path], facts: SimpleNamespace
) -> None:
    root = engine(f"steering:at=stream,tokens=all,layers=0-1,capacity=2,vectors={folders['calm']}+{folders['wild']}")
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    with load(root, 1) as llm:
        assert llm.vectors == ("calm", "wild")
        ids = prompts_of(llm)[0]
        whole = torch.from_numpy(sum(vectors(facts, 1).values()))
        tokens = llm.generate(ids, Sampling(max_tokens=8, ignore_eos=True, vector="wild"))[0].token_ids
        with torch.no_grad(), steered(model, stream={0: whole}, first=0):
            logits = model(torch.tensor([[*ids, *tokens[:-1]]])).logits[0, len(ids) - 1 :].numpy()
    chosen = np.take_along_axis(logits, np.array(tokens)[:, None], axis=1)[:, 0]
    assert (chosen >= logits.max(axis=1) - 1e-3).all()


def test_loading_stalls_no_row(engine: Engines, folders: dict[str, Path]) -> None:
    """While vectors are loaded and dropped, every step still gives every row a token, the same as ever."""
    with load(engine(STEER), 1) as serving:
        give(serving, folders)
        long = Sampling(max_tokens=300, ignore_eos=True, vector="calm")
        expected = serving.generate(prompts_of(serving)[0], long)[0].token_ids
        sampled: list[int] = []
        serving.loop.observer = lambda timing: sampled.append(timing.sampled)
        handle = serving.submit(prompts_of(serving)[0], long)
        next(iter(handle))
        loads = 0
        while not handle.done and loads < 20:
            serving.drop_vector("wild")
            serving.load_vector(folders["third"], "wild")
            loads += 1
        assert handle.result().token_ids == expected and loads > 1
        # the observer may still see the last step of the request before
        assert len(sampled) in (300, 301) and set(sampled) == {1}, "no step without a token of the row"


def test_what_is_in_use_is_not_dropped(llm: LLM, folders: dict[str, Path]) -> None:
    gate = threading.Event()
    handle = llm.submit(prompts_of(llm)[0], CALM, on_event=lambda event: gate.wait(20) and None)
    waiting = threading.Timer(0.2, gate.set)
    waiting.start()
    with pytest.raises(RequestError, match=r"got 'calm' to drop, and 1 requests that have not ended use it"):
        llm.drop_vector("calm")
    waiting.join()
    assert handle.result().token_ids == llm.generate(prompts_of(llm)[0], CALM)[0].token_ids
    llm.drop_vector("calm")
    with pytest.raises(RequestError, match=r"got 'calm', expected one of the entries wild"):
        llm.generate("1", CALM)
    with pytest.raises(RequestError, match=r"got 'calm' to drop, expected one of the entries that it has: wild"):
        llm.drop_vector("calm")
    assert llm.load_vector(folders["calm"]) == "calm"


def test_vectors_that_do_not_fit(llm: LLM, facts: SimpleNamespace, folders: dict[str, Path], tmp_path: Path) -> None:
    """Each is an error to its caller alone."""
    other = llm.submit(prompts_of(llm)[0], CALM)
    last = facts.layers - 1
    for name, changes, message in (
        ("hash", {"model": {"name": "other", "sha256": "0" * 64}}, r"got vectors made on other \(0{12}\), expected"),
        ("shape", {"by_layer": {0: np.ones(3)}}, r"layer 0: got a vector of shape \[3\], expected"),
        (
            "layer",
            {"by_layer": {last + 1: np.ones(facts.size)}},
            f"got a vector for layer {last + 1}, expected layers among 0",
        ),
        ("nan", {"by_layer": {0: np.full(facts.size, np.nan)}}, "layer 0: got values that are not finite"),
    ):
        with pytest.raises(ArtifactError, match=message):
            llm.load_vector(write(tmp_path / name, facts, 0, **changes))
    with pytest.raises(RequestError, match=r"the engine holds 2 \(.*\); replace one of these or drop it"):
        llm.load_vector(folders["third"])
    with pytest.raises(ArtifactError, match=r"nowhere/task\.json: not found; pass a folder"):
        llm.load_vector(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="the name '', expected text"):
        llm.load_vector(folders["calm"], "")
    for sampling, message in (
        ({"vector": "unknown"}, r"got 'unknown', expected one of the entries"),
        (
            {"vector": "calm", "conditions": {"steering": "wild"}},
            r"vector: got 'calm', and conditions\['steering'\] as well",
        ),
    ):
        with pytest.raises(RequestError, match=message):
            llm.generate("1", Sampling(**sampling))  # type: ignore[arg-type]
    assert other.result().token_ids == llm.generate(prompts_of(llm)[0], CALM)[0].token_ids


def test_an_engine_without_vectors(engine: Engines, folders: dict[str, Path]) -> None:
    with load(engine(), 1) as plain:
        for call in (
            lambda: plain.load_vector(folders["calm"]),
            lambda: plain.generate("1", CALM),
            lambda: plain.vectors,
        ):
            with pytest.raises(RequestError, match="got a vector, but this engine adds none"):
                call()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vector": ""}, r"vector: got '', expected the name of a vector"),
        ({"vector": 3}, r"vector: got 3"),
        ({"vector_scale": 2.0}, r"vector_scale: got 2.0 without a name; name one in vector"),
        ({"vector": "calm", "vector_scale": float("nan")}, r"vector_scale: got nan, expected a finite number"),
        ({"vector": "calm", "vector_scale": "2"}, r"vector_scale: got '2'"),
    ],
)
def test_samplings(given: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=rf"Sampling\.{message}"):
        Sampling(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("layers=some", "got layers='some', expected all, or numbers"),
        ("layers=3-1", "layers: got 3-1, expected layers from 0 to"),
        ("layers=0+99", "layers: got 99"),
        ("capacity=0", "got capacity=0, expected 1 to 4096"),
        ("at=mlp", "at"),
        ("tokens=some", "tokens"),
        ("vectors=nowhere", "nowhere"),
    ],
)
def test_options(options: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        build(str(MODEL), tmp_path / "engine", Recipe(apply=(parse_method(f"steering:{options}"),)), "onnxruntime")


def test_vectors_of_a_build_that_do_not_fit(folders: dict[str, Path], facts: SimpleNamespace, tmp_path: Path) -> None:
    wrong = write(tmp_path / "wrong", facts, 0, model={"name": "other", "sha256": "0" * 64})
    both = f"{folders['calm']}+{folders['wild']}"
    for options, message in (
        (f"vectors={wrong}", "steering: .*got vectors made on other"),
        (f"vectors={both},capacity=1", r"vectors: got 2, expected at most capacity=1"),
        (f"vectors={folders['calm']}+{folders['calm']}", "got two called 'calm'"),
    ):
        with pytest.raises(ExportError, match=message):
            build(str(MODEL), tmp_path / "engine", Recipe(apply=(parse_method(f"steering:{options}"),)), "onnxruntime")
    adapter = parse_method(f"lora:path={EXAMPLES / 'tiny-reasoner-lora'}")
    with pytest.raises(ExportError, match="got vectors made on it"):  # made before the adapter
        recipe = Recipe(apply=(adapter, parse_method(f"steering:vectors={folders['calm']}")))
        build(str(MODEL), tmp_path / "engine", recipe, "onnxruntime")


def test_models_that_decide_tokens_in_no_order_are_refused() -> None:
    recipe = Recipe(apply=(parse_method("steering"),))
    with pytest.raises(UnsupportedError, match=r"condition 'steering': got a model whose tokens see later ones"):
        _declare(recipe, open_checkpoint(str(MODEL)), SimpleNamespace(sees_later=True))  # type: ignore[arg-type]
