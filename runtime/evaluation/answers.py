"""Asks an engine questions, all in flight together, and collects its greedy answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from enginewright.runtime.evaluation.problems import answer_of
from enginewright.runtime.evaluation.questions import Question
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A reply to one question; created by `ask`.

    reply: the whole text.
    final: the answer at the end of the reply, which is the part that is judged.
    correct: whether `final` is the right answer.
    tokens: token ids of the reply, including the end token.
    finish_reason: as in the Completion.
    guessed: where a step may decide several tokens, the number of guesses that the model judged afterwards.
    agreed: the number of those guesses that the model agrees with.
    """

    reply: str
    final: str
    correct: bool
    tokens: tuple[int, ...]
    finish_reason: str
    guessed: int = 0
    agreed: int = 0


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All replies of an engine; created by `ask`.

    answers: one for each question.
    seconds: time that all of them took together.
    """

    answers: tuple[Answer, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """Number of tokens generated, over all replies."""
        return sum(len(answer.tokens) for answer in self.answers)


def ask(llm: LLM, questions: Sequence[Question], label: str) -> Answers:
    """Return the engine's answers, one for each question; label: the progress bar's title."""
    start = time.perf_counter()
    handles = llm.submit_all(
        [question.prompt for question in questions],
        [Sampling(max_tokens=question.max_tokens, model_defaults=False) for question in questions],
    )
    try:
        completions = [handle.result() for handle in tqdm(handles, desc=label, unit="problem", disable=None)]
    finally:
        for handle in handles:  # some still run if one has failed, or if the user interrupts
            handle.cancel()
    seconds = time.perf_counter() - start
    answers = []
    for question, completion in zip(questions, completions, strict=True):
        final = answer_of(completion.text)
        answers.append(
            Answer(
                reply=completion.text,
                final=final,
                correct=final == question.problem.answer,
                tokens=completion.token_ids,
                finish_reason=completion.finish_reason,
                guessed=completion.guessed_tokens,
                agreed=completion.agreed_tokens,
            )
        )
    return Answers(answers=tuple(answers), seconds=seconds)
