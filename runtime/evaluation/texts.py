"""Token sequences to score: the worked solutions of problems, or windows of a data file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from enginewright.runtime.errors import RequestError
from enginewright.runtime.evaluation.answers import Answers
from enginewright.runtime.evaluation.candidates import Candidate
from enginewright.runtime.evaluation.documents import Document
from enginewright.runtime.evaluation.questions import Question


@dataclass(frozen=True, kw_only=True)
class Text:
    """A sequence of tokens, of which tokens[given:] are scored, each after all tokens before it.

    tokens: token ids.
    given: number of tokens at the beginning that are not scored, at least 1.
    size: bytes of the scored part in UTF-8.
    draw: number of the independent draw to which it belongs.
    """

    tokens: tuple[int, ...]
    given: int
    size: int
    draw: int

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return len(self.tokens) - self.given


def solution_texts(questions: Sequence[Question]) -> list[Text]:
    """Return the worked solutions to score, each after its question."""
    return [
        Text(
            tokens=(*question.prompt, *question.solution),
            given=len(question.prompt),
            size=len(question.problem.solution.encode()),
            draw=draw,
        )
        for draw, question in enumerate(questions)
    ]


def answer_texts(questions: Sequence[Question], answers: Answers) -> list[Text]:
    """Return an engine's own replies to score, each after its question."""
    return [
        Text(
            tokens=(*question.prompt, *answer.tokens),
            given=len(question.prompt),
            size=len(answer.reply.encode()),
            draw=draw,
        )
        for draw, (question, answer) in enumerate(zip(questions, answers.answers, strict=True))
    ]


def document_texts(candidate: Candidate, documents: Sequence[Document], path: str, window: int) -> list[Text]:
    """Return the documents in windows of `window` tokens, of which the first token is not scored.

    That token is the tokenizer's bos if it writes one, otherwise the last token of the window before. So without a bos, a
    document's first token is never scored. A document with a prompt is a single text. If there is only one document, its
    windows are the draws; otherwise the documents are.

    Raises:
        RequestError: a document is too short to score, or its prompt leaves no room for its completion.
    """
    texts: list[Text] = []
    for draw, document in enumerate(documents):
        where = f"{path}: line {document.line}"
        windows = (_completion if document.prompt else _windows)(candidate, document, where, window)
        texts += [Text(tokens=w.tokens, given=w.given, size=w.size, draw=draw) for w in windows]
    if len(documents) == 1:
        texts = [Text(tokens=t.tokens, given=t.given, size=t.size, draw=i) for i, t in enumerate(texts)]
    return texts


def _windows(candidate: Candidate, document: Document, where: str, window: int) -> list[Text]:
    encoding = candidate.encode(document.text, where)
    ids, begins = encoding.ids, _byte_offsets(document.text, [begin for begin, _ in encoding.offsets])
    bos = candidate.bos
    first = 0 if bos is not None else 1
    if len(ids) <= first:
        raise RequestError(f"{where}: got a text of {len(ids)} tokens, expected at least {first + 1}")
    edges = [*range(first, len(ids), window - 1), len(ids)]
    return [
        Text(
            tokens=(bos if bos is not None else ids[begin - 1], *ids[begin:end]),
            given=1,
            size=begins[end] - begins[begin],
            draw=0,
        )
        for begin, end in pairwise(edges)
    ]


def _completion(candidate: Candidate, document: Document, where: str, window: int) -> list[Text]:
    """Return the completion after its prompt as one text; both are encoded together, as in real use."""
    encoding = candidate.encode(document.prompt + document.text, where)
    bos = candidate.bos
    ids = encoding.ids if bos is None else [bos, *encoding.ids]
    given = len(candidate.encode(document.prompt, where).ids) + (bos is not None)
    if not 0 < given < len(ids):
        raise RequestError(
            f"{where}: got {given} tokens of prompt in {len(ids)} of both, expected at least one of each"
        )
    if len(ids) > window:
        raise RequestError(f"{where}: got {len(ids)} tokens of prompt and completion, expected at most {window}")
    return [Text(tokens=tuple(ids), given=given, size=len(document.text.encode()), draw=0)]


def _byte_offsets(text: str, begins: Sequence[int]) -> list[int]:
    """Return the byte offset of each character offset in `begins`, and at the end the length in bytes."""
    lengths = [0, *accumulate(len(character.encode()) for character in text)]
    return [*(lengths[begin] for begin in begins), lengths[-1]]
