"""Tests of steps that decide several tokens: guesses that stand unchecked, and guesses checked a step later."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from enginewright.runtime.artifact.generation_defaults import GenerationDefaults
from enginewright.runtime.artifact.manifest import Cache, Graph, Limits, Manifest, Model
from enginewright.runtime.backends.session import Outputs, PackedStep
from enginewright.runtime.cache.capacity import Capacity, plan_tiles
from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.decoding.kinds.multi_token import COUNTS, KIND, TOKENS, GuessedRows, MultiToken
from enginewright.runtime.decoding.registry import find_kind
from enginewright.runtime.errors import ArtifactError
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.completion import Completion
from enginewright.runtime.requests.request import Generation
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.scheduling.scheduler import Scheduler
from enginewright.runtime.scheduling.step import Step
from enginewright.runtime.scheduling.step_loop import StepLoop, StepTiming
from tests.support.runtime.simulated_requests import Arrival, Kept, check_tiles, serve, watch
from tests.support.runtime.toy_model import FULL, WINDOWS, Encoding, greedy, make_cache, make_llm, reference_logits
from tests.support.runtime.toy_session import VOCAB, ToySession

Guess = Callable[[list[int]], list[int]]  # from all tokens so far to those guessed behind the next one
WIDTH = 3


def right(tokens: list[int]) -> list[int]:
    """The tokens that greedy decoding gives after the next one."""
    known = list(tokens)
    for _ in range(WIDTH):
        known.append(int(reference_logits(known).argmax()))
    return known[len(tokens) + 1 :]


def wrong(tokens: list[int]) -> list[int]:
    """Tokens that greedy decoding does not give."""
    return [(token + 1) % VOCAB for token in right(tokens)]


def mixed(tokens: list[int]) -> list[int]:
    """Zero to two guesses, some right and some wrong, by a hash of the tokens."""
    rng = np.random.default_rng([len(tokens), sum(tokens)])
    guesses = [token if rng.random() < 0.6 else int(rng.integers(VOCAB)) for token in right(tokens)]
    return guesses[: rng.integers(0, WIDTH)]


class GuessingSession(ToySession):
    """A ToySession whose heads guess by a function of all tokens so far."""

    def __init__(self, cache: Cache, tables: TileTables, capacity: Capacity, guess: Guess) -> None:
        super().__init__(cache, tables, capacity)
        self.guess = guess
        self.brought: dict[int, list[int]] = {}  # of each row, its tokens so far; one taken back is replaced

    def run(self, step: PackedStep) -> Outputs:
        """Run the toy's step, and add guesses after the greedy token of each sampled row."""
        outputs, ends = super().run(step), step.query_starts[1:]
        rows = np.repeat(np.arange(len(ends)), np.diff(step.query_starts))
        for row, position, token in zip(
            rows.tolist(), step.position_ids.tolist(), step.input_ids.tolist(), strict=True
        ):
            self.brought.setdefault(row, [])[position:] = [token]
        drafts = np.full((len(step.sample_rows), WIDTH), -7, np.int64)
        counts = np.ones(len(step.sample_rows), np.int64)
        for i, token in enumerate(step.sample_rows.tolist()):
            row = int(np.searchsorted(ends, token, side="right"))
            guesses = self.guess(self.brought[row][: int(step.position_ids[token]) + 1])
            drafts[i, : 1 + len(guesses)] = [outputs.greedy[i], *guesses]
            counts[i] = 1 + len(guesses)
        return replace(outputs, extra={TOKENS: drafts, COUNTS: counts})


def guessing(
    guess: Guess,
    *,
    verify: bool,
    rows: int = 4,
    context: int = 64,
    cache_tokens: int | None = None,
    encoding: Encoding | None = None,
) -> LLM:
    """An LLM over a GuessingSession; where tiles are encoded, no layer has a window."""
    chunk = encoding.chunk if encoding else 0
    step_tokens = chunk + rows * WIDTH if encoding else 24
    cache = make_cache(4, FULL if encoding else WINDOWS, encoding)
    tokens = rows * context if cache_tokens is None else cache_tokens
    tiles = plan_tiles(cache, rows=rows, context=context, step_tokens=step_tokens, cache_tokens=tokens)
    capacity = Capacity(
        rows=rows,
        context=context,
        step_tokens=step_tokens,
        logit_rows=rows * WIDTH + 4,
        tiles=tiles,
        chunk=chunk,
        width=WIDTH,
    )
    tables = TileTables(cache, capacity)
    model = Model(
        family="toy", vocab_size=VOCAB, hidden_size=1, max_positions=context, parameters=0, eos_token_ids=(0,)
    )
    manifest = Manifest(
        name="toy",
        created_by="tests",
        model=model,
        limits=Limits(max_batch=rows, max_context=context),
        cache=cache,
        graphs={"decoder": Graph(files=(), inputs=(), outputs=())},
    )
    session = GuessingSession(cache, tables, capacity, guess)
    decoder = MultiToken(Pieces(chunk=chunk, tile_tokens=cache.tile_tokens), verify=verify)
    engine = StepLoop(Scheduler(tables, capacity, decoder), session)
    return LLM(manifest, None, engine, capacity)


