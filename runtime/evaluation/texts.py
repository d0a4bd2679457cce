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
    """tokens[given:] are scored, each given all before it; at least one is given.

    size: of what is scored, in bytes of UTF-8. draw: which of the independent draws it belongs to.
    """

    tokens: tuple[int, ...]
    given: int
    size: int
    draw: int

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.tokens) - self.given


def solution_texts(questions: Sequence[Question]) -> list[Text]:
    """Return the worked solutions, given their questions."""
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
    """Return an engine's own replies, given their questions."""
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
    """Return the documents in windows of `window` tokens, of which the first is given.

    The given token is the tokenizer's bos where it writes one, else the last of the window before; without a bos, a
    document's first token is scored nowhere. Windows of the only document are the draws, else documents are.

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
    """Return one text: the completion given its prompt, both encoded as one text, as they would be met."""
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
    """Return the byte at which each character offset lies, and the length in bytes."""
    lengths = [0, *accumulate(len(character.encode()) for character in text)]
    return [*(lengths[begin] for begin in begins), lengths[-1]]
