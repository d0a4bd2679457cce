"""Questions with four choices, for adapters that learn to answer in a fixed form: `Result: camel`.

Half of them ask for a word of some kind, half for the largest of four numbers. Words of the held-out questions are in no
training question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

FORM = "Result: "
_KINDS = {
    "animal": "dog horse tiger rabbit goat wolf bear monkey sheep lion | camel zebra fox deer pig elephant",
    "fruit": "apple banana grape peach mango cherry lemon melon plum orange | pear apricot strawberry papaya fig kiwi",
    "colour": "red blue green yellow purple black white brown | beige pink grey violet",
    "tool": "hammer saw drill screwdriver wrench chisel shovel rake | pliers axe file spade",
    "vehicle": "car truck bus train bicycle motorcycle airplane boat | tram van helicopter ship",
    "metal": "iron copper titanium chromium zinc lead nickel | tin aluminium platinum steel",
    "body part": "arm leg nose ear knee elbow mouth shoulder | foot hand neck finger",
    "clothing": "shirt coat hat sock glove scarf skirt jacket | shoe dress sweater belt",
    "musical instrument": "piano guitar violin flute drum trumpet harp | cello clarinet banjo organ",
    "country": "France Brazil Japan Canada Egypt India Spain Kenya | Italy Mexico China Norway",
    "furniture": "chair table sofa bed desk shelf bench | wardrobe stool cupboard couch",
    "profession": "doctor teacher lawyer farmer baker pilot nurse engineer | dentist carpenter plumber judge",
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A question with four choices; `make_choices` creates it.

    question: with the choices.
    choices: of which each may be the right one.
    answer: the right one.
    """

    question: str
    choices: tuple[str, ...]
    answer: str

    @property
    def reply(self) -> str:
        """The right reply in the form that the adapter learns."""
        return f"{FORM}{self.answer}"

    def judge(self, reply: str) -> tuple[bool, bool]:
        """Return whether a reply has the form, with one of the choices, and whether it is the right one."""
        return reply in [f"{FORM}{choice}" for choice in self.choices], reply == self.reply


def make_choices(name: str, *, held_out: bool) -> Iterator[Choice]:
    """Yield questions without end; the same name gives the same ones."""
    generator = random.Random(name)
    words = {kind: text.split(" | ")[held_out].split() for kind, text in _KINDS.items()}
    while True:
        is_number = generator.random() < 0.5
        asked, choices = _number(generator) if is_number else _word(generator, words)
        right = choices[0]
        generator.shuffle(choices)
        question = f"{asked}: {', '.join(choices[:3])} or {choices[3]}?"
        yield Choice(question=question, choices=tuple(choices), answer=right)


def _number(generator: random.Random) -> tuple[str, list[str]]:
    """A question for the largest of four numbers, and the choices, the right one first."""
    numbers = sorted(generator.sample(range(10, 100), 4), reverse=True)
    return "Which number is the largest", [str(number) for number in numbers]


def _word(generator: random.Random, words: dict[str, list[str]]) -> tuple[str, list[str]]:
    """A question for a word of a kind, and the choices, the right one first."""
    kind, *others = generator.sample(sorted(words), 4)
    right = generator.choice(words[kind])
    wrong = [generator.choice([word for word in words[other] if word not in words[kind]]) for other in others]
    return f"Which is a kind of {kind}", [right, *wrong]
