"""The real op under ONNX Runtime: batching, chunks, preemption and windows give what one request alone gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from enginewright.runtime import ArtifactError, RequestError, Sampling, artifact, load
from enginewright.runtime.artifact import Engine, Manifest, TensorSpec
from enginewright.runtime.host import compute_name

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
        scheduler, preempted = tight.engine.scheduler, []
        tight.engine.observer = lambda _: preempted.extend(r for r in scheduler.waiting if r.length > 120)
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
    manifest = artifact.load(root)
    graph = manifest.graphs["decoder"]
    (root / "engines").mkdir()
    path = root / "engines/decoder.onnx"
    path.write_bytes((root / graph.files[0].path).read_bytes())
    files = (artifact.describe_file(root, path),)
    engine = Engine(backend="onnxruntime", version=onnxruntime.__version__, compute=compute_name(), files=files)
    _save(root, manifest, engines=(dataclasses.replace(engine, **changes),))
    return root


def _save(root: Path, manifest: Manifest, **changes: object) -> None:
    graph = dataclasses.replace(manifest.graphs["decoder"], **changes)
    artifact.save(dataclasses.replace(manifest, graphs={"decoder": graph}), root)


def test_an_engine_for_this_machine_is_used(make_engine: Callable[..., Path]) -> None:
    root = make_engine()
    with load(root, 1) as llm:
        expected = llm.generate([1], Sampling(max_tokens=9))
    _with_engine(root)
    manifest = artifact.load(root)
    path = root / "graphs/decoder.onnx"
    path.write_bytes(b"\x00broken")
    _save(root, manifest, files=(artifact.describe_file(root, path),))
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
    manifest = artifact.load(root)
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
    artifact.save(dataclasses.replace(artifact.load(root), decoding={"kind": "oracle"}), root)
    with pytest.raises(ArtifactError, match=r"got 'oracle', expected one of autoregressive"):
        load(root, 1)


def test_a_broken_graph_is_an_artifact_error(make_engine: Callable[..., Path]) -> None:
    root = make_engine()
    path, manifest = root / "graphs/decoder.onnx", artifact.load(root)
    path.write_bytes(b"\x00broken")
    with pytest.raises(ArtifactError, match="bytes, expected"):
        load(root, 1)
    _save(root, manifest, files=(artifact.describe_file(root, path),))
    with pytest.raises(ArtifactError, match=r"decoder\.onnx: onnxruntime .* cannot load it"):
        load(root, 1)
