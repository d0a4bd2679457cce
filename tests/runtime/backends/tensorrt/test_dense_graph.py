"""Tests of graphs of standard ops as TensorRT plans that a fake executes: tokens, rows, CUDA graphs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.paths import EXAMPLES
from tests.support.runtime.fake_cuda import FakeCuda
from tests.support.runtime.tensorrt_engines import add_plan, install

pytest.importorskip("torch", reason="engines are exported first, which needs enginewright[build]")

from enginewright.exporters.recipe import Recipe
from enginewright.runtime import RequestError, Sampling, UnsupportedError, load
from enginewright.runtime.backends.dense_session import DenseCall, DenseSession
from enginewright.runtime.backends.tensorrt import dense_graph
from enginewright.runtime.backends.tensorrt.dense_graph import TensorRTDenseGraph
from enginewright.runtime.llm import LLM
from tests.support.exporters.fixtures import exported_once

pytestmark = pytest.mark.slow

MODEL = EXAMPLES / "tiny-reasoner"
ROWS, CONTEXT, CHUNK = 6, 256, 32
LENGTHS = (1, 5, 100, 33, 2, 64, 7, 180, 32, 65)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    cuda = FakeCuda()
    install(monkeypatch, cuda)
    return cuda


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_once(tmp_path_factory, MODEL, Recipe(plugins="none", max_batch=ROWS, max_context=CONTEXT))


@pytest.fixture(scope="module")
def engine(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_plan(exported, tmp_path_factory.mktemp("dense") / "engine", chunk=CHUNK)


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 900, length).tolist() for length in lengths]


def graph_of(llm: LLM) -> TensorRTDenseGraph:
    session = llm.loop.session
    assert isinstance(session, DenseSession) and isinstance(session._graph, TensorRTDenseGraph)
    return session._graph


def tokens_of(llm: LLM, prompts: list[list[int]], sampling: Sampling) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in llm.generate(prompts, sampling)]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_tokens=40, ignore_eos=True), Sampling(max_tokens=40, ignore_eos=True, temperature=0.9, seed=3)],
    ids=["greedy", "sampled"],
)
def test_tokens_are_those_of_the_cpu(sampling: Sampling, engine: Path, cuda: FakeCuda) -> None:
    """More requests than rows, pieces of prompts longer than a run and of one token, rows that idle while others run."""
    prompts = prompts_of(*LENGTHS)
    with load(engine, 1, prefill_chunk=50, backend="onnxruntime") as llm:
        wanted = tokens_of(llm, prompts, sampling)
    with load(engine, prefill_chunk=50) as llm:
        assert graph_of(llm).longest == CHUNK
        assert tokens_of(llm, prompts, sampling) == wanted
        replays = graph_of(llm).contexts.replays
        assert set(replays) <= {1, 2, 4, 6} and len(replays) > 1
        assert cuda.launches == sum(each.launches for each in replays.values()) > 60


def test_logits_are_those_of_the_cpu(engine: Path, cuda: FakeCuda) -> None:
    (ids,) = prompts_of(200)
    with load(engine, 1, backend="onnxruntime") as llm:
        wanted = llm.logits(ids)
    with load(engine) as llm:
        np.testing.assert_allclose(llm.logits(ids), wanted, atol=1e-4)  # float32 sums in another order


def test_rows_beside_a_run_keep_what_they_hold(engine: Path, cuda: FakeCuda) -> None:
    """Two rows decode as four while the third reads a long prompt and the fourth is empty; then the third goes on."""
    short, other, long = prompts_of(4, 6, 180)
    sampling = Sampling(max_tokens=50, ignore_eos=True)
    with load(engine, 1, backend="onnxruntime") as llm:
        wanted = [tokens_of(llm, [each], sampling)[0] for each in (short, other, long)]
    with load(engine, prefill_chunk=9) as llm:
        handles = [llm.submit(each, sampling) for each in (short, other)]
        next(iter(handles[1]))
        handles.append(llm.submit(long, sampling))
        assert [handle.result().token_ids for handle in handles] == wanted
        assert {2, 4} <= set(graph_of(llm).contexts.replays)


def test_padding_lies_behind_what_a_row_holds(engine: Path, cuda: FakeCuda) -> None:
    with load(engine) as llm:
        graph = graph_of(llm)
        graph._tables.held[:] = 3, 9, 200, CONTEXT, 0, 0
        ids, past = np.array([[5], [6], [7]]), np.array([3, 9, 150])
        padded = graph._padded(DenseCall(0, ids, past[:, None], past, np.array([2, 0]), 4), 4)
        graph._tables.held[:] = 0
    assert padded.past_lens.tolist() == [3, 9, 150, CONTEXT - 1]
    assert padded.position_ids.tolist() == [[3], [9], [150], [CONTEXT - 1]]
    assert padded.input_ids.tolist() == [[5], [6], [7], [0]]
    assert padded.sample_rows.tolist() == [2, 0, 0, 0] and (padded.first, padded.at) == (0, 4)


def test_the_last_place_of_a_row(engine: Path, cuda: FakeCuda) -> None:
    """A request fills its row to the end while another one continues."""
    prompts = prompts_of(CONTEXT - 20, 9)
    samplings = [Sampling(max_tokens=20, ignore_eos=True), Sampling(max_tokens=60, ignore_eos=True)]
    with load(engine, 1, backend="onnxruntime") as llm:
        wanted = [completion.token_ids for completion in llm.generate(prompts, samplings)]
    with load(engine) as llm:
        assert [completion.token_ids for completion in llm.generate(prompts, samplings)] == wanted


def test_decoding_is_captured_once_and_replayed(engine: Path, cuda: FakeCuda) -> None:
    with load(engine) as llm:
        for times in (1, 2):
            llm.generate([list(range(3, 30))], Sampling(max_tokens=30, ignore_eos=True))
            assert cuda.launches == 29 * times - 1 and len(cuda.graphs) == 1
        contexts = graph_of(llm).contexts
        assert contexts.plan.engine._runs == 2 * 30
        assert [replay._context.context._profile for replay in contexts.replays.values()] == [0]
        assert list(contexts._contexts) == [1], "prompts have the second profile, and no graph"


def test_captures_can_be_left_out(engine: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_graph, "TensorRTDenseGraph", partial(TensorRTDenseGraph, captures=False))
    prompts, sampling = prompts_of(20, 30, 40), Sampling(max_tokens=20, ignore_eos=True)
    with load(engine, 1, backend="onnxruntime") as llm:
        wanted = tokens_of(llm, prompts, sampling)
    with load(engine) as llm:
        assert tokens_of(llm, prompts, sampling) == wanted
    assert cuda.launches == 0


def test_many_runs_in_one_step(engine: Path, cuda: FakeCuda) -> None:
    """All prompts of a step are staged before anything of it is waited for, and more than the stage holds."""
    prompts, sampling = prompts_of(40, 41, 42, 43, 44, 45), Sampling(max_tokens=5, ignore_eos=True)
    with load(engine, 1, backend="onnxruntime") as llm:
        wanted = tokens_of(llm, prompts, sampling)
    with load(engine) as llm:
        graph = graph_of(llm)
        graph._staged = graph._staged[:200]
        assert tokens_of(llm, prompts, sampling) == wanted


def test_fewer_rows_than_the_engine_admits(engine: Path, cuda: FakeCuda) -> None:
    prompts, sampling = prompts_of(5, 20, 30, 8), Sampling(max_tokens=12, ignore_eos=True)
    with load(engine, 1, backend="onnxruntime") as llm:
        wanted = tokens_of(llm, prompts, sampling)
    for rows in (1, 3):
        with load(engine, max_batch=rows) as llm:
            assert tokens_of(llm, prompts, sampling) == wanted
            assert set(graph_of(llm).contexts.replays) <= ({1} if rows == 1 else {1, 2, 3})


def profiles(**changes: Any) -> list[dict[str, Any]]:
    """Profiles of the example's dense graph, with ranges of the second one changed."""
    found = []
    for own in (
        {"B": [1, ROWS], "T": [1, 1], "N": [1, ROWS]},
        {"B": [1, 1], "T": [1, CHUNK], "N": [1, CHUNK], **changes},
    ):
        b, t, n = own["B"], own["T"], own["N"]
        tokens = [[b[0], t[0]], [b[1], t[1]], [b[1], t[1]]]
        caches = [[size, 2, CONTEXT, 64] for size in (b[0], b[1], b[1])]
        named = {"input_ids": tokens, "position_ids": tokens, "past_lens": [b[:1], b[1:], b[1:]]}
        kv = {f"kv.{layer}.{part}": caches for layer in range(4) for part in ("key", "value")}
        found.append({**named, "sample_rows": [n[:1], n[1:], n[1:]], **kv})
    return found


