"""What an engine answers: greedy, all questions in flight together."""

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
    """A reply to one question.

    final: what the reply ends in, the part that is judged. tokens: the end included. guessed, agreed: where a step may
    decide several tokens, guesses that the model judged afterwards, and those that it shares.
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
    """All replies of one engine, and the seconds they took together."""

    answers: tuple[Answer, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """Generated, over all replies."""
        return sum(len(answer.tokens) for answer in self.answers)


def ask(llm: LLM, questions: Sequence[Question], label: str) -> Answers:
    """Return the engine's answers, one per question."""
    start = time.perf_counter()
    handles = llm.submit_all(
        [question.prompt for question in questions], [Sampling(max_tokens=q.max_tokens) for q in questions]
    )
    try:
        completions = [handle.result() for handle in tqdm(handles, desc=label, unit="problem", disable=None)]
    finally:
        for handle in handles:  # those that still run when one failed or the user interrupts
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