def prompts(seed: int, count: int) -> list[list[int]]:
    """Prompts of 1 to 30 tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCAB, rng.integers(1, 31)).tolist() for _ in range(count)]


def plain(asked: Sequence[list[int]], sampling: Sampling | Sequence[Sampling]) -> list[Completion]:
    """The answers of an engine that decides one token a step."""
    with make_llm() as llm:
        return llm.generate(asked, sampling)


def steps_of(llm: LLM) -> list[StepTiming]:
    """Record the engine's steps from now on."""
    steps: list[StepTiming] = []
    llm.loop.observer = steps.append
    return steps


@pytest.mark.parametrize("guess", [right, wrong, mixed])
def test_verified_steps_give_what_plain_decoding_gives(guess: Guess) -> None:
    asked, sampling = prompts(1, 12), Sampling(max_tokens=30)
    with guessing(guess, verify=True) as llm:
        free = llm.loop.scheduler.snapshot().free_tiles
        got = llm.generate(asked, sampling)
    assert llm.loop.scheduler.snapshot().free_tiles == free
    assert [c.token_ids for c in got] == [c.token_ids for c in plain(asked, sampling)]
    agreed, guessed = (sum(getattr(c, name) for c in got) for name in ("agreed_tokens", "guessed_tokens"))
    assert guessed > 100
    assert agreed == (guessed if guess is right else 0 if guess is wrong else agreed)
    assert guess is not mixed or 0.2 < agreed / guessed < 0.9


@pytest.mark.parametrize("verify", [False, True])
def test_right_guesses_save_steps(verify: bool) -> None:
    with guessing(right, verify=verify, rows=1) as llm:
        steps = steps_of(llm)
        got = llm.generate([5, 6, 7], Sampling(max_tokens=31, ignore_eos=True))[0]
    assert got.token_ids == plain([[5, 6, 7]], Sampling(max_tokens=31, ignore_eos=True))[0].token_ids
    assert len(steps) in (11, 12)  # three tokens a step


def test_unverified_guesses_stand_and_are_judged_afterwards() -> None:
    with guessing(lambda tokens: [200, 200], verify=False, rows=1) as llm:
        got = llm.generate([5, 6, 7], Sampling(max_tokens=12, ignore_eos=True))[0]
    assert [token == 200 for token in got.token_ids] == [False, True, True] * 4
    known = [5, 6, 7]
    for position, token in enumerate(got.token_ids):
        if position % WIDTH == 0:
            assert token == reference_logits(known).argmax(), "every step begins with the model's own token"
        known.append(token)
    assert (got.guessed_tokens, got.agreed_tokens) == (6, 0)  # the last step's were never judged


@pytest.mark.filterwarnings("ignore:toy")
@pytest.mark.parametrize("verify", [False, True])
def test_requests_that_sample_get_one_token_a_step(verify: bool) -> None:
    asked = prompts(2, 6)
    samplings = [
        Sampling(max_tokens=20, temperature=t, seed=i, ignore_eos=True) for i, t in enumerate((0, 1, 0, 2, 1, 0))
    ]
    with guessing(right, verify=verify) as llm:
        got = llm.generate(asked, samplings)
    assert [c.token_ids for c in got] == [c.token_ids for c in plain(asked, samplings)]
    assert [bool(c.guessed_tokens) for c in got] == [sampling.temperature == 0 for sampling in samplings]


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7])
def test_limits_and_end_tokens_cut_inside_a_step(verify: bool, limit: int) -> None:
    asked = prompts(3, 8)
    expected = plain(asked, Sampling(max_tokens=limit, ignore_eos=True))
    ends = [c.token_ids[-1] for c in plain(asked, Sampling(max_tokens=8, ignore_eos=True))]
    samplings = [Sampling(max_tokens=20, ignore_eos=True, stop_token_ids=(end,)) for end in ends]
    with guessing(right, verify=verify) as llm:
        assert [c.token_ids for c in llm.generate(asked, Sampling(max_tokens=limit, ignore_eos=True))] == [
            c.token_ids for c in expected
        ]
        got = llm.generate(asked, samplings)
    assert [c.token_ids for c in got] == [c.token_ids for c in plain(asked, samplings)]
    assert {c.finish_reason for c in got} == {"stop"}