def test_more_samples_than_a_profile_admits(exported: Path, cuda: FakeCuda, tmp_path: Path) -> None:
    root = add_plan(exported, tmp_path / "engine", profiles=profiles(N=[1, 8]))
    message = (
        r"plan: sample_rows: got \[20\], expected \[1\] to \[6\] \(profile 0\) or \[1\] to \[8\] \(profile 1\); "
        r"build an engine with larger limits, or ask for less at once"
    )
    with load(root) as llm:
        assert llm.logits([5, 6, 7]).shape == (3, 1024)
        with pytest.raises(UnsupportedError, match=message):
            llm.logits(list(range(3, 23)))


def test_fewer_rows_in_profiles_than_at_load(exported: Path, cuda: FakeCuda, tmp_path: Path) -> None:
    few = profiles()
    few[0]["past_lens"] = [[1], [4], [4]]
    root = add_plan(exported, tmp_path / "engine", profiles=few)
    message = (
        r"^load: \S+plan: past_lens: got \[6\], expected \[1\] to \[4\] \(profile 0\) or \[1\] to \[1\] \(profile 1\); "
        r"pass a smaller max_batch, or build an engine with larger limits$"
    )
    with pytest.raises(RequestError, match=message):
        load(root)
    with load(root, max_batch=4) as llm:
        assert llm.generate([[5, 6]], Sampling(max_tokens=2, ignore_eos=True))[0].token_ids


