"""Makes the function vectors of a task: scores of heads, means, the best heads, their vectors, and the layer for their sum."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from enginewright.exporters.methods.function_vectors.attention_layers import attention_layers
from enginewright.exporters.methods.function_vectors.last_tokens import LastTokens
from enginewright.exporters.methods.function_vectors.measure import batches, target_hits, target_ranks
from enginewright.exporters.methods.function_vectors.prompts import (
    TokenPrompt,
    WordPair,
    WordTask,
    demonstrated,
    drawn,
    encode,
    instructed,
)
from enginewright.exporters.methods.function_vectors.scores import head_scores, top_heads
from enginewright.exporters.methods.function_vectors.vectors import adds, head_means, steered, steering_vectors
from enginewright.runtime.errors import ExportError

BEST_INSTRUCTIONS, LEAST_SAMPLES = 5, 20
SCORED, MEANT, MEANT_SHOTS = 5, 20, 16  # prompts of an instruction whose scores, or means, are taken; of demonstrations
SCORED_SHOTS = BEST_INSTRUCTIONS * SCORED
SWEPT_ROWS = 256  # of a pass that tries all layers
LARGEST_RANK = 5
"""A prompt counts for scores if its target is among this many of the likeliest tokens."""


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions:
    """How vectors are made; the command's arguments create it.

    heads: how many heads make the vectors.
    shots: demonstrations of a prompt; None: prompts have instructions.
    instructions: of which the five best are taken.
    frame: the keywords of the instructions that heads have to draw from; empty: all words but stop words.
    layer: after which the sum is added; None: the one that is best for the training pairs.
    seed: of the division of pairs, and of the prompts.
    least: samples that the instructions have to solve.

    Raises:
        ExportError: a value out of range, or both or neither of instructions and shots.
    """

    heads: int = 20
    shots: int | None = None
    instructions: tuple[str, ...] = ()
    frame: tuple[str, ...] = ()
    layer: int | None = None
    seed: int = 42
    least: int = LEAST_SAMPLES

    def __post_init__(self) -> None:
        if (self.shots is None) == (not self.instructions):
            raise ExportError("function-vector: got both or neither of --instruction and --shots, expected one of them")
        if self.frame and not self.instructions:
            raise ExportError(
                "--frame: got keywords with --shots, whose frame is the demonstrations' answers; leave it out"
            )
        for name, least in (("heads", 1), ("least", 1), ("layer", 0), ("shots", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ExportError(f"--{name}: got {value}, expected {least} or more")
        if any(not each.strip() for each in (*self.instructions, *self.frame)):
            raise ExportError("--instruction, --frame: got an empty text, expected words")


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The prompts of a task; `make_samples` creates it.

    scored: whose heads' relevance counts.
    meant: whose heads' outputs are averaged.
    instructions: those that were taken.
    solved: the training pairs that every one of them solves; None with demonstrations.
    """

    scored: tuple[TokenPrompt, ...]
    meant: tuple[TokenPrompt, ...]
    instructions: tuple[str, ...] = ()
    solved: int | None = None


@dataclass(frozen=True, kw_only=True)
class FunctionVectors:
    """The vectors of a task; `extract` creates it.

    scores: mean relevance of each head, [L, H].
    means: of the heads' outputs, [L, H, D_h].
    heads: the best, as (layer, head).
    at_heads: the vector [d] of each layer that has some of them.
    whole: their sum, [d].
    layer: after which the sum is best added.
    counts: of prompts, by what they served for.
    accuracy: hits among the test pairs without demonstrations, by what was added.
    """

    scores: torch.Tensor
    means: torch.Tensor
    heads: list[tuple[int, int]]
    at_heads: dict[int, torch.Tensor]
    whole: torch.Tensor
    layer: int
    counts: dict[str, int] = field(default_factory=dict)
    accuracy: dict[str, int] = field(default_factory=dict)


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: WordTask,
    options: ExtractionOptions,
    *,
    others: Sequence[torch.Tensor] = (),
) -> FunctionVectors:
    """Return the function vectors of a task.

    others: scores [L, H] of other tasks on the same model; heads are then those of the mean over all tasks.

    Raises:
        ExportError: the model does not solve enough of the task, or the options do not fit the model.
    """
    layers = attention_layers(model)
    if options.heads > len(layers) * layers[0].heads:
        raise ExportError(
            f"--heads: got {options.heads}, expected at most {len(layers) * layers[0].heads}, which the model has"
        )
    if options.layer is not None and options.layer >= len(layers):
        raise ExportError(f"--layer: got {options.layer}, expected a layer from 0 to {len(layers) - 1}")
    samples = make_samples(model, tokenizer, task, options)
    counted, scores = mean_scores(model, samples.scored, task.name)
    if wrong := [each for each in others if each.shape != scores.shape]:
        raise ExportError(
            f"--with: got scores of shape {list(wrong[0].shape)}, expected {list(scores.shape)}; of another model?"
        )
    heads = top_heads(torch.stack([scores, *(each.to(scores) for each in others)]).mean(0), options.heads)
    means = head_means(model, [prompt.ids for prompt in samples.meant])
    at_heads, whole = steering_vectors(model, heads, means)
    train, test = (
        zero_shot(tokenizer, pairs, with_instructions=options.shots is None) for pairs in (task.train, task.test)
    )
    layer = best_layer(model, whole, train) if options.layer is None else options.layer
    accuracy = {"test pairs": len(test), "nothing": target_hits(model, test)[0]}
    with steered(model, heads=at_heads):
        accuracy["at heads"] = target_hits(model, test)[0]
    with steered(model, stream={layer: whole}):
        accuracy["in the stream"] = target_hits(model, test)[0]
    counts = {
        "scored": counted,
        "of prompts": len(samples.scored),
        "meant": len(samples.meant),
        "tasks": 1 + len(others),
    }
    if samples.solved is not None:
        counts["solved"] = samples.solved
    return FunctionVectors(
        scores=scores,
        means=means,
        heads=heads,
        at_heads=at_heads,
        whole=whole,
        layer=layer,
        counts=counts,
        accuracy=accuracy,
    )


