"""The training loop that the example model and its adapter share."""

import math
import random
import time
from collections.abc import Iterable, Iterator

import torch
from example_tokenizer import END
from problems import Problem
from small_talk import SYSTEM_PROMPTS
from transformers import PreTrainedTokenizerFast

Encoded = tuple[list[int], list[int]]  # token ids and labels, equally long
SHORT_ROW, LONG_ROW = 256, 4096  # tokens in a row of a usual step and of every sixteenth step
TOKENS_PER_STEP = 4096
LONG_EVERY = 16
WARMUP_STEPS = 50
IGNORED = -100  # the label that the loss skips


def fit(
    model: torch.nn.Module, rows: Iterator[list[Encoded]], *, steps: int, peak_rate: float, compiled: bool = False
) -> None:
    """Minimise the loss over the replies, with a linear warm-up and a cosine decay of the learning rate to 1 %."""
    optimizers = _optimizers(model, peak_rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: _rate(step, steps)) for each in optimizers]
    forward = torch.compile(model, dynamic=False) if compiled else model
    model.train()
    began = time.monotonic()
    for step in range(1, steps + 1):
        inputs, labels = (torch.tensor(column) for column in zip(*next(rows), strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(input_ids=inputs, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 20 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.4f}  {time.monotonic() - began:.0f} s", flush=True)


def batches(
    tokenizer: PreTrainedTokenizerFast, short: Iterable[Problem], long: Iterable[Problem], seed: int
) -> Iterator[list[Encoded]]:
    """Endless steps of 4096 tokens: sixteen short rows, and every sixteenth time one row of the whole context length."""
    short_rows, long_rows = pack(tokenizer, short, SHORT_ROW, seed), pack(tokenizer, long, LONG_ROW, seed)
    step = 0
    while True:
        step += 1
        rows, length = (long_rows, LONG_ROW) if step % LONG_EVERY == 0 else (short_rows, SHORT_ROW)
        yield [next(rows) for _ in range(TOKENS_PER_STEP // length)]


def pack(
    tokenizer: PreTrainedTokenizerFast, problems: Iterable[Problem], row_length: int, seed: int
) -> Iterator[Encoded]:
    """Rows of `row_length` tokens: whole problems back to back, which is one chat of several turns, then padding."""
    rng = random.Random(seed)
    row: Encoded = ([], [])
    for problem in problems:
        ids, labels = encode(tokenizer, problem)
        if len(ids) > row_length:
            raise ValueError(f"pack: got a problem of {len(ids)} tokens, expected at most {row_length}")
        if len(row[0]) + len(ids) > row_length:
            padding = row_length - len(row[0])
            yield row[0] + [tokenizer.pad_token_id] * padding, row[1] + [IGNORED] * padding
            system = tokenizer.encode(_turn("system", rng.choice(SYSTEM_PROMPTS))) if rng.random() < 0.25 else []
            row = (system, [IGNORED] * len(system)) if len(system) + len(ids) <= row_length else ([], [])
        row = (row[0] + ids, row[1] + labels)


def encode(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> Encoded:
    """One question and answer as the chat template writes them; only the reply and its end token carry labels."""
    question = tokenizer.encode(_turn("user", problem.prompt) + "<|im_start|>assistant\n")
    reply, newline = tokenizer.encode(problem.reply + END), tokenizer.encode("\n")
    return question + reply + newline, [IGNORED] * len(question) + reply + [IGNORED] * len(newline)


def _turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def _optimizers(model: torch.nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between the layers, AdamW for embeddings and norms.

    Muon reaches in 320 steps a fifth of the loss that AdamW alone reaches (0.13 against 0.63).
    """
    hidden: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (hidden if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(hidden, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ]
    if rest:
        optimizers.append(torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0))
    return optimizers


def _rate(step: int, steps: int) -> float:
    """The learning rate after `step` of `steps` updates, relative to its peak."""
    warmup = min(1.0, (step + 1) / min(WARMUP_STEPS, max(1, steps // 10)))
    return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
