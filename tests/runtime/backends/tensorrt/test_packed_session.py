"""Tests of packed graphs as TensorRT plans that a fake executes: tokens, padding, CUDA graphs, and freed memory."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from enginewright.plugins.libraries.locate import ort_library
from enginewright.runtime import Sampling, load
from enginewright.runtime.artifact.decoder_graph import CONDITION_INDEX, CONDITION_SCALE, INPUTS, token_ports
from enginewright.runtime.backends.device.padded_buffers import PaddedBuffers, pad
from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.backends.tensorrt import packed_session
from enginewright.runtime.backends.tensorrt.contexts import padded_sizes
from enginewright.runtime.backends.tensorrt.packed_session import TensorRTSession
from enginewright.runtime.llm import LLM
from tests.support.runtime.fake_cuda import FakeCuda
from tests.support.runtime.tensorrt_engines import add_plan, install

pytestmark = pytest.mark.native

ROWS = 8  # of the tiny engines


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A device, with TensorRT and our ops on it."""
    cuda = FakeCuda()
    install(monkeypatch, cuda, ort_library())
    return cuda


@pytest.fixture(scope="module")
def plain(make_engine: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windowed and full layers."""
    return add_plan(make_engine(), tmp_path_factory.mktemp("trt") / "plain")


@pytest.fixture(scope="module")
def encoded(make_engine: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of three layers encode their tiles."""
    root = make_engine(windows=(0, 0, 0), encoded=(True, False, True))
    return add_plan(root, tmp_path_factory.mktemp("trt") / "encoded", chunk=128)


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 290, length).tolist() for length in lengths]


def session_of(llm: LLM) -> TensorRTSession:
    session = llm.loop.session
    assert isinstance(session, TensorRTSession)
    return session


def tokens_of(llm: LLM, prompts: list[list[int]], sampling: Sampling) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in llm.generate(prompts, sampling)]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_tokens=70, ignore_eos=True), Sampling(max_tokens=70, ignore_eos=True, temperature=0.9, seed=3)],
    ids=["greedy", "sampled"],
)
def test_tokens_are_those_of_the_cpu(sampling: Sampling, plain: Path, cuda: FakeCuda) -> None:
    """More requests than rows, prompts in chunks and of one token, rows that leave one by one."""
    prompts = prompts_of(1, 5, 127, 128, 129, 200, 64, 30, 255, 3)
    with load(plain, 1, prefill_chunk=48, backend="onnxruntime") as llm:
        wanted = tokens_of(llm, prompts, sampling)
    with load(plain, prefill_chunk=48) as llm:
        assert tokens_of(llm, prompts, sampling) == wanted
        assert set(session_of(llm).contexts.replays) <= {1, 2, 4, 8}
        assert cuda.launches == sum(each.launches for each in session_of(llm).contexts.replays.values()) > 50


def test_logits_are_those_of_the_cpu(plain: Path, cuda: FakeCuda) -> None:
    (prompt,) = prompts_of(301)
    with load(plain, 1, backend="onnxruntime") as llm:
        wanted = llm.logits(prompt)
    with load(plain, prefill_chunk=37) as llm:
        np.testing.assert_allclose(llm.logits(prompt), wanted, atol=2e-4)  # float32 sums in another order


@pytest.mark.parametrize("prompt", [[7], list(range(1, 40))], ids=["one token", "a prompt"])
def test_decoding_is_captured_once_and_replayed(prompt: list[int], plain: Path, cuda: FakeCuda) -> None:
    with load(plain) as llm:
        llm.generate([prompt], Sampling(max_tokens=30, ignore_eos=True))
        decodes = 30 if len(prompt) == 1 else 29  # a prompt of one token is a step like those that follow
        assert cuda.launches == decodes - 1
        assert len(cuda.graphs) == 1
        llm.generate([prompt], Sampling(max_tokens=30, ignore_eos=True))
        assert cuda.launches == 2 * decodes - 1 and len(cuda.graphs) == 1
        contexts = session_of(llm).contexts
        assert contexts.plan.engine._runs == 2 * 30
        assert [replay._context.context._profile for replay in contexts.replays.values()] == [0]
        assert list(contexts._contexts) == ([] if len(prompt) == 1 else [1]), (
            "prompts have the second profile, no graph"
        )


