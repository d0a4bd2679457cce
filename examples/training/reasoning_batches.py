"""Makes batches for the reasoning model: problems of about the same length together, each in its own row.

A row holds one exchange. So every letter that names a step is unique within the tokens that attention sees, and positions
start at 0 as they do when the model answers.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from fit import IGNORED, Batch
from reasoning_tokenizer import END
from small_talk import SMALL_TALK, SYSTEM_PROMPTS
from transformers import PreTrainedTokenizerFast

from enginewright.runtime.evaluation.problems import Problem

Encoded = tuple[list[int], list[int]]  # token ids and labels, equally long
WIDTHS = (128, 256, 512, 768, 1024, 1536)
TOKENS_PER_STEP = 8192
SMALL_TALK_SHARE, SYSTEM_SHARE = 0.03, 0.1  # relative to the number of problems


def batches(tokenizer: PreTrainedTokenizerFast, problems: Iterable[Problem], seed: int) -> Iterator[Batch]:
    """Yield endless batches of about `TOKENS_PER_STEP` tokens, padded on the right to one of `WIDTHS`."""
    waiting: dict[int, list[Encoded]] = defaultdict(list)
    for row in rows(tokenizer, problems, seed):
        width = next((width for width in WIDTHS if len(row[0]) <= width), None)
        if width is None:
            raise ValueError(
                f"batches: got an exchange of {len(row[0])} tokens, expected at most {WIDTHS[-1]}; add a width to WIDTHS"
            )
        waiting[width].append(row)
        if (len(waiting[width]) + 1) * width > TOKENS_PER_STEP:
            yield _padded(waiting.pop(width), width, tokenizer.pad_token_id)


def rows(tokenizer: PreTrainedTokenizerFast, problems: Iterable[Problem], seed: int) -> Iterator[Encoded]:
    """Yield one exchange at a time: a problem, sometimes after a system prompt, or small talk."""
    rng = random.Random(f"rows {seed}")
    for problem in problems:
        ids, labels = exchange(tokenizer, problem.question, problem.solution)
        if rng.random() < SYSTEM_SHARE:
            system = tokenizer.encode(_turn("system", rng.choice(SYSTEM_PROMPTS)))
            ids, labels = system + ids, [IGNORED] * len(system) + labels
        if rng.random() < SMALL_TALK_SHARE:
            prompts, reply = rng.choice(SMALL_TALK)
            yield exchange(tokenizer, rng.choice(prompts), reply)
        yield ids, labels


def exchange(tokenizer: PreTrainedTokenizerFast, question: str, reply: str) -> Encoded:
    """One question and answer in the form of the chat template; only the reply and its end token have labels."""
    asked = tokenizer.encode(_turn("user", question) + "<|im_start|>assistant\n")
    answered = tokenizer.encode(reply + END)
    return asked + answered, [IGNORED] * len(asked) + answered


def _turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def _padded(filled: list[Encoded], width: int, pad: int) -> Batch:
    """Pad on the right: with causal attention no earlier token sees the padding, so no mask is needed."""
    ids = [row + [pad] * (width - len(row)) for row, _ in filled]
    labels = [row + [IGNORED] * (width - len(row)) for _, row in filled]
    return torch.tensor(ids), torch.tensor(labels)