def make_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: WordTask, options: ExtractionOptions
) -> Samples:
    """Return the prompts of a task, with demonstrations or instructions.

    With instructions, the five that solve most of the training pairs are taken, and those pairs that all of them solve.

    Raises:
        ExportError: fewer than `least` pairs are solved, or the task has too few pairs.
    """
    if options.shots is not None:
        prompts = [encode(tokenizer, each) for each in drawn(task, options.shots, SCORED_SHOTS, options.seed)]
        return Samples(scored=tuple(prompts), meant=tuple(prompts[:MEANT_SHOTS]))
    ranked = []
    for instruction in options.instructions:
        prompts = [encode(tokenizer, instructed(instruction, pair, options.frame)) for pair in task.train]
        is_right = [rank == 1 for rank in target_ranks(model, prompts)]
        ranked.append((sum(is_right), instruction, prompts, is_right))
    best = sorted(ranked, key=lambda each: -each[0])[:BEST_INSTRUCTIONS]
    solved = [place for place in range(len(task.train)) if all(is_right[place] for *_, is_right in best)]
    if len(solved) < options.least:
        raise ExportError(
            f"{task.name}: got {len(solved)} of {len(task.train)} training pairs that the model solves with the instructions, "
            f"expected {options.least} or more; small models need demonstrations: pass --shots 8 in place of instructions"
        )
    return Samples(
        scored=tuple(prompts[place] for _, _, prompts, _ in best for place in solved[:SCORED]),
        meant=tuple(prompts[place] for _, _, prompts, _ in best for place in solved[:MEANT]),
        instructions=tuple(instruction for _, instruction, _, _ in best),
        solved=len(solved),
    )


def mean_scores(model: PreTrainedModel, prompts: Sequence[TokenPrompt], name: str) -> tuple[int, torch.Tensor]:
    """Return how many prompts count, those whose target ranks among the first five, and their mean scores [L, H].

    Raises:
        ExportError: none counts.
    """
    ranks = target_ranks(model, prompts)
    counting = [prompt for prompt, rank in zip(prompts, ranks, strict=True) if rank <= LARGEST_RANK]
    if not counting:
        raise ExportError(
            f"{name}: got no prompt whose answer is among the {LARGEST_RANK} likeliest tokens, expected some; the model does not "
            "know the task: take a larger one, or more demonstrations"
        )
    total = torch.stack([head_scores(model, each.ids, each.target, each.keys) for each in counting])
    return len(counting), total.mean(0)


def zero_shot(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[WordPair], *, with_instructions: bool
) -> list[TokenPrompt]:
    """Return prompts that say nothing of the task; those of instructions begin with the line break after an empty one."""
    prompts = [instructed("", pair) if with_instructions else demonstrated((), pair) for pair in pairs]
    return [encode(tokenizer, prompt) for prompt in prompts]


def best_layer(model: PreTrainedModel, whole: torch.Tensor, prompts: Sequence[TokenPrompt]) -> int:
    """Return the layer after which `whole` makes most targets rank first; of equals, that of the likelier targets.

    Every prompt has a row for each layer, all of which pass at once, and the tokens before the last one run once.
    """
    layers = attention_layers(model)
    count = len(layers)
    hits, likely = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
    for places in batches(prompts, max(1, SWEPT_ROWS // count)):
        last = LastTokens(model, torch.tensor([prompts[place].ids for place in places], device=model.device))
        targets = torch.tensor([prompts[place].target for place in places], device=model.device)
        with ExitStack() as stack:
            for layer in layers:
                rows = slice(layer.index, None, count)
                stack.callback(layer.block.register_forward_hook(adds(whole, 1.0, -1, rows)).remove)
            scores = last.logits(count).float().log_softmax(-1)
        own = scores.gather(1, targets.repeat_interleave(count)[:, None])
        hits += (scores <= own).all(1).reshape(-1, count).sum(0)
        likely += own.reshape(-1, count).sum(0)
    return max(range(count), key=lambda layer: (float(hits[layer]), float(likely[layer]), -layer))
