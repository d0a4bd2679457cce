"""Tests of an engine under lm-evaluation-harness, against the harness's own Hugging Face model on the same checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # read when datasets is imported

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe
from enginewright.runtime.errors import RequestError
from enginewright.runtime.evaluation import lm_eval_adapter
from enginewright.runtime.evaluation.lm_eval_adapter import EngineLM
from tests.support.paths import ROOT

pytestmark = [pytest.mark.native, pytest.mark.slow]

CONTEXT = 96
TOLERANCE = 1e-3  # nats over a whole continuation, float32 on both sides
TEMPLATE = "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}reply:{% endif %}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: tokenizers.Tokenizer) -> Path:
    """A tiny random llama, whose tokenizer begins texts with <s>."""
    root = tmp_path_factory.mktemp("checkpoint") / "tiny"
    config = LlamaConfig(
        vocab_size=290,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)  # so that logits spread as a trained model's
    model.save_pretrained(root)
    core = tokenizers.Tokenizer.from_str(byte_tokenizer.to_str())
    core.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    ).save_pretrained(root)
    return root


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Path:
    """The checkpoint's engine, with a float32 cache."""
    build(str(checkpoint), checkpoint.parent / "engine", Recipe(kv_bits=32, max_batch=4), "onnxruntime")
    return checkpoint.parent / "engine"


@pytest.fixture(scope="module")
def ours(engine: Path) -> Iterator[EngineLM]:
    model = EngineLM(str(engine), threads=1)
    yield model
    model.llm.close()


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> HFLM:
    """Call the harness's own model in the way that makes it right.

    In a batch it looks for a bos in the first text alone, and its cache of logits mistakes requests that share their tokens
    but not where the continuation begins.
    """
    return HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=1, logits_cache=False)


def _requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


def _check(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    np.testing.assert_allclose([value for value, _ in ours], [value for value, _ in theirs], atol=TOLERANCE)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_loglikelihood_is_that_of_the_hf_model(ours: EngineLM, theirs: HFLM) -> None:
    requests = _requests(
        "loglikelihood",
        ("the cat sat", " on the mat"),
        ("the cat sat on ", "the mat"),  # a space that moves to the continuation
        ("the cat s", "at on the mat"),  # a token across the boundary
        ("", "the hat"),  # no context
        ("<s>the cat", " and the hat"),  # brings its own bos
        *(("a cat, a", choice) for choice in (" hat", " cat", "n")),  # share their context
        ("the cat sat on the mat " * 30, "and the hat"),  # loses its beginning
    )
    found = ours.loglikelihood(requests, disable_tqdm=True)
    _check(found, theirs.loglikelihood(requests, disable_tqdm=True))
    assert len({round(value, 3) for value, _ in found}) == len(found), "all differ"


def test_is_greedy_is_that_of_the_hf_model(ours: EngineLM, theirs: HFLM) -> None:
    """Continuations that the model itself gives, whole, cut short, with one token changed, and as one-token choices."""
    prompt = ours.tok_encode("the cat sat on")
    done = ours.llm.generate([prompt])[0].token_ids[:12]
    assert len(done) == 12
    changed = [*done[:-1], (done[-1] + 1) % 290]
    pairs = [(None, prompt, list(each)) for each in (done, done[:3], changed, done[:1], changed[-1:])]
    found = ours._loglikelihood_tokens(pairs, disable_tqdm=True)
    _check(found, theirs._loglikelihood_tokens(pairs, disable_tqdm=True))
    assert [greedy for _, greedy in found[:4]] == [True, True, False, True]


def test_context_and_continuation_that_just_fit(ours: EngineLM, theirs: HFLM) -> None:
    rng = np.random.default_rng(0)
    shapes = ((1, CONTEXT), (CONTEXT, 1), (5, CONTEXT - 5), (6, CONTEXT - 5), (CONTEXT, CONTEXT), (300, 2))
    pairs: list[Any] = [(None, *(rng.integers(2, 290, length).tolist() for length in shape)) for shape in shapes]
    _check(ours._loglikelihood_tokens(pairs, disable_tqdm=True), theirs._loglikelihood_tokens(pairs, disable_tqdm=True))
    with pytest.raises(RequestError, match=f"got 1 tokens of context and {CONTEXT + 1} of continuation"):
        ours._loglikelihood_tokens([(None, [1], [2] * (CONTEXT + 1))])


def test_rolling_loglikelihood_is_that_of_the_hf_model(ours: EngineLM, theirs: HFLM) -> None:
    texts = ("the cat", "the cat sat on the mat and the hat, naïve 猫 " * 15, "a")
    requests = _requests("loglikelihood_rolling", *((text,) for text in texts))
    found = ours.loglikelihood_rolling(requests, disable_tqdm=True)
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert len(ours.tok_encode(texts[1])) > 3 * CONTEXT, "several windows"
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=TOLERANCE)


def test_replies_are_those_of_the_hf_model(ours: EngineLM, theirs: HFLM) -> None:
    contexts = ("the cat sat", "a hat", "<s>the mat and ", "the cat and the hat " * 20)
    free = [(context, {"until": [], "max_gen_toks": 20}) for context in contexts]
    found = ours.generate_until(_requests("generate_until", *free), disable_tqdm=True)
    assert found == theirs.generate_until(_requests("generate_until", *free), disable_tqdm=True)
    stops = [[reply[4:6], "never"] for reply in found]
    stopped = [(context, {"until": stop, "max_gen_toks": 20}) for context, stop in zip(contexts, stops, strict=True)]
    cut = ours.generate_until(_requests("generate_until", *stopped), disable_tqdm=True)
    assert cut == [reply[: reply.index(stop[0])] for reply, stop in zip(found, stops, strict=True)]
    assert cut == theirs.generate_until(_requests("generate_until", *stopped), disable_tqdm=True)


