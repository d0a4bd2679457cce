"""Runs engines on a task, one after another, and measures their answers, scores and divergence item by item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import RequestError
from enginewright.runtime.evaluation.answers import Answers, ask
from enginewright.runtime.evaluation.candidates import Candidate
from enginewright.runtime.evaluation.divergence import Divergence, diverge
from enginewright.runtime.evaluation.documents import read_documents
from enginewright.runtime.evaluation.perplexity import TextScores, score_texts
from enginewright.runtime.evaluation.questions import Question, make_questions
from enginewright.runtime.evaluation.suites import Task, pick_problems
from enginewright.runtime.evaluation.texts import Text, answer_texts, document_texts, solution_texts
from enginewright.runtime.llm import LLM
from enginewright.runtime.loader import load


@dataclass(frozen=True, kw_only=True)
class Work:
    """The items of a task for one engine, in its own tokens; created by `prepare`.

    questions: the questions that it answers; also there where it scores the worked solutions instead.
    texts: the texts that it scores.
    """

    questions: tuple[Question, ...] = ()
    texts: tuple[Text, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Score:
    """The measurements of one engine, item by item; created by `run`.

    candidate: the engine.
    work: its items.
    answers: its answers, where it was asked.
    text_scores: its scores of the texts, where it was not asked.
    divergence: its divergence from the reference, one for each text; None without a reference, and for the reference.
    """

    candidate: Candidate
    work: Work
    answers: Answers | None = None
    text_scores: TextScores | None = None
    divergence: tuple[Divergence, ...] | None = None

    @property
    def contexts(self) -> NDArray[np.int64]:
        """For each decoded or scored token, the number of tokens before it, which the step that decides it sees."""
        if self.answers is not None:
            pairs = zip(self.work.questions, self.answers.answers, strict=True)
            spans = [(len(q.prompt), len(q.prompt) + len(a.tokens)) for q, a in pairs]
        else:
            spans = [(text.given, len(text.tokens)) for text in self.work.texts]
        return np.concatenate([np.arange(begin, end) for begin, end in spans])

    @property
    def tokens(self) -> int:
        """Number of tokens generated, or read to score texts."""
        return sum(len(text.tokens) - 1 for text in self.work.texts) if self.answers is None else self.answers.tokens

    @property
    def seconds(self) -> float:
        """Seconds that it took, without loading and without the comparison with the reference."""
        measured = self.answers or self.text_scores
        assert measured is not None
        return measured.seconds


def prepare(task: Task, candidates: Sequence[Candidate]) -> list[Work]:
    """Return the work of each engine, after checking all of it, so that nothing fails after hours.

    Raises:
        RequestError: an engine cannot take the task.
    """
    for candidate in candidates:
        most = candidate.manifest.limits.max_batch
        if task.max_batch is not None and task.max_batch > most:
            raise RequestError(
                f"--max-batch: got {task.max_batch}, expected at most {most}, the limit of {candidate.root}"
            )
    context = min(candidate.manifest.limits.max_context for candidate in candidates)
    if task.data is not None:
        window = context if task.window is None else task.window
        if window > context:
            raise RequestError(f"--window: got {window}, expected at most {context}, the smallest context")
        documents = read_documents(Path(task.data))
        texts = [document_texts(candidate, documents, task.data, window) for candidate in candidates]
        return [Work(texts=tuple(own[: task.limit])) for own in texts]
    problems = pick_problems(task)
    posed = [tuple(make_questions(candidate, problems, context)) for candidate in candidates]
    if task.asked:
        return [Work(questions=questions) for questions in posed]
    return [Work(questions=questions, texts=tuple(solution_texts(questions))) for questions in posed]


def run(task: Task, candidates: Sequence[Candidate], works: Sequence[Work], *, reference: bool) -> Iterator[Score]:
    """Yield the score of each engine; the engines are loaded one after another.

    reference: whether the first engine is the reference, which stays loaded while the others are compared with it.
    """
    pairs = list(zip(candidates, works, strict=True))
    with ExitStack() as kept:
        loaded_reference: LoadedReference | None = None
        if reference:
            candidate, work = pairs.pop(0)
            llm = kept.enter_context(_load(task, candidate))
            score = _measure(task, llm, candidate, work, None)
            yield score
            own = answer_texts(work.questions, score.answers) if score.answers else work.texts
            loaded_reference = LoadedReference(llm, tuple(own))
        for candidate, work in pairs:
            with _load(task, candidate) as llm:
                score = _measure(task, llm, candidate, work, loaded_reference)
            del llm  # frees the engine before the next is loaded
            yield score


class LoadedReference(NamedTuple):
    """The reference engine, loaded; created by `run`.

    llm: the engine.
    texts: the texts on which the other engines are compared with it.
    """

    llm: LLM
    texts: tuple[Text, ...]


def _load(task: Task, candidate: Candidate) -> LLM:
    return load(  # its files were verified when it was opened
        candidate.root, task.threads, max_batch=task.max_batch, verify=False, backend=task.backend
    )


def _measure(task: Task, llm: LLM, candidate: Candidate, work: Work, loaded_reference: LoadedReference | None) -> Score:
    label = candidate.name
    return Score(
        candidate=candidate,
        work=work,
        answers=ask(llm, work.questions, label) if task.asked else None,
        text_scores=None if task.asked else score_texts(llm, work.texts, label),
        divergence=loaded_reference
        and tuple(diverge(loaded_reference.llm, llm, loaded_reference.texts, f"{label} against the reference")),
    )
