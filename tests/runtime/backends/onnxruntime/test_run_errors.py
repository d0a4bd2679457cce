"""Tests of graphs that load and then disagree with their manifest: an error that names the graph, and no request that hangs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from enginewright.runtime import ArtifactError, Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.llm import LLM
from tests.support.runtime.fake_backends import PACKED_BACKENDS, build_for_all, fake_devices

pytestmark = pytest.mark.native

Change = Callable[[onnx.GraphProto], None]
Make = Callable[..., Path]


def changed(engine: Path, change: Change) -> Path:
    """The engine after a change of its graph of which its manifest has no more than the checksum."""
    manifest, path = directory.load(engine), engine / "graphs/decoder.onnx"
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    graph = replace(manifest.graphs["decoder"], files=(directory.describe_file(engine, path),))
    directory.save(replace(manifest, graphs={"decoder": graph}), engine)
    return engine


def smaller_embedding(graph: onnx.GraphProto) -> None:
    """Cut the embedding to 100 tokens."""
    (table,) = (each for each in graph.initializer if each.name == "embed")
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:100], "embed"))


def wider_logits(graph: onnx.GraphProto) -> None:
    """Give the logits 40 tokens more than the vocabulary has."""
    (head,) = (each for each in graph.initializer if each.name == "head")
    head.CopyFrom(numpy_helper.from_array(np.pad(numpy_helper.to_array(head), ((0, 0), (0, 40))), "head"))
    (logits,) = (each for each in graph.output if each.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_value = 340


def shifted_tokens(by: int) -> Change:
    """Add `by` to every greedy token."""

    def change(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array(by, np.int64), "by"))
        graph.node[-1].output[0] = "own_tokens"
        graph.node.append(helper.make_node("Add", ["own_tokens", "by"], ["greedy_tokens"]))

    return change


def serves(llm: LLM, prompt: list[int], sampling: Sampling) -> tuple[int, ...]:
    return llm.generate(prompt, sampling)[0].token_ids


def test_a_token_that_the_graph_does_not_know_is_the_graphs_error(make_engine: Make) -> None:
    """All requests of the step fail; the next ones are served, with the tokens that the whole graph gives."""
    engine = make_engine()
    sampling = Sampling(max_tokens=1, ignore_eos=True)
    with load(engine, 1) as whole:
        expected = serves(whole, [5, 6], sampling)
    with load(changed(engine, smaller_embedding), 1) as llm:
        for _ in range(2):
            for handle in llm.submit_all([[5, 250], [6]], sampling):
                with pytest.raises(ArtifactError, match=r"graphs/decoder\.onnx: onnxruntime .* could not run it \(.*"):
                    handle.result()
            assert serves(llm, [5, 6], sampling) == expected
        with pytest.raises(ArtifactError, match=r"graphs/decoder\.onnx: .*build the engine again"):
            llm.logits([5, 299])


def test_logits_of_another_width_are_the_graphs_error(make_engine: Make) -> None:
    with load(changed(make_engine(), wider_logits), 1) as llm:
        for _ in range(2):
            with pytest.raises(ArtifactError, match=r"graphs/decoder\.onnx: onnxruntime .* could not run it"):
                llm.generate([5, 6], Sampling(max_tokens=3))


@pytest.mark.parametrize("by", [300, -300, 2**33, 2**63 - 400, -(2**62)])
def test_a_token_beyond_the_vocabulary_ends_its_request(make_engine: Make, by: int, byte_tokenizer: object) -> None:
    """Before it reaches the tokenizer, which raises OverflowError, or a step, which would fail for all."""
    engine = make_engine(tokenizer=byte_tokenizer)
    with load(engine, 1) as whole:
        logits = whole.logits([5, 6])
    token = int(logits[-1].argmax()) + by
    with load(changed(engine, shifted_tokens(by)), 1) as llm:
        for options in (
            {},
            {"logit_bias": {7: 1.0}},
            {"repetition_penalty": 1.5},
            {"logprobs": 2},
            {"temperature": 1.0},
        ):
            with pytest.raises(ArtifactError) as got:
                llm.generate([5, 6], Sampling(max_tokens=4, ignore_eos=True, **options))
            assert str(got.value).startswith(f"decoder graph: got token id {token} from it, expected 0 to 299"), options
        np.testing.assert_array_equal(llm.logits([5, 6]), logits)


@pytest.mark.parametrize("backend", PACKED_BACKENDS)
def test_every_backend_ends_the_request_alone(
    make_engine: Make, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_devices(monkeypatch)
    engine = build_for_all(changed(make_engine(), shifted_tokens(300)), tmp_path / "engine", chunk=16)
    with load(engine, 1, backend=backend, prefill_chunk=16) as llm:
        for _ in range(2):
            with pytest.raises(ArtifactError, match=r"^decoder graph: got token id \d+ from it, expected 0 to 299"):
                llm.generate([5, 6], Sampling(max_tokens=4, ignore_eos=True))
            assert np.isfinite(llm.logits([5, 6])).all()


def test_a_graph_that_a_device_cannot_run_is_named(
    make_engine: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_devices(monkeypatch)
    engine = build_for_all(changed(make_engine(), smaller_embedding), tmp_path / "engine", chunk=16)
    with load(engine, 1, backend="onnxruntime-cuda", prefill_chunk=16) as llm:
        expected = llm.logits([5, 6])
        with pytest.raises(
            ArtifactError, match=r"graphs/decoder\.onnx: onnxruntime .* could not run it \(.*: build the"
        ):
            llm.generate([250], Sampling(max_tokens=3))
        np.testing.assert_array_equal(llm.logits([5, 6]), expected)
