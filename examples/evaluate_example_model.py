"""Measures how often a model's greedy reply ends in the right answer, per kind of problem."""

from pathlib import Path
from typing import Any

import torch
from problems import KINDS, Problem, answer_of, held_out_problems
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 50
MAX_NEW_TOKENS = 200


def print_accuracy(folder: Path, *, seed: int, count: int = 200) -> None:
    """Print one table row per kind: problems, exact answers, and replies whose every step matches too."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    print("| kind | problems | right answer | whole reply right |\n|---|---|---|---|")
    totals = [0, 0, 0]
    for kind in KINDS:
        problems = held_out_problems(kind, count, seed)
        replies = generate_replies(model, tokenizer, problems)
        answers = sum(answer_of(reply) == problem.answer for problem, reply in zip(problems, replies, strict=True))
        whole = sum(reply == problem.reply for problem, reply in zip(problems, replies, strict=True))
        print(f"| {kind} | {len(problems)} | {answers / len(problems):.1%} | {whole / len(problems):.1%} |", flush=True)
        totals = [a + b for a, b in zip(totals, (len(problems), answers, whole), strict=True)]
    print(f"| all | {totals[0]} | {totals[1] / totals[0]:.1%} | {totals[2] / totals[0]:.1%} |")


@torch.inference_mode()
def generate_replies(model: Any, tokenizer: Any, problems: list[Problem]) -> list[str]:
    """The model's greedy replies, each problem asked as the only turn of a chat."""
    replies: list[str] = []
    for begin in range(0, len(problems), BATCH):
        chats = [[{"role": "user", "content": problem.prompt}] for problem in problems[begin : begin + BATCH]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        )
        outputs = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        replies += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies
