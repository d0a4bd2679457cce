"""The training loop of all example models."""

import time
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional
from transformers import Qwen3ForCausalLM

Batch = tuple[torch.Tensor, torch.Tensor]  # inputs[rows, width] and labels[rows, width], int64
IGNORED = -100  # the label that the loss skips
WARMUP_STEPS = 60
DECAY_SHARE = 0.4  # the last part of all steps, in which the learning rate falls to 0
REPORT_EVERY = 20


def fit(
    model: Qwen3ForCausalLM,
    supply: Iterator[Batch],
    optimizers: list[torch.optim.Optimizer],
    *,
    steps: int,
    compiled: bool,
    after_step: Callable[[int], None],
) -> None:
    """Minimise the loss over the labelled tokens.

    after_step: called after each step with the number of steps done.
    """
    device = next(model.parameters()).device
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: rate(step, steps)) for each in optimizers]
    body = torch.compile(model.model, dynamic=False) if compiled else model.model
    model.train()
    began, tokens, recent = time.monotonic(), 0, list[float]()
    for step in range(1, steps + 1):
        inputs, labels = (tensor.to(device) for tensor in next(supply))
        with torch.autocast(device.type, torch.bfloat16):
            loss = _loss(model, body, inputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        tokens += inputs.numel()
        recent.append(loss.item())
        if step % REPORT_EVERY == 0 or step == steps:
            spent, mean = time.monotonic() - began, sum(recent) / len(recent)
            print(f"step {step}/{steps}  loss {mean:.4f}  {tokens:,} tokens  {spent:.0f} s", flush=True)
            recent.clear()
        after_step(step)


def rate(step: int, steps: int) -> float:
    """The learning rate after `step` of `steps` updates, relative to its peak: it rises, stays level, and falls to 0."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / max(1.0, DECAY_SHARE * steps))


def _loss(
    model: Qwen3ForCausalLM, body: Callable[..., torch.nn.Module], inputs: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The mean cross-entropy of the labelled tokens; logits are computed for these alone."""
    targets = labels[:, 1:]
    states = body(input_ids=inputs, use_cache=False).last_hidden_state[:, :-1]
    logits = functional.linear(states[targets != IGNORED], model.lm_head.weight)
    return functional.cross_entropy(logits.float(), targets[targets != IGNORED])


def muon_and_adamw(model: Qwen3ForCausalLM, peak_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms; after 320 steps, a fifth of the loss of AdamW alone."""
    hidden: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (hidden if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    return [
        torch.optim.Muon(hidden, lr=peak_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
