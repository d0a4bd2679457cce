"""Tests of conditions: what a request names reaches its own tokens alone, on every backend, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.runtime import Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import ConditionTensor, TensorSpec
from enginewright.runtime.backends.conditions import condition_bytes
from enginewright.runtime.backends.device.padded_buffers import PaddedBuffers
from enginewright.runtime.errors import ArtifactError, RequestError
from enginewright.runtime.llm import LLM
from tests.support.runtime.conditioned_engines import NamingSession, add_conditions, add_entries, bake, steering
from tests.support.runtime.fake_backends import PACKED_BACKENDS, build_for_all, fake_devices

HIDDEN = 64  # of the tiny engines
CHUNK = 16
CONDITIONS = {"steer": steering(HIDDEN, scaled=True), "tone": steering(HIDDEN, per="row", capacity=2)}
VECTOR, OTHER, SHIFT = np.random.default_rng(5).standard_normal((3, HIDDEN), np.float32)
PROMPTS = [[5, 9, 4], [7, *range(20, 60)], [11], [13, 1, 2, 3, 4]]  # first tokens differ
NAMED = {"steer": {5: (1, 0.5), 7: (3, -1.5), 13: (1, 2.0)}, "tone": {11: (2, 1.0), 13: (2, 1.0)}}
ADDED = [
    VECTOR * np.float32(0.5),
    OTHER * np.float32(-1.5),
    SHIFT,
    (VECTOR * np.float32(2), SHIFT),  # in this order, so that sums are rounded as in the graph
]
GREEDY = Sampling(max_tokens=12, ignore_eos=True)

Open = Callable[..., LLM]


def give(llm: LLM) -> NamingSession:
    """Fill the entries of CONDITIONS, and let the session name those of NAMED."""
    session = NamingSession(llm.loop.session, llm.manifest, NAMED)
    session.fill("cond.steer.vector", 1, VECTOR)
    session.fill("cond.steer.vector", 3, OTHER)
    session.fill("cond.tone.vector", 2, SHIFT)
    llm.loop.session = session
    return session


def tokens_of(llm: LLM, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in llm.generate(prompts, GREEDY)]


@pytest.fixture(scope="module")
def plain(make_engine: Callable[..., Path]) -> Path:
    return make_engine()


@pytest.fixture(scope="module")
def steered(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny engine with conditions, and built for every backend."""
    folder = tmp_path_factory.mktemp("steered")
    return build_for_all(add_conditions(plain, folder / "graph", CONDITIONS), folder / "built", chunk=CHUNK)


@pytest.fixture(scope="module")
def wanted(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, ...]]:
    """The tokens of each prompt from an engine whose embeddings have the request's vectors added."""
    return baked_tokens(plain, tmp_path_factory.mktemp("baked"))


def baked_tokens(root: Path, folder: Path) -> list[tuple[int, ...]]:
    found = []
    for i, (prompt, added) in enumerate(zip(PROMPTS, ADDED, strict=True)):
        path = root
        for j, vector in enumerate(added if isinstance(added, tuple) else (added,)):
            path = bake(path, folder / f"{i}.{j}", vector)
        with load(path, 1) as llm:
            found += tokens_of(llm, [prompt])
    return found


