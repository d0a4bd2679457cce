"""Scores of a model on answers: what can be extracted, what it says by itself, and how likely text is to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch.nn import functional
from transformers import PreTrainedModel

from benchmarks.unlearning.invented_authors import AuthorQuestion, asked
from benchmarks.unlearning.learning import learn, upper_layers
from benchmarks.unlearning.real_facts import fact_questions
from enginewright.exporters.methods.lora import Config
from enginewright.exporters.methods.nsru import extraction_strength
from enginewright.exporters.methods.nsru.adapted_model import AdaptedModel
from enginewright.exporters.methods.nsru.response_tokens import Prompts, ResponseTokens
from enginewright.exporters.methods.nsru.retained_inputs import length_batches
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.tokenizer.engine_tokenizer import open_tokenizer

WINDOW = 256  # tokens of the held-out text at a time
FACT_TOKENS, ANSWER_TOKENS = 12, 40
RELEARN_RANK, RELEARN_RATE, RELEARN_BATCH = 16, 1e-3, 10


@dataclass(frozen=True)
class ScoredModel:
    """A model to score: a checkpoint, with the adapter in the folder `adapter` merged, if there is one."""

    checkpoint: str
    adapter: Path | None

    def load(self) -> PreTrainedModel:
        """The model in float32."""
        applied = [] if self.adapter is None else [Applied("lora", Config(path=str(self.adapter)))]
        return load_reference(self.checkpoint, applied)


@dataclass(kw_only=True)
class Scorer:
    """The questions that models are scored on; the command creates it.

    model: a checkpoint with the tokenizer.
    forget, retain: questions about authors.
    facts: how many questions about the real world are asked.
    text: whose perplexity is measured, in `windows` windows.
    relearn: steps of training on the forgotten answers, after which these are scored again; 0: none.
    """

    model: str
    forget: Sequence[AuthorQuestion]
    retain: Sequence[AuthorQuestion]
    facts: int
    text: str
    windows: int
    relearn: int
    _tokenizer: Any = field(init=False)

    def __post_init__(self) -> None:
        checkpoint = open_checkpoint(self.model)
        self._tokenizer = open_tokenizer(checkpoint, checkpoint.tokenizer_files())

    @property
    def has_template(self) -> bool:
        """Whether prompts go through a chat template."""
        return bool(self._tokenizer.chat_template)

    def score(self, scored: ScoredModel, known: Sequence[bool] | None) -> dict[str, list[float]]:
        """The scores of every question.

        known: which facts count; None: all.
        """
        model = scored.load()
        plain = AdaptedModel(model, upper_layers(model, 1))
        forget, retain = self._encode(self.forget, "prompt"), self._encode(self.retain, "prompt")
        found = {
            "forget_strength": strengths(plain, forget),
            "reworded_strength": strengths(plain, self._encode(self.forget, "reworded")),
            "retain_strength": strengths(plain, retain),
        }
        said = self._say(model, [each.prompt for each in self.forget], ANSWER_TOKENS)
        kept = self._say(model, [each.prompt for each in self.retain], ANSWER_TOKENS)
        found["forget_rouge"] = _rouge([each.answer for each in self.forget], said)
        found["safe_rouge"] = _rouge([each.safe for each in self.forget], said)
        found["retain_rouge"] = _rouge([each.answer for each in self.retain], kept)
        found["facts"] = self._facts(model, known)
        found["nats"], found["tokens"] = self._likelihood(model)
        found["relearned_strength"] = self._relearn(model, forget) if self.relearn else []
        return found

    def _encode(self, questions: Sequence[AuthorQuestion], part: str) -> list[ResponseTokens]:
        prompts = Prompts(self._tokenizer, WINDOW)
        return [prompts.encode(asked(getattr(x, part), self.has_template), x.answer, x.prompt) for x in questions]

    def _say(self, model: PreTrainedModel, questions: Sequence[str], tokens: int) -> list[str]:
        """Greedy answers, those of equally long prompts together."""
        prompts = Prompts(self._tokenizer, WINDOW)
        encoded = [prompts.encode(asked(x, self.has_template), "x", x) for x in questions]
        ids = [each.ids[: each.prompt] for each in encoded]
        said = [""] * len(questions)
        for length in sorted({len(each) for each in ids}):
            rows = [row for row, each in enumerate(ids) if len(each) == length]
            end = self._tokenizer.eos_token_id
            all_own = continue_greedily(model, [ids[row] for row in rows], tokens, end)
            for row, own in zip(rows, all_own, strict=True):
                own = own[: own.index(end)] if end in own else own
                said[row] = self._tokenizer.decode(own, skip_special_tokens=True)
        return said

    def _facts(self, model: PreTrainedModel, known: Sequence[bool] | None) -> list[float]:
        """Whether each fact's answer is right, of the facts that count."""
        asked_facts = fact_questions()[: self.facts]
        chosen = [each for i, each in enumerate(asked_facts) if known is None or known[i]]
        said = self._say(model, [question for question, _ in chosen], FACT_TOKENS)
        return [
            float(any(word.lower() in answer.lower() for word in words))
            for (_, words), answer in zip(chosen, said, strict=True)
        ]

    def _likelihood(self, model: PreTrainedModel) -> tuple[list[float], list[float]]:
        """Nats and tokens of each window of the held-out text."""
        ids = self._tokenizer.encode(self.text[: 8 * WINDOW * self.windows])
        nats = []
        windows = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)][: self.windows]
        for window in windows:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([window]), use_cache=False).logits[0, :-1]
            nats.append(float(functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="sum")))
        return nats, [float(WINDOW - 1)] * len(nats)

    def _relearn(self, model: PreTrainedModel, forget: list[ResponseTokens]) -> list[float]:
        """The strengths after ordinary training on the forgotten answers; the model is changed."""
        half = -(-model.config.num_hidden_layers // 2)
        adapted, found = AdaptedModel(model, upper_layers(model, half)), list[float]()

        def after(_: int, states: list[torch.Tensor] | None) -> bool:
            found.extend(strengths(adapted, forget, states))
            return True

        settings = {"rank": RELEARN_RANK, "rate": RELEARN_RATE, "batch": RELEARN_BATCH}
        learn(adapted, forget, **settings, steps=self.relearn, after=after, every=self.relearn)  # type: ignore[arg-type]
        return found


def strengths(
    model: AdaptedModel, texts: Sequence[ResponseTokens], states: Sequence[torch.Tensor] | None = None
) -> list[float]:
    """The extraction strength of each answer.

    states: of each sequence before the first adapted block; None: the whole model runs.
    """
    found = [0.0] * len(texts)
    with torch.no_grad():
        for batch in length_batches(texts, range(len(texts))):
            own = None if states is None else [states[i] for i in batch]
            for i, logits in zip(batch, model.logits([texts[i] for i in batch], own), strict=True):
                answer = list(texts[i].ids[texts[i].prompt :])
                found[i] = extraction_strength(logits.argmax(-1), torch.tensor(answer))
    return found


def mean_strength(
    model: AdaptedModel, texts: Sequence[ResponseTokens], states: Sequence[torch.Tensor] | None = None
) -> float:
    """The mean extraction strength."""
    return float(np.mean(strengths(model, texts, states)))


def _rouge(truths: Sequence[str], said: Sequence[str]) -> list[float]:
    """ROUGE-L recall of each generation, as TOFU's evaluation uses it."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [float(scorer.score(truth, own)["rougeL"].recall) for truth, own in zip(truths, said, strict=True)]


def continue_greedily(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], tokens: int, end: int | None
) -> list[list[int]]:
    """The greedy tokens after rows of one length, at most `tokens`, or until all rows have had the token `end`."""
    ids, cache = torch.tensor(rows), None
    made: list[torch.Tensor] = []
    has_ended = torch.zeros(len(rows), dtype=torch.bool)
    with torch.no_grad():
        while len(made) < tokens and not has_ended.all():
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
            made.append(ids)
            has_ended |= ids[:, 0] == (-1 if end is None else end)
    return torch.cat(made, dim=1).tolist()