def test_steps_are_filled_up_to_a_bucket(plain: Path, cuda: FakeCuda) -> None:
    """Three and five rows run as four and eight, in tokens that are those of each prompt alone."""
    prompts, sampling = prompts_of(20, 30, 40, 50, 60), Sampling(max_tokens=40, ignore_eos=True)
    with load(plain, 1, max_batch=1, backend="onnxruntime") as llm:
        alone = tokens_of(llm, prompts, sampling)
    with load(plain) as llm:
        assert tokens_of(llm, prompts[:3], sampling) == alone[:3]
        assert set(session_of(llm).contexts.replays) == {4}
        assert tokens_of(llm, prompts, sampling) == alone
        assert set(session_of(llm).contexts.replays) == {4, 8}


def test_a_short_prompt_shares_its_graph_with_rows_that_decode(plain: Path, cuda: FakeCuda) -> None:
    """Four tokens of one row need one prediction; those of four rows need four."""
    prompts, sampling = [[5, 6, 7, 8], *prompts_of(20, 30, 40)], Sampling(max_tokens=30, ignore_eos=True)
    with load(plain, 1, backend="onnxruntime") as llm:
        wanted = tokens_of(llm, prompts, sampling)
    with load(plain) as llm:
        assert tokens_of(llm, prompts[:1], Sampling(max_tokens=1, ignore_eos=True)) == [wanted[0][:1]]
        assert set(session_of(llm).contexts.replays) == {4}
        assert tokens_of(llm, prompts, sampling) == wanted
        assert set(session_of(llm).contexts.replays) == {4}


def test_padding_touches_no_one(encoded: Path, cuda: FakeCuda) -> None:
    """Prompts whose rows are free stay in the cache for others to take over; padding of later steps leaves them alone.

    Nor does it touch rows that run: padding would land in the first tile of an idle row's table, which is someone's.
    """
    first, *others = prompts_of(300, 290, 280, 17)
    sampling = Sampling(max_tokens=60, ignore_eos=True)
    with load(encoded, 1, prefill_chunk=128, backend="onnxruntime") as llm:
        wanted = [
            tokens_of(llm, [first], sampling),
            tokens_of(llm, others, sampling),
            tokens_of(llm, [first], sampling),
        ]
    with load(encoded, prefill_chunk=128) as llm:
        assert isinstance(session_of(llm)._buffers, PaddedBuffers)
        assert tokens_of(llm, [first], sampling) == wanted[0]
        assert tokens_of(llm, others, sampling) == wanted[1]  # three rows, as four
        (again,) = llm.generate([first], sampling)
        assert [again.token_ids] == wanted[2] and again.reused_tokens == 256
        assert set(session_of(llm).contexts.replays) >= {1, 4}


def test_padding_leaves_the_first_tiles_of_free_rows_alone(encoded: Path, cuda: FakeCuda) -> None:
    """Every free row keeps the exact first tile of a prompt for others; three requests take as many, and pad in the fourth."""
    kept, others = prompts_of(300, 290, 280, 270), prompts_of(17, 18, 19)
    sampling = Sampling(max_tokens=40, ignore_eos=True)
    done = {}
    for backend in ("onnxruntime", "tensorrt"):
        with load(encoded, 1, prefill_chunk=128, max_batch=4, backend=backend) as llm:
            llm.generate(kept, sampling)
            llm.generate(others, sampling)
            again = [llm.generate([prompt], sampling)[0] for prompt in kept]
            done[backend] = [(each.token_ids, each.reused_tokens) for each in again]
    assert done["tensorrt"] == done["onnxruntime"]
    assert sum(reused > 0 for _, reused in done["tensorrt"]) == 1


