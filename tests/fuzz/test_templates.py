"""Random chat templates: each gives a text or an error of the product, soon, and the next one is rendered."""

from __future__ import annotations

import resource
import time
from collections import Counter

from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.chat.template import ChatTemplate
from tests.support.fuzzing.figures import Figures
from tests.support.fuzzing.rounds import draws, rounds
from tests.support.paths import ROOT
from tests.support.runtime.random_templates import random_template

CORPUS = [path.read_text() for path in sorted((ROOT / "tests/runtime/text/chat/templates").glob("*.jinja"))]
MESSAGES = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "<b>sat</b> 世界\n"}]


def render(source: str) -> str:
    conversation = Conversation(messages=MESSAGES, add_generation_prompt=True)
    return ChatTemplate(source, {"bos_token": "<s>"}, where="t").render(conversation)


def test_random_templates_give_a_text_or_an_error_of_the_product(figures: Figures) -> None:
    render(CORPUS[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # compilers of other tests among them
    counts: Counter[str] = Counter()
    for seed in range(rounds(10)):
        source, start = random_template(draws(seed), CORPUS), time.monotonic()
        ending = "text"
        try:
            assert isinstance(render(source), str)
        except RequestError as error:
            assert str(error).startswith("t: "), (seed, error)
            ending = "error"
        taken = time.monotonic() - start
        counts[ending] += 1
        figures.note(source, taken, refused=ending == "error")
        assert taken < 20, seed  # of two renderings, one of which compiles alone
    assert counts.total() == rounds(10) and counts["text"] and counts["error"]
    assert render("{{ messages[0].content }}") == "the cat"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10, "KiB"
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(1 << 20, children), "KiB"