def test_rows_that_tensorrt_cannot_read(cuda: FakeCuda, tmp_path: Path) -> None:
    """A row of 3 * 2 * 7 elements of 4 bytes does not begin at a multiple of 256."""
    from enginewright.runtime.backends.device.memory import DeviceBuffer

    plan: Any = type("Plan", (), {"path": Path("p")})()
    caches = {"kv.0.key": DeviceBuffer(256, (2, 3, 2, 7), np.dtype(np.float32))}
    message = (
        r"^p: kv\.0\.key: got rows of 168 bytes, expected a multiple of 256, as TensorRT reads them; build with another"
    )
    with pytest.raises(UnsupportedError, match=message):
        dense_graph._row_bytes(plan, caches)
    alone = {"kv.0.key": DeviceBuffer(256, (1, 3, 2, 7), np.dtype(np.float32))}
    assert dense_graph._row_bytes(plan, alone) == {"kv.0.key": 168}


def test_too_little_memory(engine: Path, cuda: FakeCuda) -> None:
    cuda.free = 1 << 20
    message = (
        r"^load: cuda: device memory: got \d MiB free, expected 1 MiB; use a smaller .*; the cache takes 6 MiB in all$"
    )
    with pytest.raises(RequestError, match=message):
        load(engine, cache_tokens=ROWS * CONTEXT)


def test_everything_is_given_back(engine: Path, cuda: FakeCuda) -> None:
    with load(engine) as llm:
        llm.generate(prompts_of(20, 3), Sampling(max_tokens=8, ignore_eos=True))
        assert cuda.blocks and cuda.streams and cuda.graphs
    del llm  # and nothing waits for the collector of cycles
    assert not cuda.blocks and not cuda.streams and not cuda.graphs