def test_a_row_that_begins_gets_its_own_tiles_back(encoded: Path, cuda: FakeCuda) -> None:
    """Even where the tables stay as they are, which the scheduler's never do then."""
    with load(encoded, prefill_chunk=128, max_batch=3) as llm:
        buffers = session_of(llm)._buffers
        assert isinstance(buffers, PaddedBuffers)

        def tables_for(*counts: int) -> tuple[np.ndarray, list[int]]:
            starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
            tokens = np.zeros(starts[-1], np.int64)
            buffers.write(PackedStep(tokens, tokens, starts, tokens[:1]))
            buffers.read(1, reads_logits=False)
            found = []
            for name in ("tile_table", "slots"):
                buffer = buffers.inputs[name]
                found.append(
                    np.frombuffer(ctypes.string_at(buffer.address, buffer.nbytes), np.int32).reshape(buffer.shape)
                )
            return found[0], found[1].tolist()

        tiles, slots = tables_for(1, 0, 2)
        spare = np.array(llm.capacity.tiles)[:, None, None]
        assert (tiles[:, 1] == spare).all() and not tiles[:, [0, 2]].any() and slots == [0, 3, 2]
        tiles, slots = tables_for(1, 1, 0)
        assert (tiles[:, 2] == spare).all() and not tiles[:, :2].any() and slots == [0, 1, 3]
        buffers._tables.held[0] = 5  # a row that waits is not free
        tiles, slots = tables_for(0, 0, 1)
        assert (tiles[:, 1] == spare).all() and not tiles[:, [0, 2]].any() and slots == [0, 3, 2]


def test_a_first_tile_is_copied_to_another_row(encoded: Path, cuda: FakeCuda) -> None:
    """A prompt is taken over while its holder runs: the exact first tile goes to the other row."""
    (prompt,), sampling = prompts_of(300), Sampling(max_tokens=140, ignore_eos=True)
    with load(encoded, prefill_chunk=128) as llm:
        handle = llm.submit(prompt, sampling)
        next(iter(handle))
        done = [llm.generate([prompt], sampling)[0], handle.result()]
    assert [each.reused_tokens for each in done] == [256, 0]
    assert done[0].token_ids == done[1].token_ids
    with load(encoded, 1, prefill_chunk=128, backend="onnxruntime") as llm:
        assert tokens_of(llm, [prompt], sampling) == [done[0].token_ids]


def test_an_encoded_cache_gives_the_tokens_of_the_cpu(encoded: Path, cuda: FakeCuda) -> None:
    prompts, sampling = prompts_of(1, 127, 128, 129, 300, 5, 260), Sampling(max_tokens=150, ignore_eos=True)
    with load(encoded, 1, prefill_chunk=128, max_batch=4, backend="onnxruntime") as llm:
        wanted = tokens_of(llm, prompts, sampling)
    with load(encoded, prefill_chunk=128, max_batch=4) as llm:
        assert tokens_of(llm, prompts, sampling) == wanted


def test_without_room_for_padding_every_size_has_its_graph(
    make_engine: Callable[..., Path], cuda: FakeCuda, tmp_path: Path
) -> None:
    """Requests come and go, so tables change, and others take tiles over."""
    root = add_plan(make_engine(), tmp_path / "tight", spare=False)
    prompts, sampling = prompts_of(20, 30, 200, 127, 64, 3, 255, 128, 40, 129), Sampling(max_tokens=70, ignore_eos=True)
    with load(root, 1, backend="onnxruntime") as llm:
        wanted = tokens_of(llm, prompts, sampling)
    with load(root, cache_tokens=ROWS * 1024) as llm:
        session = session_of(llm)
        assert not isinstance(session._buffers, PaddedBuffers)
        assert tokens_of(llm, prompts[:3], sampling) == wanted[:3]
        assert list(session.contexts.replays) == [3] and cuda.launches == 68
        assert tokens_of(llm, prompts, sampling) == wanted


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"syncs": True}, "cudaErrorStreamCaptureInvalidated"),
        ({"capturable": False}, "TensorRT-RTX says so"),
    ],
    ids=["a run that waits", "a context that says so"],
)
def test_what_cannot_be_captured_runs_without_and_says_so_once(
    options: dict[str, bool], reason: str, make_engine: Callable[..., Path], cuda: FakeCuda, tmp_path: Path
) -> None:
    root = add_plan(make_engine(), tmp_path / "engine", **options)
    prompts, sampling = prompts_of(20, 30, 40), Sampling(max_tokens=20, ignore_eos=True)
    with load(root, 1, backend="onnxruntime") as llm:
        wanted = tokens_of(llm, prompts, sampling)
    with load(root) as llm, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert tokens_of(llm, prompts, sampling) == wanted
        assert tokens_of(llm, prompts[:1], sampling) == wanted[:1]
    assert cuda.launches == 0
    (message,) = (str(each.message) for each in said)
    assert "cannot be captured as CUDA graphs" in message and reason in message