@pytest.mark.parametrize("verify", [False, True])
def test_a_request_may_fill_the_context(verify: bool) -> None:
    with guessing(right, verify=verify, rows=2, context=24) as llm:
        got = llm.generate([[5] * 20, [6] * 23, [7] * 2], Sampling(ignore_eos=True))
    assert [len(c.token_ids) for c in got] == [4, 1, 22]


def test_preempted_and_scored_beside_each_other() -> None:
    asked = prompts(4, 10)
    sampling = Sampling(max_tokens=25, ignore_eos=True)
    with guessing(mixed, verify=True, cache_tokens=90) as llm:
        free = llm.loop.scheduler.snapshot().free_tiles
        handles = llm.submit_all(asked, sampling)
        logits = llm.logits(asked[0])
        got = [handle.result() for handle in handles]
    assert llm.loop.scheduler.snapshot().free_tiles == free
    assert [c.token_ids for c in got] == [c.token_ids for c in plain(asked, sampling)]
    np.testing.assert_array_equal(logits[-1], reference_logits(asked[0]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cache_tokens", [None, 90])
def test_traffic_gets_what_plain_decoding_gives(cache_tokens: int | None, seed: int) -> None:
    """Prompts that arrive mid-way, requests that sample, texts to score, cancellations and, in 90 tokens, preemptions."""
    rng = np.random.default_rng(seed)
    arrivals = [
        Arrival(
            prompt=rng.integers(1, VOCAB, rng.integers(1, 31)).tolist(),
            at=int(rng.integers(0, 40)),
            new=int(rng.integers(1, 30)),
            score=i % 7 == 3,
            cancel=int(rng.integers(20, 60)) if i % 5 == 4 else None,
            temperature=float(i % 3 == 2),
        )
        for i in range(20)
    ]
    preempted, lengths = False, set[int]()

    def look(scheduler: Scheduler, step: Step) -> None:
        nonlocal preempted
        preempted |= any(
            isinstance(each.request, Generation) and bool(each.request.generated) for each in scheduler.waiting
        )
        if isinstance(step.takes, GuessedRows):
            lengths.add(len(step.packed.input_ids))

    with guessing(mixed, verify=True, cache_tokens=cache_tokens) as llm, make_llm() as alone:
        watch(llm, look)
        with pytest.warns(UserWarning, match="temperature"):
            got = serve(llm, arrivals)
        expected = serve(alone, [replace(each, at=0, cancel=None) for each in arrivals])
        check_tiles(llm)
    assert preempted == (cache_tokens is not None)
    assert len(lengths) > 5, "of steps between which no row came or went"
    for mine, theirs, each in zip(got, expected, arrivals, strict=True):
        if isinstance(mine, Kept) and isinstance(theirs, Kept):
            assert mine.error is not None or np.array_equal(mine.logits, theirs.logits)
        else:
            assert each.cancel is not None or len(mine.generated) == each.new
            assert mine.generated == theirs.generated[: len(mine.generated)]


def test_what_excludes_extra_tokens_is_said_once() -> None:
    sampling = Sampling(max_tokens=2, temperature=0.5, logit_bias={3: 1.0}, ignore_eos=True)
    with guessing(right, verify=True) as llm:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            llm.generate([1], Sampling(max_tokens=2, top_k=5, seed=3, stop_token_ids=(2,)))  # greedy all the same
        with pytest.warns(
            UserWarning, match=r"toy: Sampling with temperature=0\.5, logit_bias=\{3: 1\.0\}: .* one token a step"
        ):
            llm.generate([1], sampling)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            llm.generate([[1], [2]], sampling)
    with make_llm() as llm, warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.generate([1], sampling)


@pytest.mark.parametrize("cache_tokens", [None, 72])
def test_verified_steps_over_encoded_tiles_give_what_plain_decoding_gives(cache_tokens: int | None) -> None:
    """No draft may see exactly what it would see encoded, nor be encoded before it stands."""
    encoding, prompt, new = Encoding(), 9, 30
    asked = np.random.default_rng(5).integers(1, VOCAB, (7, prompt)).tolist()

    def guess(tokens: list[int]) -> list[int]:
        known = [*tokens, int(reference_logits(tokens, FULL, encoding, prompt).argmax())]
        rng = np.random.default_rng([len(tokens), sum(tokens)])
        return [token if rng.random() < 0.8 else 1 for token in after(known)]

    def after(known: list[int]) -> list[int]:
        found = list(known)
        for _ in range(WIDTH - 1):
            found.append(int(reference_logits(found, FULL, encoding, prompt).argmax()))
        return found[len(known) :]

    with guessing(guess, verify=True, encoding=encoding, cache_tokens=cache_tokens) as llm:
        free = llm.loop.scheduler.snapshot().free_tiles
        got = llm.generate(asked, Sampling(max_tokens=new, ignore_eos=True))
    assert llm.loop.scheduler.snapshot().free_tiles == free
    assert [list(c.token_ids) for c in got] == [greedy(tokens, new, FULL, encoding) for tokens in asked]
    assert sum(c.agreed_tokens for c in got) > 40


@pytest.mark.parametrize("settings", [{}, {"k": 1}, {"k": "3"}, {"k": 3, "verify": 1}])
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match=r"decoding: got k .*build the engine again"):
        KIND.width({"kind": "multi_token", **settings})
    assert KIND.width({"kind": "multi_token", "k": 3}) == 3


def test_a_graph_without_the_heads_outputs_is_refused_with_both_sides_named() -> None:
    manifest = guessing(right, verify=True).manifest
    with pytest.raises(
        ArtifactError, match=r"'multi_token' reads the outputs clp_tokens, clp_counts, and the decoder graph"
    ):
        find_kind(replace(manifest, decoding={"kind": "multi_token", "k": 3}))
    with pytest.raises(
        ArtifactError, match=r"decoding.kind: got 'unheard', expected one of autoregressive, multi_token"
    ):
        find_kind(replace(manifest, decoding={"kind": "unheard"}))
    with pytest.raises(
        ArtifactError, match=r"decoding\.k: got 3, expected 1, the most tokens .* 'autoregressive' brings"
    ):
        find_kind(replace(manifest, decoding={"kind": "autoregressive", "k": 3}))


def test_drafts_are_judged_through_the_processors_of_a_request() -> None:
    """Penalties make some drafts wrong; the tokens are those of plain decoding, and most drafts still save steps."""
    asked = prompts(6, 8)
    samplings = [
        Sampling(max_tokens=24, ignore_eos=True, **options)
        for options in (
            {"repetition_penalty": 1.3},
            {"presence_penalty": 2.0, "frequency_penalty": 0.5},
            {"logit_bias": {7: 3.0}},
            {},
        )
        for _ in range(2)
    ]
    with guessing(right, verify=True) as llm:
        steps = steps_of(llm)
        got = llm.generate(asked, samplings)
    assert [c.token_ids for c in got] == [c.token_ids for c in plain(asked, samplings)]
    assert all(c.guessed_tokens for c in got) and sum(c.agreed_tokens for c in got) > 80
    assert len(steps) < 2 * 24


def test_a_penalty_of_the_models_own_gives_one_token_a_step_and_is_told() -> None:
    with guessing(right, verify=False) as llm:
        llm.manifest = replace(llm.manifest, generation=GenerationDefaults(repetition_penalty=1.5))
        with pytest.warns(UserWarning, match="repetition_penalty=1.5: .*one token a step"):
            (slow,) = llm.generate([3, 4], Sampling(max_tokens=12, ignore_eos=True))
        (fast,) = llm.generate([3, 4], Sampling(max_tokens=12, ignore_eos=True, repetition_penalty=1))
    assert slow.guessed_tokens == 0 and fast.guessed_tokens > 0
    assert list(fast.token_ids) == greedy([3, 4], 12)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("bad", [VOCAB, 2**40, -3])
def test_a_guess_that_is_no_token_ends_its_own_request(verify: bool, bad: int) -> None:
    """With verification it would be in the next step, which would fail for all."""
    with guessing(lambda tokens: [bad] if tokens[0] == 9 else [5], verify=verify) as llm:
        alone = llm.generate([3, 4], Sampling(max_tokens=12, ignore_eos=True))[0].token_ids
        handles = llm.submit_all([[9, 4], [3, 4]], Sampling(max_tokens=12, ignore_eos=True))
        with pytest.raises(
            ArtifactError, match=f"decoder graph: got token id {bad} from it, expected 0 to {VOCAB - 1}"
        ):
            handles[0].result()
        assert handles[1].result().token_ids == alone
