"""Measures how often a model's greedy reply ends in the right answer, per kind of problem."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from problems import KINDS, MakeProblem, Problem, answer_of, held_out_problems, training_problems
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 50
MAX_NEW_TOKENS = 200
LONG_CHAT_TURNS = 35  # about 3,000 tokens


def evaluate_folder(folder: Path, *, seed: int) -> None:
    """Print the accuracy of a saved model on every kind, and on problems at the end of a long chat."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    print_accuracy(model, tokenizer, KINDS, seed=seed)
    print_long_chat_accuracy(model, tokenizer, seed=seed)


def print_accuracy(
    model: Any, tokenizer: Any, kinds: Mapping[str, MakeProblem], *, seed: int, count: int = 200
) -> None:
    """Print one table row per kind: problems, exact answers, and replies whose every step matches too."""
    print("| kind | problems | right answer | whole reply right |\n|---|---|---|---|")
    totals = [0, 0, 0]
    for kind, make in kinds.items():
        problems = held_out_problems(make, count, seed)
        scores = score(problems, generate_replies(model, tokenizer, [[_question(problem)] for problem in problems]))
        print(_row(kind, *scores), flush=True)
        totals = [total + one for total, one in zip(totals, scores, strict=True)]
    print(_row("all", *totals))


def print_long_chat_accuracy(model: Any, tokenizer: Any, *, seed: int, count: int = 50) -> None:
    """Print one table row: held-out problems of all kinds, each asked after `LONG_CHAT_TURNS` other exchanges."""
    makers = [make for kind, make in KINDS.items() if kind != "chat"]
    problems = [held_out_problems(makers[i % len(makers)], 1, seed + i)[0] for i in range(count)]
    before = training_problems(seed + 1)
    chats = []
    for problem in problems:
        turns = [next(before) for _ in range(LONG_CHAT_TURNS)]
        history = [message for turn in turns for message in (_question(turn), _answer(turn))]
        chats.append([*history, _question(problem)])
    print(_row("end of a long chat", *score(problems, generate_replies(model, tokenizer, chats, batch=10))))


def score(problems: list[Problem], replies: list[str]) -> tuple[int, int, int]:
    """(problems, replies with the right answer, replies right to the last character)."""
    pairs = list(zip(problems, replies, strict=True))
    answers = sum(answer_of(reply) == problem.answer for problem, reply in pairs)
    return len(pairs), answers, sum(reply == problem.reply for problem, reply in pairs)


@torch.inference_mode()
def generate_replies(model: Any, tokenizer: Any, chats: list[list[dict[str, str]]], *, batch: int = BATCH) -> list[str]:
    """The model's greedy reply to each chat; a chat is a list of role and content messages ending with the user's."""
    replies: list[str] = []
    for begin in range(0, len(chats), batch):
        inputs = tokenizer.apply_chat_template(
            chats[begin : begin + batch],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            padding=True,
        )
        outputs = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        replies += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies


def _question(problem: Problem) -> dict[str, str]:
    return {"role": "user", "content": problem.prompt}


def _answer(problem: Problem) -> dict[str, str]:
    return {"role": "assistant", "content": problem.reply}


def _row(name: str, count: int, answers: int, whole: int) -> str:
    return f"| {name} | {count} | {answers / count:.1%} | {whole / count:.1%} |"
