"""The steps of an unlearning: adapters are trained on batches of both files, and their state is kept on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from enginewright.exporters.methods.nsru.adapted_model import AdaptedModel
from enginewright.exporters.methods.nsru.response_tokens import ResponseTokens
from enginewright.exporters.methods.nsru.retained_inputs import ObservedInputs, answer_loss, length_batches
from enginewright.exporters.methods.nsru.unlearn_options import UnlearnOptions
from enginewright.exporters.methods.nsru.unlearning_losses import objective, preference_loss
from enginewright.runtime.errors import ExportError

STATE = "adapters.pt"
SAVE_SECONDS = 30.0  # between two saves
LARGEST_NORM = 1.0  # of all gradients together

Curves = dict[str, list[float]]
"""Of each step the mean losses by kind of answer in nats, the loss that was minimised, and the gradients' norm."""


@dataclass(frozen=True, kw_only=True)
class AnswerDraw:
    """An answer of one step; `Unlearning` creates it.

    kind: safe, undesired or retain.
    number: of the sequence, through all kinds.
    share: of the mean over the step's answers of the kind.
    """

    kind: str
    number: int
    share: float


class Unlearning:
    """The adapters in training; `unlearn` creates it.

    curves: of the steps that are done.
    done: how many these are.
    """

    def __init__(
        self,
        model: AdaptedModel,
        texts: dict[str, Sequence[ResponseTokens]],
        inputs: ObservedInputs,
        options: UnlearnOptions,
        folder: Path,
    ) -> None:
        self._model, self._inputs, self._options, self._folder = model, inputs, options, folder
        self._sequences = [each for kind in texts.values() for each in kind]
        self._counts = {kind: len(own) for kind, own in texts.items()}
        self._begins = dict(zip(texts, np.cumsum([0, *self._counts.values()])[:-1].tolist(), strict=True))
        self._trained = [x for each in model.adapters.values() for x in (each.a, each.b)]
        self._optimizer = torch.optim.AdamW(self._trained, lr=options.rate, weight_decay=0.0)
        self.curves: Curves = {}
        self.done = 0
        self._is_whole = True  # not while the optimizer changes one tensor after another

    def run(self) -> None:
        """Do the steps that are not done, and save the state every `SAVE_SECONDS` and when the run breaks off.

        Raises:
            ExportError: a loss or a gradient is not finite.
        """
        self._resume()
        total, last = self._options.steps, time.monotonic()
        try:
            with tqdm(total=total, initial=self.done, desc="unlearning", unit="step", disable=None) as bar:
                while self.done < total:
                    found = self.step()
                    bar.set_postfix({kind: f"{value:.2f}" for kind, value in found.items()}, refresh=False)
                    bar.update()
                    if time.monotonic() - last >= SAVE_SECONDS:
                        self._save()
                        last = time.monotonic()
        finally:
            if self._is_whole:
                self._save()
        for adapter in self._model.adapters.values():
            adapter.refresh()

    def step(self, rate: float | None = None) -> dict[str, float]:
        """Update the adapters once, and return the step's values of the curves.

        rate: after the warm-up; None: that of the options.
        """
        for adapter in self._model.adapters.values():
            adapter.refresh()
            adapter.b.grad = None
        drawn = self._draw(self.done)
        numbers = [each.number for each in drawn]
        means = dict.fromkeys((each.kind for each in drawn), 0.0)
        loss = 0.0
        for batch in length_batches([self._sequences[i] for i in numbers], range(len(numbers))):
            loss += self._backward([drawn[i] for i in batch], means)
        for adapter in self._model.adapters.values():
            adapter.collect()
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained, LARGEST_NORM))
        self._check("norm of the gradients", norm)
        for group in self._optimizer.param_groups:
            group["lr"] = (self._options.rate if rate is None else rate) * min(
                1.0, (self.done + 1) / max(1, self._options.warmup)
            )
        self._is_whole = False
        self._optimizer.step()
        self.done += 1
        found = {**means, "loss": loss, "norm": norm}
        for name, value in found.items():
            self.curves.setdefault(name, []).append(value)
        self._is_whole = True
        return found

    def _draw(self, step: int) -> list[AnswerDraw]:
        """The answers of a step: as many of each file, without repetition until the file is through."""
        half = self._options.batch // 2
        places = range(step * half, (step + 1) * half)
        drawn = []
        for kind, weight in self._options.weights.items():
            if weight:
                file, count = int(kind == "retain"), self._counts[kind]
                orders = [_order(self._options.seed, file, place // count, count)[place % count] for place in places]
                drawn += [AnswerDraw(kind=kind, number=self._begins[kind] + int(i), share=1 / half) for i in orders]
        return drawn

    def _backward(self, batch: Sequence[AnswerDraw], means: dict[str, float]) -> float:
        """Add the batch's gradients, and its parts of the means; returns its part of the loss."""
        texts = [self._sequences[each.number] for each in batch]
        logits = self._model.logits(texts, self._inputs.states_of([each.number for each in batch]))
        terms = dict.fromkeys(("safe", "undesired", "retain"), torch.zeros(()))
        for each, text, own in zip(batch, texts, logits, strict=True):
            nats = answer_loss(own, text)
            self._check(f"loss of the {each.kind} answers", float(nats.detach()))
            means[each.kind] += each.share * float(nats.detach())
            terms[each.kind] = terms[each.kind] + each.share * self._term(each, text, nats)
        options = self._options
        safe, undesired, retain = options.weights["safe"] * terms["safe"], terms["undesired"], terms["retain"]
        loss = objective(safe, undesired, retain, options.weights["undesired"], options.weights["retain"])
        assert isinstance(loss, torch.Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _term(self, each: AnswerDraw, text: ResponseTokens, nats: torch.Tensor) -> torch.Tensor:
        """The part of an answer in its kind's term of the objective, which is subtracted for the undesired ones."""
        if each.kind != "undesired":
            return nats
        if self._options.method == "npo":
            reference = torch.tensor(self._inputs.reference[each.number])
            return -preference_loss(nats, reference, text.response, self._options.beta)
        cap = self._options.forget_cap
        return nats if cap is None else nats.clamp(max=cap)

    def _check(self, name: str, value: float) -> None:
        if not np.isfinite(value):
            raise ExportError(
                f"step {self.done + 1}: the {name} is {value}, expected a finite number; the {self.done} steps before it are "
                f"kept in {self._folder}; remove it, and train with a smaller --rate or with --forget-cap"
            )

    def _save(self) -> None:
        adapters = {name: (each.a.detach(), each.b.detach()) for name, each in self._model.adapters.items()}
        state = {
            "done": self.done,
            "adapters": adapters,
            "optimizer": self._optimizer.state_dict(),
            "curves": self.curves,
        }
        partial = self._folder / f"{STATE}.partial"
        torch.save(state, partial)
        partial.replace(self._folder / STATE)

    def _resume(self) -> None:
        """Go on from the state of an earlier run, if there is one."""
        path = self._folder / STATE
        if path.is_file():
            state = torch.load(path, weights_only=True)
            self.done, self.curves = int(state["done"]), state["curves"]
            for name, (a, b) in state["adapters"].items():
                with torch.no_grad():
                    self._model.adapters[name].a.copy_(a)
                    self._model.adapters[name].b.copy_(b)
            self._optimizer.load_state_dict(state["optimizer"])
        for adapter in self._model.adapters.values():
            adapter.refresh()


@lru_cache(maxsize=8)
def _order(seed: int, file: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of a file's lines in an epoch."""
    return np.random.default_rng([seed, file, epoch]).permutation(count)
