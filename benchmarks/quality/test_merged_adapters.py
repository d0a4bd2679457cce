"""Tests of the commands that train two adapters and measure merges of them, on the bundled model at a tiny size."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import results_file
from benchmarks.quality import merged_adapters, train_adapters
from benchmarks.quality.choice_questions import make_choices
from benchmarks.quality.merged_adapters import AdapterScores
from tests.support.paths import ROOT

MODEL, TEXT = ROOT / "examples/tiny-reasoner", ROOT / "examples/tiny-text/held_out.txt"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of one step."""
    root = tmp_path_factory.mktemp("adapters")
    text = root / "text.txt"
    text.write_text(TEXT.read_text()[:4000])
    sizes = ["--steps", "1", "--rows", "2", "1", "--width", "32", "--threads", "1"]
    command = ["--model", str(MODEL), "--text", str(text), "--output", str(root / "pair"), *sizes]
    assert train_adapters.main(command) == 0
    assert sorted(path.name for path in (root / "pair").iterdir()) == ["domain", "task"]
    return root


@pytest.mark.slow
def test_candidates(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is measured is kept, and the table has the candidates in one order."""
    data = ["--texts", str(pair / "text.txt"), "--data", str(pair / "text.txt"), "--cells", str(tmp_path / "cells")]
    sizes = ["--items", "4", "--windows", "3", "--width", "24", "--samples", "2", "--length", "16", "--threads", "1"]
    command = ["--model", str(MODEL), "--pair", str(pair / "pair"), *data, *sizes]
    assert merged_adapters.main([*command, "--candidates", "TIES"]) == 0
    capsys.readouterr()
    file = tmp_path / "cells/TIES.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "depth": {"kept": None}}))
    names = ["TaDA-R", "TIES", "base"]
    outputs = ["--results", str(tmp_path / "results.json"), "--plot", str(tmp_path / "plot.svg")]
    assert merged_adapters.main([*command, "--candidates", *names, *outputs]) == 0
    assert b"<svg" in (tmp_path / "plot.svg").read_bytes()
    shown = capsys.readouterr().out
    places = [shown.index(f"| {name} |") for name in ("base", "TaDA-R", "TIES")]
    assert places == sorted(places)
    assert "4 items; 69 tokens in 3 windows" in shown and "Spearman of depth" in shown
    assert json.loads(file.read_text())["depth"] == {"kept": None}  # not measured again
    figures = results_file.read(tmp_path / "results.json").figures
    assert {figure.name for figure in figures} >= {"right", "form", "perplexity", "nats minus TaDA-R"}


def test_the_greedy_reply_counts() -> None:
    """A reply is right where generation gives it, token by token."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    choices = list(islice(make_choices("a", held_out=True), 3))
    right, form = merged_adapters.score_choices(model, tokenizer, choices, 2)
    for choice, is_right, is_formed in zip(choices, right, form, strict=True):
        prompt = train_adapters.prompt_of(tokenizer, choice)
        made = model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False)[0, len(prompt) :]
        reply = tokenizer.decode(made, skip_special_tokens=True)
        assert (is_formed, is_right) == choice.judge(reply)


def test_changes_are_taken_back() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    name = "model.layers.0.self_attn.q_proj"
    before = model.get_submodule(name).weight.detach().clone()
    out, into = before.shape
    with pytest.raises(KeyError), merged_adapters.changed(model, {name: (torch.ones(out, 1), torch.ones(1, into))}):
        torch.testing.assert_close(model.get_submodule(name).weight.detach(), before + 1)
        raise KeyError
    assert torch.equal(model.get_submodule(name).weight, before)


def test_questions() -> None:
    train, held_out = (list(islice(make_choices("x", held_out=each), 400)) for each in (False, True))
    words = [{x for choice in each for x in choice.choices if not x.isdigit()} for each in (train, held_out)]
    assert len(words[0]) > 60 < len(words[1]) + 20 and not words[0] & words[1]
    assert {choice.choices.index(choice.answer) for choice in train} == {0, 1, 2, 3}
    for choice in train + held_out:
        assert len(set(choice.choices)) == 4 and all(each in choice.question for each in choice.choices)
        if choice.answer.isdigit():
            assert int(choice.answer) == max(map(int, choice.choices))
    choice = train[0]
    assert choice.judge(choice.reply) == (True, True) and choice.judge("Result: nothing") == (False, False)
    wrong = next(each for each in choice.choices if each != choice.answer)
    assert choice.judge(f"Result: {wrong}") == (True, False)


def test_scores() -> None:
    one = AdapterScores(right=[True, False], form=[True, True], nats=[10.0, 30.0], tokens=[10, 10])
    other = AdapterScores(right=[True, True], form=[True, True], nats=[20.0, 30.0], tokens=[10, 10])
    assert one.perplexity.value == pytest.approx(2.718281828**2)
    assert one.more_nats(other).value == pytest.approx(-0.5) and one.more_right(other).value == -0.5


class Reciter(torch.nn.Module):
    """A model that gives one known reply to every prompt: its states are the next token, one-hot."""

    def __init__(self, tokenizer: Any, texts: dict[str, str]) -> None:
        super().__init__()
        self._tokenizer, self._texts, self._size = tokenizer, texts, len(tokenizer)

    def get_decoder(self) -> Any:
        return self

    def get_output_embeddings(self) -> Any:
        return torch.nn.Identity()

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        states = torch.zeros(*input_ids.shape, self._size)
        for row, ids in enumerate(input_ids.tolist()):
            text = self._tokenizer.decode(ids)
            prompt, reply = next((key, own) for key, own in self._texts.items() if text.startswith(key))
            begin = len(self._tokenizer.encode(prompt, add_special_tokens=False)) - 1
            for place, token in enumerate(self._tokenizer.encode(reply, add_special_tokens=False)):
                if begin + place < len(ids):
                    states[row, begin + place, token] = 1
        return SimpleNamespace(last_hidden_state=states)


def test_replies_are_judged_token_by_token() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    right, wrong, formless, endless = list(islice(make_choices("a", held_out=True), 4))
    other = next(each for each in wrong.choices if each[0] != wrong.answer[0])
    end = tokenizer.eos_token
    replies = [
        (right, right.reply + end),
        (wrong, f"Result: {other}{end}"),
        (formless, f"It is {formless.answer}.{end}"),
    ]
    replies.append((endless, f"{endless.reply}, {endless.reply}"))
    texts = {tokenizer.decode(train_adapters.prompt_of(tokenizer, choice)): reply for choice, reply in replies}
    model: Any = Reciter(tokenizer, texts)
    found = merged_adapters.score_choices(model, tokenizer, [choice for choice, _ in replies], 3)
    assert found == ([True, False, False, False], [True, True, False, True])
