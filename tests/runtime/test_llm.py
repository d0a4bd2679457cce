"""Tests of the class LLM as callers use it: text, stops, streams, threads, bad input, failures."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from enginewright.runtime import LLM, ArtifactError, Completion, Handle, RequestError, Sampling, Token, load
from enginewright.runtime.backends.session import Outputs
from tests.support.paths import ROOT
from tests.support.runtime.toy_model import reference_logits
from tests.support.runtime.toy_session import VOCAB

Make = Callable[..., LLM]


def _greedy(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(reference_logits(tokens).argmax()))
    return tokens[len(prompt) :]


def test_generate_answers_in_order(make_toy: Make) -> None:
    llm = make_toy(eos=())
    prompts = [[1, 2], [3], [4, 5, 6], [7], [8], [9, 9]]
    done = llm.generate(prompts, Sampling(max_tokens=9))
    assert [list(c.token_ids) for c in done] == [_greedy(p, 9) for p in prompts]
    assert [c.prompt_tokens for c in done] == [len(p) for p in prompts]
    assert {c.finish_reason for c in done} == {"length"}


def test_one_prompt_may_be_given_alone(make_toy: Make) -> None:
    llm = make_toy(eos=())
    assert llm.generate([1, 2], Sampling(max_tokens=4))[0].token_ids == tuple(_greedy([1, 2], 4))
    ids = llm.tokenizer.encode("the cat")
    by_text = llm.generate("the cat", Sampling(max_tokens=4))[0]
    assert by_text.token_ids == tuple(_greedy(ids, 4))
    assert by_text.text == llm.tokenizer.decode(by_text.token_ids)
    assert llm.generate([]) == []


def test_each_prompt_may_have_its_own_sampling(make_toy: Make) -> None:
    llm = make_toy(eos=())
    done = llm.generate([[1], [2]], [Sampling(max_tokens=2), Sampling(max_tokens=5, temperature=1.0, seed=3)])
    assert [len(c.token_ids) for c in done] == [2, 5]
    assert done[1].seed == 3
    with pytest.raises(RequestError, match="2 prompts"):
        llm.generate([[1], [2]], [Sampling()])


def test_an_end_token_ends_unless_ignored(make_toy: Make) -> None:
    expected = _greedy([1, 2], 12)
    llm = make_toy(eos=(expected[5],))
    done = llm.generate([1, 2], Sampling(max_tokens=12))[0]
    assert (list(done.token_ids), done.finish_reason) == (expected[:6], "stop")
    assert done.text == llm.tokenizer.decode(expected[:5]), "the end token is not part of the text"
    ignored = llm.generate([1, 2], Sampling(max_tokens=12, ignore_eos=True))[0]
    assert (list(ignored.token_ids), ignored.finish_reason) == (expected, "length")
    chosen = llm.generate([1, 2], Sampling(max_tokens=12, stop_token_ids=[expected[3]]))[0]
    assert (list(chosen.token_ids), chosen.finish_reason) == (expected[:4], "stop")


def test_a_stop_string_ends_the_text_before_it(make_toy: Make) -> None:
    llm = make_toy(eos=(), context=128)
    whole = llm.generate([7], Sampling(max_tokens=60))[0].text
    stop = whole[20:25]  # lies across tokens
    done = llm.generate([7], Sampling(max_tokens=60, stop=[stop, "never there"]))[0]
    assert (done.text, done.finish_reason) == (whole[: whole.find(stop)], "stop")
    tokens = list(llm.stream([7], Sampling(max_tokens=60, stop=stop)))
    assert "".join(token.text for token in tokens) == done.text
    assert tuple(token.id for token in tokens) == done.token_ids


def test_max_tokens_none_fills_the_context(make_toy: Make) -> None:
    llm = make_toy(eos=(), context=32)
    done = llm.generate([1] * 10)[0]
    assert len(done.token_ids) == 22 and done.finish_reason == "length"
    assert list(done.token_ids) == _greedy([1] * 10, 22)


def test_the_seed_alone_decides_a_stream(make_toy: Make) -> None:
    llm = make_toy(eos=())
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.95, seed=11, frequency_penalty=0.5)
    alone = llm.generate([5, 6], sampling)[0]
    others = [Sampling(max_tokens=n, temperature=2.0, seed=n) for n in (3, 14, 6, 9, 2)]
    crowd = llm.generate([[1], [2] * 9, [5, 6], [3], [4] * 20, [8]], [*others[:2], sampling, *others[2:]])
    assert crowd[2].token_ids == alone.token_ids
    first, second = llm.generate([[5, 6]] * 2, Sampling(max_tokens=12, temperature=1.0))
    assert first.seed != second.seed and first.token_ids != second.token_ids
    again = llm.generate([5, 6], Sampling(max_tokens=12, temperature=1.0, seed=first.seed))[0]
    assert again.token_ids == first.token_ids


def test_logprobs_come_with_every_token(make_toy: Make) -> None:
    llm = make_toy(eos=())
    done = llm.generate([3], Sampling(max_tokens=3, logprobs=2))[0]
    assert done.logprobs is not None and len(done.logprobs) == 3
    for i, entry in enumerate(done.logprobs):
        logits = reference_logits([3, *done.token_ids[:i]]).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert entry.chosen == pytest.approx(expected[done.token_ids[i]], abs=1e-5)
        assert entry.top[0] == (done.token_ids[i], pytest.approx(entry.chosen))
    assert llm.generate([3], Sampling(max_tokens=3))[0].logprobs is None


def test_logits_of_every_position(make_toy: Make) -> None:
    llm = make_toy(eos=())
    tokens = np.random.default_rng(0).integers(0, VOCAB, 61).tolist()
    handle = llm.submit([1, 2, 3], Sampling(max_tokens=30))
    got = llm.logits(tokens)
    np.testing.assert_array_equal(got, [reference_logits(tokens[: i + 1]) for i in range(61)])
    assert list(handle.result().token_ids) == _greedy([1, 2, 3], 30)


def test_leaving_a_stream_cancels_it(make_toy: Make) -> None:
    llm = make_toy(eos=(), rows=1, context=4096, cache_tokens=4096)
    stream = llm.stream([1])
    next(stream)
    stream.close()
    assert len(llm.generate([2], Sampling(max_tokens=3))[0].token_ids) == 3, "the only slot is free again"


def test_cancel_frees_slot_and_tiles_by_the_next_step(make_toy: Make) -> None:
    llm = make_toy(eos=(), rows=1, context=4096, cache_tokens=4096)
    running, waiting, last = (llm.submit([i], Sampling(max_tokens=4000)) for i in (1, 2, 3))
    next(iter(running))
    for handle in (waiting, running):
        handle.cancel()
    done = running.result()
    assert done.finish_reason == "cancelled"
    assert list(done.token_ids) == _greedy([1], len(done.token_ids))
    assert waiting.result().token_ids == ()
    last.cancel()
    assert last.result().finish_reason == "cancelled"
    last.cancel()


def test_events_go_to_whoever_submits(make_toy: Make) -> None:
    llm = make_toy(eos=())
    events: list[object] = []
    ended = threading.Event()

    def take(event: object) -> None:
        events.append(event)
        if not isinstance(event, Token):
            ended.set()

    handle = llm.submit([1, 2], Sampling(max_tokens=5), on_event=take)
    assert ended.wait(60)
    *tokens, end = events
    assert [token.id for token in tokens if isinstance(token, Token)] == _greedy([1, 2], 5)
    assert end == handle.result()
    with pytest.raises(RequestError, match="go to on_event"):
        next(iter(handle))
    llm.loop.session.failures.append(OSError("lost"))
    llm.submit([1], on_event=take)
    while isinstance(events[-1], (Token, Completion)):
        time.sleep(0.001)
    assert str(events[-1]) == "lost"


def test_a_waiting_request_of_a_lower_number_runs_first(make_toy: Make) -> None:
    llm = make_toy(eos=(), rows=1, context=4096, cache_tokens=4096)
    order: list[int] = []
    running = llm.submit([1], Sampling(max_tokens=4000))
    next(iter(running))
    handles = [
        llm.submit([i], Sampling(max_tokens=2), priority=priority, on_event=lambda _, i=i: order.append(i))
        for i, priority in ((2, 1), (3, 0), (4, -3))
    ]
    running.cancel()
    for handle in handles:
        handle.result()
    assert order == [4, 4, 4, 3, 3, 3, 2, 2, 2]


def test_many_threads_submit_and_cancel(make_toy: Make) -> None:
    llm = make_toy(eos=(), rows=3, cache_tokens=80)
    full = llm.loop.scheduler.snapshot().free_tiles
    failures: list[object] = []

    def work(number: int) -> None:
        for turn in range(6):
            prompt = [number + 1] * (turn + 1)
            handle = llm.submit(prompt, Sampling(max_tokens=8 + turn))
            if (number + turn) % 3 == 0:
                next(iter(handle))
                handle.cancel()
            done = handle.result()
            if list(done.token_ids) != _greedy(prompt, len(done.token_ids)):
                failures.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)
    llm.close()
    assert llm.loop.scheduler.snapshot().free_tiles == full


def test_a_handle_may_be_read_twice_and_after_the_end(make_toy: Make) -> None:
    handle = make_toy(eos=()).submit([1], Sampling(max_tokens=4))
    assert isinstance(handle.result(), Completion) and handle.done
    assert [token.id for token in handle] == _greedy([1], 4)
    assert list(handle) == []


def test_a_failing_step_fails_its_requests_alone(make_toy: Make) -> None:
    llm = make_toy(eos=(), rows=1)
    llm.loop.session.failures.append(RuntimeError("backend: out of order"))
    handles = [llm.submit([i], Sampling(max_tokens=3)) for i in (1, 2)]
    with pytest.raises(RuntimeError, match="out of order"):
        handles[0].result()
    with pytest.raises(RuntimeError, match="out of order"):
        list(handles[0])
    assert list(handles[1].result().token_ids) == _greedy([2], 3)
    assert list(llm.generate([4], Sampling(max_tokens=3))[0].token_ids) == _greedy([4], 3)


def test_logits_that_are_not_finite_fail_their_request_alone(make_toy: Make) -> None:
    llm = make_toy(eos=())
    run, steps = llm.loop.session.run, []

    def break_first_row(step: object) -> Outputs:
        outputs = run(step)
        if not steps:
            outputs.logits[0, :], outputs.greedy[0] = np.nan, -1
        steps.append(step)
        return outputs

    llm.loop.session.run = break_first_row
    for sampling in (Sampling(max_tokens=4), Sampling(max_tokens=4, temperature=1.0, logprobs=1, seed=1)):
        steps.clear()
        expected = make_toy(eos=()).generate([2], sampling)[0].token_ids
        requests = [llm._generation([i], sampling) for i in (1, 2)]
        llm.loop.submit(*map(llm.loop.scheduler.decoder.start, requests))
        for request in requests:
            request.done.wait(10)
        with pytest.raises(ArtifactError, match="not finite"):
            Handle(llm, llm.loop, requests[0]).result()
        assert tuple(requests[1].generated) == expected


def test_closing_ends_what_runs_and_refuses_more(make_toy: Make) -> None:
    llm = make_toy(eos=(), rows=1, context=4096, cache_tokens=4096)
    running, waiting = llm.submit([1]), llm.submit([2])
    next(iter(running))
    llm.close()
    llm.close()
    assert [h.result().finish_reason for h in (running, waiting)] == ["cancelled", "cancelled"]
    with pytest.raises(RequestError, match="closed"):
        llm.generate([1])


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([], None, "prompt: got no tokens"),
        ("", None, "prompt: got no tokens"),
        ([1, VOCAB], None, f"token id {VOCAB} at position 1"),
        ([-1], None, "token id -1 at position 0"),
        ([1.5], None, "expected text or token ids"),
        (None, None, "expected text or token ids"),
        (["the"], None, "expected text or token ids"),
        ({"role": "user", "content": "x"}, None, "got a message, .* pass conversations to LLM.chat"),
        ([{"role": "user", "content": "x"}], None, "got a message, .* pass conversations to LLM.chat"),
        ([[1], [2, 3]], None, "expected one list of token ids"),
        ("\ud800", None, "expected valid Unicode"),
        ([1] * 64, None, "context limit is 64"),
        ([1] * 60, Sampling(max_tokens=5), "max_tokens: got 5 after a prompt of 60"),
        ([1], Sampling(stop_token_ids=[VOCAB]), "stop_token_ids: got token id 290"),
        ([1], Sampling(logit_bias={5000: 1.0}), "logit_bias: got token id 5000"),
    ],
)
def test_bad_requests_are_refused_and_name_the_fix(
    make_toy: Make, prompt: str | list[int], sampling: Sampling | None, message: str
) -> None:
    llm = make_toy(eos=())
    running = llm.submit([1], Sampling(max_tokens=20))
    with pytest.raises(RequestError, match=message):
        llm.submit(prompt, sampling)
    assert list(running.result().token_ids) == _greedy([1], 20), "other requests go on"


def test_a_request_larger_than_the_cache_is_refused(make_toy: Make) -> None:
    llm = make_toy(eos=(), cache_tokens=20)
    with pytest.raises(RequestError, match="cache holds 20 tokens"):
        llm.submit([1] * 15, Sampling(max_tokens=10))
    with pytest.raises(RequestError, match="cache holds 20 tokens"):
        llm.submit([1] * 21)
    with pytest.raises(RequestError, match="at most 20"):
        llm.logits([1] * 21)
    assert list(llm.generate([1] * 15)[0].token_ids) == _greedy([1] * 15, 6)


def test_text_needs_a_tokenizer() -> None:
    from tests.support.runtime.toy_model import make_llm

    with make_llm(None) as llm:
        with pytest.raises(RequestError, match="no tokenizer"):
            llm.generate("hello")
        with pytest.raises(RequestError, match="stop_token_ids"):
            llm.generate([1], Sampling(stop="x"))
        assert llm.generate([1], Sampling(max_tokens=2))[0].text == ""


def _python(code: str) -> subprocess.CompletedProcess[str]:
    start = (
        "import sys, types, importlib.util\n"
        "if importlib.util.find_spec('enginewright') is None:\n"
        "    package = types.ModuleType('enginewright')\n"
        f"    package.__path__ = [{str(ROOT)!r}]\n"
        "    sys.modules['enginewright'] = package\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
    )
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=60)


def test_importing_the_runtime_loads_no_build_tools() -> None:
    done = _python(
        "import enginewright.runtime as r\n"
        "for name in r.__all__: getattr(r, name)\n"
        "import enginewright.runtime.cli, enginewright.runtime.backends.onnxruntime.cpu_session, enginewright.runtime.commands.run\n"
        "import enginewright.runtime.commands.bench, enginewright.runtime.commands.inspect\n"
        "heavy = {'torch', 'onnx', 'onnxscript', 'onnx_ir', 'tensorrt', 'transformers', 'safetensors'}\n"
        "sys.exit(', '.join(sorted(heavy & sys.modules.keys())) or None)\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ending", ["", "raise SystemExit(0)", "llm.close()", "del llm, handle"])
def test_the_interpreter_exits_while_a_request_runs(ending: str) -> None:
    done = _python(
        "from tests.support.runtime.toy_model import make_llm\n"
        "llm = make_llm(eos=(), context=4096, cache_tokens=8192)\n"
        "handle = llm.submit([1])\n"
        f"next(iter(handle))\n{ending}\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.native
def test_what_is_printed_says_what_it_is(tiny_engine: Path) -> None:
    with load(tiny_engine, threads=1) as llm:
        done = llm.generate([[5, 6, 7]], Sampling(max_tokens=3, ignore_eos=True))[0]
        shown = repr(llm)
    assert shown.startswith(f"<LLM {llm.manifest.name}: {llm.manifest.model.family}, ")
    assert shown.endswith(f"paged cache, up to {llm.capacity.rows} requests of {llm.capacity.context} tokens>")
    assert repr(done) == f"Completion({done.text!r}, length, 3 tokens after 3)"
    guessed = Completion(
        text="a", token_ids=(1,), finish_reason="stop", prompt_tokens=9, logprobs=None, seed=0, reused_tokens=8,
        guessed_tokens=2, agreed_tokens=1,
    )  # fmt: skip
    assert repr(guessed) == "Completion('a', stop, 1 tokens after 9, 8 reused, 1 of 2 guesses agreed)"
