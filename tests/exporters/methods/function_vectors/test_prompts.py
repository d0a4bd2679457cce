"""Prompts: their text, the tokens of their frame, their targets, the division of pairs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from enginewright.exporters.methods.function_vectors.prompts import (
    WordPair,
    demonstrated,
    divide,
    drawn,
    encode,
    instructed,
    read_task,
)
from enginewright.runtime.errors import ExportError

PAIRS = [WordPair(f"in{number}", f"out{number}") for number in range(10)]
HOT = WordPair("hot", "cold")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each character, and one before every text."""
    vocabulary = {chr(code): code for code in range(128)} | {"[S]": 128}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing("[S] $A", special_tokens=[("[S]", 128)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")


def framed(tokenizer: PreTrainedTokenizerFast, prompt: object) -> str:
    """The characters of the tokens in the frame."""
    found = encode(tokenizer, prompt)  # type: ignore[arg-type]
    return "".join(chr(found.ids[key]) for key in found.keys)


def test_an_instruction(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = instructed("Say the OPPOSITE.", HOT, ("opposite", "hot"))
    assert prompt.text == "Say the OPPOSITE.\nQ: hot\nA:" and prompt.answer == " cold"
    assert framed(tokenizer, prompt) == "OPPOSITEhot", "anywhere in the prompt, in any case"
    found = encode(tokenizer, prompt)
    assert found.ids[0] == 128 and found.target == ord(" ") and 0 not in found.keys


def test_an_instruction_without_keywords(tokenizer: PreTrainedTokenizerFast) -> None:
    assert framed(tokenizer, instructed("What is the opposite word, please?", HOT)) == "opposite"


def test_no_instruction_begins_with_a_line_break(tokenizer: PreTrainedTokenizerFast) -> None:
    assert instructed("", HOT).text == "\nQ: hot\nA:" and framed(tokenizer, instructed("", HOT)) == ""
    assert demonstrated((), HOT).text == "Q: hot\nA:"


def test_demonstrations(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = demonstrated((WordPair("up", "down"), WordPair("in", "out")), HOT)
    assert prompt.text == "Q: up\nA: down\nQ: in\nA: out\nQ: hot\nA:"
    assert framed(tokenizer, prompt) == " down out"


@pytest.mark.parametrize(
    ("instruction", "keywords", "message"),
    [
        ("Do it.", ("antonym",), "expected one of the keywords antonym in it"),
        ("Do it.", (), "expected words that are no stop"),
    ],
)
def test_a_frame_that_is_not_there(instruction: str, keywords: tuple[str, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        instructed(instruction, HOT, keywords)


def test_the_division_and_the_prompts_are_those_of_the_seed() -> None:
    task, again, other = (divide("x", PAIRS, seed) for seed in (42, 42, 43))
    assert task == again != other
    assert len(task.train) == 7 and sorted([*task.train, *task.test], key=str) == sorted(PAIRS, key=str)
    assert [len(part) for part in (divide("x", PAIRS[:2], 1).train, divide("x", PAIRS[:2], 1).test)] == [1, 1]
    prompts = drawn(task, 3, 5, 42)
    assert prompts == drawn(task, 3, 5, 42) != drawn(task, 3, 5, 43)
    for prompt in prompts:
        assert prompt.text.count("Q:") == 4 and prompt.text.count(prompt.answer.strip()) == 0, (
            "the question is no example"
        )


def test_corrupted_prompts_have_the_same_answers_in_another_order() -> None:
    task = divide("x", PAIRS, 42)
    clean, corrupted = drawn(task, 6, 1, 42)[0], drawn(task, 6, 1, 42, shuffled=True)[0]
    assert clean.text != corrupted.text and sorted(clean.text) == sorted(corrupted.text)


def test_too_few_pairs() -> None:
    with pytest.raises(ExportError, match="got 7 pairs to learn from, expected more than the 7 demonstrations"):
        drawn(divide("x", PAIRS, 42), 7, 1, 42)
    with pytest.raises(ExportError, match="got 1 pairs, expected two or more"):
        divide("x", PAIRS[:1], 42)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "got a JSON dict, expected a list"),
        ('[{"input": "a"}]', r"item 0: got \{'input': 'a'\}, expected"),
        ('[{"input": "a", "output": ""}]', "item 0: got"),
        ('[{"input": "a", "output": "b", "more": 1}]', "item 0: got"),
    ],
)
def test_bad_tasks(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(content)
    with pytest.raises(ExportError, match=message):
        read_task(path, 42)


def test_a_task_is_called_as_its_file(tmp_path: Path) -> None:
    path = tmp_path / "capital.json"
    path.write_text(json.dumps([{"input": "a", "output": "b"}] * 4))
    assert read_task(path, 42).name == "capital" and read_task(path, 42, name="other").name == "other"
    with pytest.raises(ExportError, match="cannot be read"):
        read_task(tmp_path / "none.json", 42)
