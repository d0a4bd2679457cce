r"""Tasks of word pairs, and the prompts that state them: by an instruction, by demonstrations, or not at all.

A prompt with an instruction is `instruction + "\n" + "Q: " + input + "\n" + "A:"`; one with demonstrations begins with
`Q: input\nA: output\n` for each; the answer is `" " + output`. No chat template is used, for instruct models neither.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from enginewright.runtime.artifact.files.json_file import read_json
from enginewright.runtime.errors import ExportError

TRAIN_SHARE = 0.7
STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "can",
        "do",
        "does",
        "each",
        "for",
        "from",
        "give",
        "given",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "me",
        "of",
        "on",
        "or",
        "out",
        "please",
        "say",
        "so",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "this",
        "those",
        "to",
        "us",
        "use",
        "was",
        "what",
        "when",
        "which",
        "will",
        "with",
        "word",
        "words",
        "write",
        "you",
        "your",
    ]
)


@dataclass(frozen=True)
class WordPair:
    """One item of a task: a word or a few, and the answer."""

    input: str
    output: str


@dataclass(frozen=True, kw_only=True)
class WordTask:
    """A task; `read_task` creates it.

    name: what its vectors are called.
    train, test: its pairs; vectors are made of the first.
    """

    name: str
    train: tuple[WordPair, ...]
    test: tuple[WordPair, ...]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt as text.

    text: up to the answer.
    frame: the stretches of characters, [begin, end), from which a head has to draw.
    answer: with the blank before it.
    """

    text: str
    frame: tuple[tuple[int, int], ...]
    answer: str


@dataclass(frozen=True, kw_only=True)
class TokenPrompt:
    """A prompt as tokens; `encode` creates it.

    ids: of the prompt.
    keys: positions of the tokens that overlap the frame.
    target: the answer's first token.
    """

    ids: tuple[int, ...]
    keys: tuple[int, ...]
    target: int


def read_task(path: Path, seed: int, *, name: str | None = None) -> WordTask:
    """Return the task of a JSON list of {"input": ..., "output": ...}, its pairs divided at random 70 to 30.

    Raises:
        ExportError: the file cannot be read, or has no such list, or fewer than two pairs.
    """
    items = read_json(path, ExportError, "pass a JSON list of word pairs")
    if not isinstance(items, list):
        raise ExportError(f"{path}: got a JSON {type(items).__name__}, expected a list of word pairs")
    pairs = []
    for number, item in enumerate(items):
        values = [item.get(key) for key in ("input", "output")] if isinstance(item, dict) else []
        if (
            not isinstance(item, dict)
            or item.keys() != {"input", "output"}
            or not all(isinstance(v, str) and v for v in values)
        ):
            raise ExportError(f'{path}: item {number}: got {item!r}, expected {{"input": text, "output": text}}')
        pairs.append(WordPair(str(item["input"]), str(item["output"])))
    return divide(name or path.stem, pairs, seed)


def divide(name: str, pairs: Sequence[WordPair], seed: int) -> WordTask:
    """Return the task with its pairs divided at random, 70 to 30; ExportError for fewer than two pairs."""
    if len(pairs) < 2:
        raise ExportError(
            f"{name}: got {len(pairs)} pairs, expected two or more: some to learn from, some to test with"
        )
    shuffled = list(pairs)
    random.Random(seed).shuffle(shuffled)
    count = min(max(round(TRAIN_SHARE * len(shuffled)), 1), len(shuffled) - 1)
    return WordTask(name=name, train=tuple(shuffled[:count]), test=tuple(shuffled[count:]))


def instructed(instruction: str, pair: WordPair, keywords: Sequence[str] = ()) -> Prompt:
    """Return the prompt with an instruction, which may be empty; its frame is every place of a keyword, in any case.

    Without keywords the frame is the instruction's words but for stop words. A zero-shot prompt has an empty frame.

    Raises:
        ExportError: no keyword stands in the prompt, or the instruction has stop words alone.
    """
    text = f"{instruction}\nQ: {pair.input}\nA:"
    if keywords:
        found = [match.span() for word in keywords for match in re.finditer(re.escape(word), text, re.IGNORECASE)]
    else:
        words = re.finditer(r"\w+", instruction)
        found = [match.span() for match in words if match[0].lower() not in STOP_WORDS]
    if instruction and not found:
        expected = f"one of the keywords {', '.join(keywords)} in it" if keywords else "words that are no stop words"
        raise ExportError(
            f"instruction: got {instruction!r}, expected {expected}; name keywords of the instruction by --frame"
        )
    return Prompt(text=text, frame=tuple(found), answer=f" {pair.output}")


def demonstrated(shots: Sequence[WordPair], pair: WordPair) -> Prompt:
    """Return the prompt with demonstrations, which may be none; its frame is their answers."""
    text, frame = "", []
    for shot in shots:
        text += f"Q: {shot.input}\nA:"
        frame.append((len(text), len(text) + 1 + len(shot.output)))
        text += f" {shot.output}\n"
    return Prompt(text=f"{text}Q: {pair.input}\nA:", frame=tuple(frame), answer=f" {pair.output}")


def drawn(task: WordTask, shots: int, count: int, seed: int, *, shuffled: bool = False) -> list[Prompt]:
    """Return `count` prompts with `shots` demonstrations each, of the task's training pairs and for one of them.

    shuffled: whether the demonstrations' answers are those of other ones: the corrupted prompts of indirect effects.

    Raises:
        ExportError: the task has too few training pairs.
    """
    if len(task.train) < shots + 1:
        raise ExportError(
            f"{task.name}: got {len(task.train)} pairs to learn from, expected more than the {shots} demonstrations of a prompt; "
            "add pairs, or take fewer by --shots"
        )
    random_ = random.Random(f"{task.name} {seed} {shots}")
    found = []
    for _ in range(count):
        *chosen, query = random_.sample(task.train, shots + 1)
        if shuffled:
            answers = [shot.output for shot in chosen]
            random_.shuffle(answers)
            chosen = [WordPair(shot.input, answer) for shot, answer in zip(chosen, answers, strict=True)]
        found.append(demonstrated(chosen, query))
    return found


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> TokenPrompt:
    """Return the prompt as tokens, with what the tokenizer puts before every text.

    Raises:
        ExportError: the answer adds no token.
    """
    found: Any = tokenizer(prompt.text, return_offsets_mapping=True)
    ids = list(found["input_ids"])
    whole = list(tokenizer(prompt.text + prompt.answer)["input_ids"])
    if len(whole) <= len(ids):
        raise ExportError(
            f"answer: got {prompt.answer!r}, which adds no token to {prompt.text!r}, expected one or more"
        )
    keys = [
        position
        for position, (begin, end) in enumerate(found["offset_mapping"])
        if any(begin < stop and start < end for start, stop in prompt.frame)
    ]
    return TokenPrompt(ids=tuple(ids), keys=tuple(keys), target=int(whole[len(ids)]))