def test_a_context_that_says_it_can_be_captured_is(
    make_engine: Callable[..., Path], cuda: FakeCuda, tmp_path: Path
) -> None:
    with load(add_plan(make_engine(), tmp_path / "engine", capturable=True)) as llm:
        llm.generate([[1, 2, 3]], Sampling(max_tokens=12, ignore_eos=True))
    assert cuda.launches == 10


def test_captures_can_be_left_out(plain: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_session, "TensorRTSession", partial(TensorRTSession, captures=False))
    prompts, sampling = prompts_of(20, 30), Sampling(max_tokens=20, ignore_eos=True)
    with load(plain, 1, backend="onnxruntime") as llm:
        wanted = tokens_of(llm, prompts, sampling)
    with load(plain) as llm:
        assert tokens_of(llm, prompts, sampling) == wanted
    assert cuda.launches == 0 and not cuda.graphs


def test_preemption_changes_nothing(plain: Path, cuda: FakeCuda) -> None:
    prompts, sampling = prompts_of(120, 120, 120), Sampling(max_tokens=150, ignore_eos=True)
    with load(plain, 1, backend="onnxruntime") as llm:
        wanted = tokens_of(llm, prompts, sampling)
    with load(plain, cache_tokens=640) as tight:
        scheduler, preempted = tight.loop.scheduler, []
        tight.loop.observer = lambda _: preempted.extend(
            each for each in scheduler.waiting if each.request.length > 120
        )
        assert tokens_of(tight, prompts, sampling) == wanted
        assert preempted


def test_everything_is_given_back(plain: Path, cuda: FakeCuda) -> None:
    with load(plain) as llm:
        llm.generate(prompts_of(20, 3), Sampling(max_tokens=8, ignore_eos=True))
        assert cuda.blocks and cuda.streams and cuda.graphs
    del llm  # and nothing waits for the collector of cycles
    assert not cuda.blocks and not cuda.streams and not cuda.graphs


def test_buckets() -> None:
    assert [padded_sizes(most) for most in (1, 2, 3, 8, 9, 32)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 9], [1, 2, 4, 8, 16, 32]
    ]  # fmt: skip


def test_padding_lies_in_the_row_that_takes_it() -> None:
    starts = np.array([0, 1, 1, 3], np.int32)
    each = CONDITION_INDEX, replace(CONDITION_SCALE, axes=("B",))
    brought = dict(
        zip((port.name for port in each), (np.array([1, 2, 2], np.int32), np.ones(3, np.float32)), strict=True)
    )
    step = PackedStep(np.array([5, 6, 7]), np.array([9, 3, 4]), starts, np.array([2, 0]), ((0, 2),), False, brought)
    padded = pad(step, (*INPUTS[:4], *each), 1, 2)
    assert padded.input_ids.tolist() == [5, 0, 0, 6, 7]
    assert padded.position_ids.tolist() == [9, 0, 1, 3, 4]
    assert padded.query_starts.tolist() == [0, 1, 3, 5] and padded.query_starts.dtype == np.int32
    assert padded.sample_rows.tolist() == [4, 0, 0, 0, 0]
    assert padded.sink_copies == ((0, 2),) and not padded.reads_logits
    index, scale = padded.conditions.values()
    assert index.tolist() == [1, 0, 0, 2, 2] and index.dtype == np.int32
    assert scale is brought[CONDITION_SCALE.name]
    assert pad(step, (*INPUTS[:4], *each), 1, 0).conditions[CONDITION_INDEX.name] is brought[CONDITION_INDEX.name]


def test_padding_of_inputs_that_only_a_decoding_kind_has() -> None:
    own, starts = token_ports({"places": "int64", "held": "float32"}), np.array([0, 1, 1, 3], np.int32)
    step = PackedStep(np.arange(3), np.arange(3), starts, np.array([2]), conditions={"places": np.array([7, 8, 9])})
    padded = pad(step, (*INPUTS[:4], *own), 1, 2)
    assert {name: array.tolist() for name, array in padded.conditions.items()} == {"places": [7, 0, 0, 8, 9]}
