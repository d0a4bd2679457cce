"""Tests of the real ops under ONNX Runtime: batching, chunks, preemption and windows never change a request's tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from enginewright.runtime import ArtifactError, RequestError, Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import BuiltGraph, Manifest, TensorSpec
from enginewright.runtime.machine import compute_name

pytestmark = pytest.mark.native

# One token's matrix products differ from a batch's by rounding; the random weights make logits of size 10.
TOLERANCE = 2e-4


def _prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 290, length).tolist() for length in lengths]


def test_logits_do_not_depend_on_chunks(tiny_engine: Path) -> None:
    (prompt,) = _prompts(301)
    with load(tiny_engine, 1) as whole, load(tiny_engine, 1, prefill_chunk=37) as chunked:
        expected = whole.logits(prompt)
        assert expected.shape == (301, 300) and np.isfinite(expected).all()
        np.testing.assert_allclose(chunked.logits(prompt), expected, atol=TOLERANCE)
        for end in (1, 128, 129):
            np.testing.assert_allclose(whole.logits(prompt[:end]), expected[:end], atol=TOLERANCE)


def test_greedy_decoding_follows_teacher_forcing(tiny_engine: Path) -> None:
    prompts = _prompts(1, 5, 127, 128, 129, 200, 64, 30, 255, 3)
    with load(tiny_engine, 2, prefill_chunk=48) as llm:
        done = llm.generate(prompts, Sampling(max_tokens=140, ignore_eos=True))
        for prompt, completion in zip(prompts, done, strict=True):
            logits = llm.logits([*prompt, *completion.token_ids[:-1]])[len(prompt) - 1 :]
            chosen = np.take_along_axis(logits, np.array(completion.token_ids)[:, None], axis=1)[:, 0]
            assert (chosen >= logits.max(axis=1) - TOLERANCE).all()


def test_preemption_changes_nothing(tiny_engine: Path) -> None:
    prompts, sampling = _prompts(120, 120, 120), Sampling(max_tokens=150, temperature=0.8, seed=1, ignore_eos=True)
    with load(tiny_engine, 1) as roomy, load(tiny_engine, 1, cache_tokens=640) as tight:
        scheduler, preempted = tight.loop.scheduler, []
        tight.loop.observer = lambda _: preempted.extend(
            each for each in scheduler.waiting if each.request.length > 120
        )
        assert [c.token_ids for c in tight.generate(prompts, sampling)] == [
            c.token_ids for c in roomy.generate(prompts, sampling)
        ]
        assert preempted


def test_text_streams(tiny_engine: Path) -> None:
    with load(tiny_engine, 1) as llm:
        sampling = Sampling(max_tokens=40, temperature=1.0, seed=4)
        pieces = [token.text for token in llm.stream("the cat", sampling)]
        done = llm.generate("the cat", sampling)[0]
        assert "".join(pieces) == done.text
        with pytest.raises(RequestError, match="no chat template"):
            llm.chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 9}, "max_batch: got 9, expected 1 to 8"),
        ({"max_batch": 0}, "max_batch: got 0"),
        ({"threads": 0}, "threads: got 0"),
        ({"cache_tokens": -5}, "cache_tokens: got -5"),
        ({"prefill_chunk": 0}, "prefill_chunk: got 0"),
    ],
)
def test_load_refuses_bad_parameters(tiny_engine: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load(tiny_engine, **options)


def _with_engine(root: Path, **changes: object) -> Path:
    """Add an engine built for this machine, but for `changes`."""
    manifest = directory.load(root)
    graph = manifest.graphs["decoder"]
    (root / "engines").mkdir()
    path = root / "engines/decoder.onnx"
    path.write_bytes((root / graph.files[0].path).read_bytes())
    files = (directory.describe_file(root, path),)
    engine = BuiltGraph(backend="onnxruntime", version=onnxruntime.__version__, compute=compute_name(), files=files)
    _save(root, manifest, engines=(dataclasses.replace(engine, **changes),))
    return root


def _save(root: Path, manifest: Manifest, **changes: object) -> None:
    graph = dataclasses.replace(manifest.graphs["decoder"], **changes)
    directory.save(dataclasses.replace(manifest, graphs={"decoder": graph}), root)


def test_an_engine_for_this_machine_is_used(make_engine: Callable[..., Path]) -> None:
    root = make_engine()
    with load(root, 1) as llm:
        expected = llm.generate([1], Sampling(max_tokens=9))
    _with_engine(root)
    manifest = directory.load(root)
    path = root / "graphs/decoder.onnx"
    path.write_bytes(b"\x00broken")
    _save(root, manifest, files=(directory.describe_file(root, path),))
    with load(root, 1) as llm:
        assert llm.generate([1], Sampling(max_tokens=9))[0].token_ids == expected[0].token_ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "1.2.3"}, "built for onnxruntime 1.2.3, installed is"),
        ({"compute": "sparc"}, "built for sparc, this machine is"),
        ({"plugins": {"PagedAttention": 99}}, "built with PagedAttention version 99, installed is 1"),
    ],
)
def test_another_engine_falls_back_to_the_graph(
    make_engine: Callable[..., Path], changes: dict[str, object], message: str
) -> None:
    root = _with_engine(make_engine(), **changes)
    with pytest.warns(UserWarning, match=message), load(root, 1) as llm:
        assert llm.generate([1], Sampling(max_tokens=2))[0].token_ids


def test_what_the_graph_needs_and_the_runtime_lacks_is_named(make_engine: Callable[..., Path]) -> None:
    root = make_engine()
    manifest = directory.load(root)
    graph = manifest.graphs["decoder"]
    extra = TensorSpec(name="steering", dtype="float32", shape=("B",))
    other = dataclasses.replace(graph.inputs[0], dtype="int32")
    for changes, message in (
        ({"inputs": (*graph.inputs, extra)}, "input 'steering': unknown to this runtime"),
        ({"inputs": (other, *graph.inputs[1:])}, "input 'input_ids': got int32, expected int64"),
        ({"inputs": graph.inputs[1:]}, "differ in inputs input_ids"),
        ({"outputs": graph.outputs[1:]}, "no output 'logits'"),
        ({"outputs": (graph.outputs[0], *graph.outputs[2:])}, "no output 'greedy_tokens'"),
        ({"ops": {"PagedAttention": 2}}, "PagedAttention version 2, this installation has version 1"),
        ({"ops": {"Magic": 1}}, "op 'Magic' is unknown"),
    ):
        _save(root, manifest, **changes)
        with pytest.raises(ArtifactError, match=message):
            load(root, 1)


def test_an_unknown_decoding_kind_lists_the_known_ones(make_engine: Callable[..., Path]) -> None:
    root = make_engine()
    directory.save(dataclasses.replace(directory.load(root), decoding={"kind": "oracle"}), root)
    with pytest.raises(ArtifactError, match=r"got 'oracle', expected one of autoregressive"):
        load(root, 1)


def test_a_broken_graph_is_an_artifact_error(make_engine: Callable[..., Path]) -> None:
    root = make_engine()
    path, manifest = root / "graphs/decoder.onnx", directory.load(root)
    path.write_bytes(b"\x00broken")
    with pytest.raises(ArtifactError, match="bytes, expected"):
        load(root, 1)
    _save(root, manifest, files=(directory.describe_file(root, path),))
    with pytest.raises(ArtifactError, match=r"decoder\.onnx: onnxruntime .* cannot load it"):
        load(root, 1)


@pytest.fixture(scope="module")
def kvarn_engine(make_engine: Callable[..., Path]) -> Path:
    """Two of three layers encode their tiles."""
    return make_engine(windows=(0, 0, 0), encoded=(True, False, True))


def test_an_encoded_cache_serves_what_a_request_gets_alone(kvarn_engine: Path) -> None:
    prompts = _prompts(1, 127, 128, 129, 300, 5, 260)
    sampling = Sampling(max_tokens=150, ignore_eos=True)
    with load(kvarn_engine, 1, max_batch=1, prefill_chunk=128, prefix_reuse=False) as alone:
        expected = [alone.generate([prompt], sampling)[0].token_ids for prompt in prompts]
        logits = [alone.logits([*p, *ids[:-1]])[len(p) - 1 :] for p, ids in zip(prompts, expected, strict=True)]
    for options in ({"max_batch": 4}, {"max_batch": 3, "cache_tokens": 640}):
        with load(kvarn_engine, 2, prefill_chunk=128, **options) as llm:
            for done, ids, seen in zip(llm.generate(prompts * 2, sampling), expected * 2, logits * 2, strict=True):
                differs = np.flatnonzero(np.array(done.token_ids) != np.array(ids))
                if len(differs):  # a near tie, decided by rounding
                    at = differs[0]
                    assert seen[at, done.token_ids[at]] >= seen[at].max() - 0.05


def test_a_reused_prompt_gives_the_same_tokens(kvarn_engine: Path) -> None:
    """The first tile is copied to another row while its holder runs, and found in place when it has ended."""
    (prompt,), sampling = _prompts(300), Sampling(max_tokens=140, ignore_eos=True)
    with load(kvarn_engine, 1, prefill_chunk=128) as llm:
        handle = llm.submit(prompt, sampling)
        next(iter(handle))
        done = [llm.generate([prompt], sampling)[0], handle.result(), llm.generate([prompt], sampling)[0]]
        assert [each.reused_tokens for each in done] == [256, 0, 256]
        assert len({each.token_ids for each in done}) == 1
        for index in (0, 2):
            exact = llm.loop.session._buffers[f"kv.{index}.exact"]
            assert exact.shape == (8, 2, 2, 2 * 128 * 16) and exact.dtype == np.float16
            assert exact[0, :, 0].any() and (exact[1, :, 0] == exact[0, :, 0]).all()
            assert not exact[2:].any()


def test_rows_are_their_own_slots(kvarn_engine: Path) -> None:
    with load(kvarn_engine, 1) as llm:
        buffers = llm.loop.session._buffers
        assert buffers["slots"].tolist() == list(range(8)) and buffers["slots"].dtype == np.int32
        assert buffers["encoded_lens"] is llm.loop.scheduler.tables.encoded_lens
        assert buffers["encoded_lens"].shape == (2, 3, 8, 2)
        assert not any(name.startswith("kv.1.") and name.endswith("exact") for name in buffers)


@pytest.mark.parametrize(
    ("exact_bytes", "message"),
    [
        (
            (0, 0, 8192),
            r"input 'kv\.0\.exact': not in the manifest's cache, which has kv\.0\.tiles, .*; build the engine",
        ),
        ((8192, 8192, 8192), r"the decoder graph takes no 'kv\.1\.exact', which the cache has; build the engine again"),
    ],
)
def test_a_cache_that_is_not_the_graphs_is_refused(
    make_engine: Callable[..., Path], exact_bytes: tuple[int, ...], message: str
) -> None:
    root = make_engine(windows=(0, 0, 0), encoded=(True, False, True))
    manifest = directory.load(root)
    assert [layer.exact_bytes for layer in manifest.cache.layers] == [8192, 0, 8192]
    layers = zip(manifest.cache.layers, exact_bytes, strict=True)
    changed = tuple(dataclasses.replace(layer, exact_bytes=size) for layer, size in layers)
    directory.save(dataclasses.replace(manifest, cache=dataclasses.replace(manifest.cache, layers=changed)), root)
    with pytest.raises(ArtifactError, match=message):
        load(root, 1)


def test_what_sessions_offer_to_cache_policies(make_engine: Callable[..., Path]) -> None:
    encoded = make_engine(windows=(0, 0, 0), encoded=(True, False, True))
    for root, offered in ((make_engine(), {"tiles"}), (encoded, {"tiles"})):
        with load(root, 1) as llm:
            assert llm.loop.session.offers == offered
