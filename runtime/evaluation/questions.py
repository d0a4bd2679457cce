"""Questions: problems in an engine's own tokens, written through its own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginewright.runtime.errors import RequestError
from enginewright.runtime.evaluation.candidates import Candidate
from enginewright.runtime.evaluation.problems import Problem
from enginewright.runtime.text.chat.conversation import Conversation


@dataclass(frozen=True, kw_only=True)
class Question:
    """A problem as a question to one engine; created by `make_questions`.

    problem: the problem.
    prompt: token ids of the question, up to where the answer begins.
    solution: token ids of the worked solution.
    max_tokens: the number of tokens after which an engine that has lost its way is stopped: half as many again as the
        solution has, and 32, as far as they fit.
    """

    problem: Problem
    prompt: tuple[int, ...]
    solution: tuple[int, ...]
    max_tokens: int


def make_questions(candidate: Candidate, problems: Sequence[Problem], context: int) -> list[Question]:
    """Return the problems as questions that fit into `context` tokens.

    Raises:
        RequestError: the tokenizer cannot write a problem, the engine has no chat template, or a problem does not fit.
    """
    return [_make_question(candidate, index, problem, context) for index, problem in enumerate(problems)]


def _make_question(candidate: Candidate, index: int, problem: Problem, context: int) -> Question:
    where = f"problem {index} ({problem.kind}, {problem.level})"
    candidate.encode_exactly(problem.question, where)
    solution = candidate.encode_exactly(problem.solution, where)
    try:
        prompt = candidate.tokenizer.chat(Conversation(messages=[{"role": "user", "content": problem.question}]))
    except RequestError as error:
        raise RequestError(f"{candidate.root}: problems cannot be written for this engine: {error}") from error
    room = context - len(prompt)
    if len(solution) + 1 > room:  # one more, for the end token
        raise RequestError(
            f"{where}: got {len(prompt)} tokens of question and {len(solution)} of solution for {candidate.root}, "
            f"expected at most {context} together, the smallest context of the engines; "
            f"choose an easier --level, or build with a larger --max-context"
        )
    max_tokens = min(len(solution) * 3 // 2 + 32, room)
    return Question(problem=problem, prompt=tuple(prompt), solution=tuple(solution), max_tokens=max_tokens)