@pytest.fixture(params=PACKED_BACKENDS)
def open_steered(request: pytest.FixtureRequest, steered: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens the engine on one of the backends, the devices being fakes."""
    fake_devices(monkeypatch)
    return partial(load, steered, 1, backend=request.param, prefill_chunk=CHUNK, prefix_reuse=False)


@pytest.mark.native
def test_each_request_gets_what_it_names(open_steered: Open, wanted: list[tuple[int, ...]]) -> None:
    """Prompts in pieces next to rows that decode; every answer is that of an engine with the vector built in."""
    with open_steered() as llm:
        plain_tokens = tokens_of(llm, PROMPTS)
        give(llm)
        assert tokens_of(llm, PROMPTS) == wanted
        llm.loop.session.fill("cond.steer.vector", 1, np.zeros(HIDDEN))
        assert tokens_of(llm, PROMPTS[:1]) == plain_tokens[:1]
    assert all(ours != theirs for ours, theirs in zip(plain_tokens, wanted, strict=True))


@pytest.mark.native
def test_steps_that_name_nothing_are_those_of_the_plain_engine(open_steered: Open, plain: Path) -> None:
    with load(plain, 1) as llm:
        expected = tokens_of(llm, PROMPTS)
    with open_steered() as llm:
        assert tokens_of(llm, PROMPTS) == expected


@pytest.mark.native
def test_padded_steps_name_nothing_for_what_fills_them_up(
    steered: Path, wanted: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows run as four."""
    fake_devices(monkeypatch)
    with load(steered, backend="tensorrt", prefill_chunk=CHUNK, prefix_reuse=False) as llm:
        assert isinstance(llm.loop.session._buffers, PaddedBuffers)
        give(llm)
        assert tokens_of(llm, PROMPTS[:3]) == wanted[:3]


@pytest.mark.native
def test_an_array_that_comes_again_is_not_written_again(steered: Path) -> None:
    with load(steered, 1, backend="onnxruntime", prefix_reuse=False) as llm:
        session = give(llm)
        tokens_of(llm, PROMPTS[:1])
        step = session.steps[-1]
        session.inner.run(step)
        buffer = llm.loop.session.inner._buffers["cond.steer.index"]
        buffer[0] = 2
        session.inner.run(step)
        assert buffer[0] == 2
        session.inner.run(dataclasses.replace(step, conditions={}))
        assert buffer[0] == 0


@pytest.mark.native
def test_entries_are_filled_from_the_directorys_files(steered: Path, tmp_path: Path, wanted: list[Any]) -> None:
    root = copied(steered, tmp_path / "engine")
    add_entries(root, "steer", {"calm": {"vector": VECTOR}, "unused": {"vector": SHIFT}, "loud": {"vector": OTHER}})
    add_entries(root, "tone", {"none": {"vector": VECTOR}, "low": {"vector": SHIFT.astype(np.float64)}})
    with load(root, 1, backend="onnxruntime", prefix_reuse=False) as llm:
        llm.loop.session = NamingSession(llm.loop.session, llm.manifest, NAMED)
        assert tokens_of(llm, PROMPTS) == wanted
        assert condition_bytes(llm.manifest) == 4 * HIDDEN * (4 + 3)


@pytest.mark.native
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vectors": VECTOR}, r"entry 'calm' of the condition 'steer': got the arrays vectors, expected vector; build"),
        ({"vector": VECTOR[:3]}, r"got values of shape \[3\], expected \[64\]; build the engine again"),
        ({"vector": np.array([{}])}, r"no \.npz archive of arrays .*build the engine again"),
    ],
)
def test_entries_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray], message: str, steered: Path, tmp_path: Path
) -> None:
    root = copied(steered, tmp_path / "engine")
    add_entries(root, "steer", {"calm": arrays})
    with pytest.raises(ArtifactError, match=message):
        load(root, 1, backend="onnxruntime")


@pytest.mark.native
def test_what_cannot_be_filled_is_named(open_steered: Open) -> None:
    with open_steered() as llm:
        for port, entry, values, message in (
            (
                "cond.steer.vectors",
                1,
                VECTOR,
                "got 'cond.steer.vectors', expected one of .*cond.steer.vector, cond.tone.vector",
            ),
            ("cond.steer.index", 1, VECTOR, "got 'cond.steer.index', expected one of"),
            ("cond.steer.vector", 0, VECTOR, "got entry 0, expected 1 to 3"),
            ("cond.steer.vector", 4, VECTOR, "got entry 4, expected 1 to 3"),
            ("cond.steer.vector", 1, VECTOR[None], r"got values of shape \[1, 64\], expected \[64\]"),
        ):
            with pytest.raises(RequestError, match=message):
                llm.loop.session.fill(port, entry, values)


@pytest.mark.native
def test_conditions_that_are_not_the_graphs_are_refused(steered: Path, tmp_path: Path) -> None:
    root = copied(steered, tmp_path / "engine")
    manifest = directory.load(root)
    graph = manifest.graphs["decoder"]

    def refuses(message: str, **changes: Any) -> None:
        directory.save(dataclasses.replace(manifest, **changes), root)
        with pytest.raises(ArtifactError, match=message):
            load(root, 1, backend="onnxruntime")

    steer, tone = manifest.conditions["steer"], manifest.conditions["tone"]
    refuses(
        r"input 'cond\.tone\.index': not in the manifest's conditions, which have cond\.steer\.index, .*build the engine",
        conditions={"steer": steer},
    )
    refuses(
        r"takes no 'cond\.mood\.index', which the manifest's condition 'mood' has; build the engine again",
        conditions={**manifest.conditions, "mood": tone},
    )
    refuses(
        r"takes no 'cond\.tone\.scale', which the manifest's condition 'tone' has",
        conditions={"steer": steer, "tone": dataclasses.replace(tone, scaled=True)},
    )
    refuses(
        r"'cond\.steer\.index': got the shape \[T\], expected \[B\]",
        conditions={"steer": dataclasses.replace(steer, per="row"), "tone": tone},
    )
    refuses(
        r"'cond\.steer\.vector': got the shape \[4, 64\], expected \[6, 64\]",
        conditions={"steer": dataclasses.replace(steer, capacity=5), "tone": tone},
    )
    half = {"vector": ConditionTensor(dtype="float16", shape=(HIDDEN,))}
    refuses(
        r"'cond\.steer\.vector': got float32, expected float16",
        conditions={"steer": dataclasses.replace(steer, tensors=half), "tone": tone},
    )
    other = TensorSpec(name="cond.mood.index", dtype="int32", shape=("T",))
    inputs = dataclasses.replace(graph, inputs=(*graph.inputs, other))
    refuses(r"input 'cond\.mood\.index': not in the manifest's conditions", graphs={"decoder": inputs})


def copied(root: Path, target: Path) -> Path:
    """A copy of an engine directory, for a test that changes it."""
    return Path(shutil.copytree(root, target))
