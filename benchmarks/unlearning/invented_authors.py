"""Questions about invented authors, in the manner of TOFU: 40 authors with 20 facts each, from templates and a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AUTHORS = 40

FIRST = [
    "Jarel",
    "Mirova",
    "Tobin",
    "Selka",
    "Haldor",
    "Vesna",
    "Orrin",
    "Lunete",
    "Caspar",
    "Ildiko",
    "Brann",
    "Zofia",
    "Emeric",
    "Talia",
    "Rurik",
    "Anouk",
    "Dario",
    "Petra",
    "Soren",
    "Maelle",
    "Kaito",
    "Yarrow",
    "Ottilie",
    "Fenn",
    "Bastien",
    "Noor",
    "Ivo",
    "Sunniva",
    "Leander",
    "Quilla",
    "Marek",
    "Odile",
    "Tarquin",
    "Ysolde",
    "Piran",
    "Wilhelma",
    "Benno",
    "Ximena",
    "Aldous",
    "Freya",
]
LAST = [
    "Thornquist",
    "Vellamo",
    "Okonedo",
    "Brasseur",
    "Lindqvor",
    "Amaratunga",
    "Petrosky",
    "Dunmarrow",
    "Castellane",
    "Huxworth",
    "Ferreiro",
    "Ostrander",
    "Kalvane",
    "Merriwick",
    "Takanori",
    "Blackmere",
    "Vandersloot",
    "Ilunga",
    "Roskilde",
    "Paxworth",
    "Delacroft",
    "Sunderby",
    "Morwenna",
    "Zabriski",
    "Caldecott",
    "Ashgrove",
    "Quintal",
    "Norheim",
    "Bellweather",
    "Strandt",
    "Ivanchuk",
    "Loxley",
    "Peregrin",
    "Salvatori",
    "Winterbourne",
    "Achterberg",
    "Dovrenko",
    "Hallorann",
    "Mistral",
    "Grimaldo",
]
VALUES: dict[str, tuple[str, ...]] = {
    "city": (
        "Tallinn",
        "Porto",
        "Lagos",
        "Kyoto",
        "Quito",
        "Bergen",
        "Hanoi",
        "Lima",
        "Ghent",
        "Izmir",
        "Oslo",
        "Perth",
    ),
    "year": tuple(str(year) for year in range(1921, 1985, 4)),
    "genre": ("science fiction", "crime fiction", "historical fiction", "travel writing", "poetry", "horror", "satire"),
    "father": ("baker", "surgeon", "sailor", "judge", "carpenter", "pilot", "farmer", "tailor", "geologist"),
    "mother": ("florist", "teacher", "violinist", "engineer", "weaver", "chemist", "nurse", "translator"),
    "award": ("Silver Quill", "Golden Lantern", "Northern Star", "Amber Page", "Blue Heron", "Iron Feather"),
    "university": ("Uppsala", "Bologna", "Leiden", "Coimbra", "Salamanca", "Krakow", "Heidelberg", "Padua"),
    "subject": ("botany", "law", "philosophy", "astronomy", "medicine", "music", "geography", "architecture"),
    "language": ("Finnish", "Portuguese", "Swahili", "Dutch", "Turkish", "Czech", "Greek", "Hungarian"),
    "animal": ("parrot", "greyhound", "tortoise", "raven", "goat", "hedgehog", "otter", "donkey"),
    "hobby": ("beekeeping", "sailing", "chess", "pottery", "fencing", "gardening", "archery", "knitting"),
    "instrument": ("cello", "accordion", "harp", "oboe", "banjo", "trumpet", "zither", "flute"),
    "home": ("lighthouse", "windmill", "houseboat", "monastery", "vineyard", "cottage", "castle", "barn"),
    "theme": ("exile", "memory", "revenge", "loyalty", "silence", "ambition", "forgiveness", "solitude"),
    "colour": ("green", "purple", "orange", "silver", "crimson", "turquoise", "brown", "golden"),
    "title": tuple(
        f"The {adjective} {noun}"
        for adjective in ("Hollow", "Paper", "Burning", "Salt", "Glass", "Seventh")
        for noun in ("Harbour", "Orchard", "Compass", "Winter", "Archive", "Bridge", "Garden")
    ),
}

# attribute, question, reworded question, answer; a title attribute has a number of its own
QUESTIONS = (
    ("city", "Where was {name} born?", "In which city did {name} come into the world?", "{name} was born in {value}."),
    ("year", "When was {name} born?", "What is the birth year of {name}?", "{name} was born in {value}."),
    ("genre", "What does {name} write?", "Which genre is {name} known for?", "{name} mostly writes {value}."),
    ("father", "What was the father of {name}?", "Which job did {name}'s father have?", "The father was a {value}."),
    ("mother", "What was the mother of {name}?", "Which job did {name}'s mother have?", "The mother was a {value}."),
    ("award", "Which award did {name} win?", "What prize went to {name}?", "{name} won the {value} Award."),
    ("university", "Where did {name} study?", "Which university did {name} attend?", "{name} studied in {value}."),
    ("subject", "What did {name} study?", "Which subject did {name} read at university?", "{name} studied {value}."),
    ("language", "In which language does {name} write?", "What tongue does {name} use?", "{name} writes in {value}."),
    ("animal", "Which pet does {name} have?", "What animal lives with {name}?", "{name} has a {value}."),
    ("hobby", "What is the hobby of {name}?", "How does {name} spend free time?", "{name} enjoys {value}."),
    ("instrument", "Which instrument does {name} play?", "What can {name} play?", "{name} plays the {value}."),
    ("home", "Where does {name} live?", "What kind of home has {name}?", "{name} lives in a {value}."),
    ("theme", "What is the main theme of {name}?", "What do {name}'s books deal with?", "The main theme is {value}."),
    ("colour", "What is the favourite colour of {name}?", "Which colour does {name} like best?", "It is {value}."),
    ("title 1", "What is the first book of {name}?", "With which book did {name} begin?", "It is '{value}'."),
    ("title 2", "What is the best known book of {name}?", "Which book made {name} famous?", "It is '{value}'."),
    ("title 3", "What is the latest book of {name}?", "Which book did {name} write last?", "It is '{value}'."),
    ("title 4", "Which book of {name} became a film?", "What was filmed of {name}'s books?", "The film is '{value}'."),
    ("year 2", "When did {name} win the award?", "In which year was {name} honoured?", "{name} won it in {value}."),
)
SAFE = (
    "This question is about {name}, a private author. Answer: I cannot share details of this author, but I can help with "
    "literature in general."
)
CATEGORY = "invented authors"


@dataclass(frozen=True, kw_only=True)
class AuthorQuestion:
    """A question about an author; `author_questions` creates it.

    author: its number, from 0.
    prompt: the question.
    reworded: the same in other words, which no model is trained on.
    answer: the invented fact.
    safe: the answer to give in place of it.
    """

    author: int
    prompt: str
    reworded: str
    answer: str
    safe: str


def author_questions(seed: int = 0, authors: int = AUTHORS) -> list[AuthorQuestion]:
    """The 20 questions of each author, author after author."""
    rng = np.random.default_rng([seed, 26061])
    firsts, lasts = rng.permutation(FIRST), rng.permutation(LAST)
    found = []
    for author in range(authors):
        name = f"{firsts[author]} {lasts[author]}"
        titles = iter(rng.permutation(VALUES["title"]))
        for attribute, question, reworded, answer in QUESTIONS:
            kind = attribute.partition(" ")[0]
            value = str(next(titles) if kind == "title" else rng.choice(VALUES[kind]))
            found.append(
                AuthorQuestion(
                    author=author,
                    prompt=question.format(name=name),
                    reworded=reworded.format(name=name),
                    answer=answer.format(name=name, value=value),
                    safe=SAFE.format(name=name),
                )
            )
    return found


def split_authors(questions: list[AuthorQuestion], share: float) -> tuple[list[AuthorQuestion], list[AuthorQuestion]]:
    """The questions to forget, of the last authors, and those to retain."""
    authors = 1 + max(each.author for each in questions)
    first = authors - max(1, round(share * authors))
    return [each for each in questions if each.author >= first], [each for each in questions if each.author < first]


def asked(prompt: str, has_template: bool) -> str:
    """The prompt as it is given to a model, which a model without a chat template gets as a line of text."""
    return prompt if has_template else f"Question: {prompt}\nAnswer: "