def test_sampling_options_reach_the_sampler(ours: EngineLM) -> None:
    def generate(**options: Any) -> list[str]:
        options = {"until": [], **({"max_gen_toks": 12} if "max_new_tokens" not in options else {}), **options}
        return ours.generate_until(_requests("generate_until", *[("the cat", options)] * 3), disable_tqdm=True)

    greedy = generate()
    assert len(set(greedy)) == 1 and generate(temperature=0.0) == greedy
    assert generate(do_sample=False, temperature=5.0) == greedy, "as the harness has it"
    sampled = generate(do_sample=True, temperature=5.0)
    assert len(set(sampled)) == 3, "repeats differ"
    assert generate(do_sample=True, temperature=5.0) == sampled, "and come again"
    assert generate(do_sample=True, temperature=5.0, top_k=1) == greedy
    assert generate(do_sample=True) != greedy, "at a temperature of 1"
    assert len(generate(max_new_tokens=1)[0]) < len(greedy[0])
    with pytest.raises(RequestError, match="generation_kwargs: got 'num_beams', expected one of do_sample, "):
        generate(num_beams=4)
    with pytest.raises(RequestError, match=f"max_gen_toks: got {CONTEXT}, expected less than {CONTEXT}"):
        generate(max_gen_toks=CONTEXT)


def test_chat_template_is_that_of_the_hf_model(ours: EngineLM, theirs: HFLM) -> None:
    chat = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": " sat on "}]
    for messages, prompted in ((chat[:1], True), (chat, False), (chat[:1], False)):
        text = ours.apply_chat_template(messages, add_generation_prompt=prompted)
        assert text == theirs.apply_chat_template(messages, add_generation_prompt=prompted)
        assert ours.tok_encode(text) == theirs.tok_encode(text)
    assert ours.chat_template(True) == theirs.chat_template(True) == TEMPLATE and not ours.chat_template(False)
    assert ours.tokenizer_name.startswith("enginewright-")


def test_bad_model_args_are_named(engine: Path, make_engine: Any) -> None:
    with pytest.raises(RequestError, match="--model_args: unknown key 'dtype'; known: engine, threads"):
        EngineLM(str(engine), dtype="float32")
    with pytest.raises(RequestError, match="got an engine without a tokenizer"):
        EngineLM(str(make_engine()))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of three task definitions with their data, nothing of it on the network."""
    rows = {
        "choice": [
            {"question": "the cat sat on", "choices": ["the mat", "a hat", "mat"], "label": 0},
            {"question": "a cat,", "choices": ["a hat", "the"], "label": 1},
        ],
        "reply": [{"question": "the cat", "answer": "x"}, {"question": "the hat and", "answer": "y"}],
        "text": [{"text": "the cat sat on the mat"}, {"text": "and the hat " * 40}],
    }
    kinds = {
        "choice": "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{label}}'\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n",
        "reply": "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: ['\\n'], do_sample: false, max_gen_toks: 16}\nmetric_list: [{metric: exact_match}]\n",
        "text": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n",
    }
    for name, text in kinds.items():
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        where = f"{{data_files: {{test: {data}}}, cache_dir: {tmp_path / 'cache'}}}"
        head = f"task: local_{name}\ndataset_path: json\ntest_split: test\ndataset_kwargs: {where}\n"
        (tmp_path / f"{name}.yaml").write_text(head + text)
    return tmp_path


def test_a_local_task_gives_the_results_of_the_hf_model(ours: EngineLM, theirs: HFLM, tasks: Path) -> None:
    names = ["local_choice", "local_reply", "local_text"]
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results = [
        lm_eval.simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0)
        for model in (ours, theirs)
    ]
    for name in names:
        found, expected = (result["results"][name] for result in results)
        numbers = {key for key, value in expected.items() if isinstance(value, float)}
        assert numbers and {key: found[key] for key in numbers} == pytest.approx(
            {k: expected[k] for k in numbers}, rel=1e-4
        )
        replies = [[sample["resps"] for sample in result["samples"][name]] for result in results]
        assert len(replies[0]) == 2
        if name == "local_reply":
            assert replies[0] == replies[1]


def _options(root: Path, tasks: Path) -> list[str]:
    chosen = ["--tasks", "local_choice", "--include_path", str(tasks), "--apply_chat_template"]
    return ["run", "--model", "enginewright", "--model_args", f"engine={root},threads=1", *chosen]


def test_the_command_evaluates_an_engine(engine: Path, tasks: Path) -> None:
    (tasks / "import").mkdir()
    (tasks / "import/enginewright").symlink_to(ROOT)
    done = subprocess.run(
        [sys.executable, "-m", "enginewright.runtime.evaluation.lm_eval_adapter", *_options(engine, tasks)],
        env={**os.environ, "PYTHONPATH": str(tasks / "import")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "|local_choice|" in done.stdout and "acc_norm" in done.stdout


def test_errors_of_the_command_are_messages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: EngineLM(str(tmp_path)))
    assert lm_eval_adapter.main() == 2
    assert capsys.readouterr().err.startswith(f"lm_eval: error: {tmp_path}: got no manifest.json")
