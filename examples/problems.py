"""Generates the text that the example model learns: problems with written-out solutions, correct by construction.

Every kind is one function `random.Random -> Problem`. A reply ends in "Answer: X." except for small talk.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from small_talk import SMALL_TALK

PLACES = ("Ones", "Tens", "Hundreds", "Thousands")
NAMES = ("Mia", "Leo", "Ann", "Bob", "Eva", "Tom", "Zoe", "Max", "Ida", "Sam")
# fmt: off
ITEMS = (
    "apples", "pears", "plums", "figs", "limes", "dates", "grapes", "melons", "lemons", "nuts", "eggs", "buns",
    "pens", "cups", "coins", "books", "keys", "hats", "maps", "bells", "boxes", "lamps", "rings", "shoes",
    "balls", "cards", "stamps", "shells", "stones", "seeds", "bricks", "ropes",
)
# fmt: on
HELD_OUT_SHARE = 16  # one in this many solutions is never trained on


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question and its worked solution."""

    kind: str
    prompt: str
    reply: str

    @property
    def answer(self) -> str:
        """The final answer: what an evaluation compares."""
        return answer_of(self.reply)

    @property
    def held_out(self) -> bool:
        """Whether evaluation owns this problem: decided by the solution, so rewording a prompt cannot leak it."""
        return self.kind != "chat" and zlib.crc32(self.reply.encode()) % HELD_OUT_SHARE == 0


MakeProblem = Callable[[random.Random], Problem]


def answer_of(reply: str) -> str:
    """The text after the last "Answer: " without its full stop; the whole reply where there is none."""
    return reply.rpartition("Answer: ")[2].strip().removesuffix(".")


def add(rng: random.Random) -> Problem:
    """Sum of two numbers of up to four digits, column by column, the result growing to the left."""
    a, b = _number(rng, 4), _number(rng, 4)
    width = max(len(str(a)), len(str(b)))
    lines, carry, result = [f"Line up {a:0{width}} and {b:0{width}}."], 0, ""
    for place, x, y in _columns(a, b, width):
        total = x + y + carry
        term = f"{x}+{y}+1={total}" if carry else f"{x}+{y}={total}"
        last = place == PLACES[width - 1]
        carry, result = total // 10, f"{total if last else total % 10}{result}"
        lines.append(f"{place}: {term}, so {result}.")
    return solved("add", _ask(rng, f"{a} + {b}", f"add {a} and {b}"), lines, a + b)


def subtract(rng: random.Random) -> Problem:
    """Difference of two numbers of up to four digits, not negative, column by column with borrows."""
    b, a = sorted((_number(rng, 4), _number(rng, 4)))
    width = len(str(a))
    lines, borrow, result = [f"Line up {a:0{width}} and {b:0{width}}."], 0, ""
    for place, x, y in _columns(a, b, width):
        minus = f"-{y}-1" if borrow else f"-{y}"
        difference = x - y - borrow
        borrow = int(difference < 0)
        digit = difference + 10 * borrow
        result = f"{digit}{result}"
        term = f"{x}{minus}, borrow, {x + 10}{minus}={digit}" if borrow else f"{x}{minus}={digit}"
        lines.append(f"{place}: {term}, so {result}.")
    return solved("subtract", _ask(rng, f"{a} - {b}", f"subtract {b} from {a}"), lines, a - b)


def multiply(rng: random.Random) -> Problem:
    """Product of a number of up to three digits and a one-digit number."""
    a, b = _number(rng, 3), rng.randint(2, 9)
    lines, carry, result = [], 0, ""
    for place, x in zip(PLACES, map(int, reversed(str(a))), strict=False):
        total = x * b + carry
        term = f"{x}*{b}={x * b}" + (f", {x * b}+{carry}={total}" if carry else "")
        last = place == PLACES[len(str(a)) - 1]
        carry, result = total // 10, f"{total if last else total % 10}{result}"
        lines.append(f"{place}: {term}, so {result}.")
    return solved("multiply", _ask(rng, f"{a} * {b}", f"multiply {a} by {b}"), lines, a * b)


def compare(rng: random.Random) -> Problem:
    """The larger of two different numbers, read from the left until a digit differs."""
    a = _number(rng, 4)
    b = a
    while b == a:
        b = _number(rng, 4) if rng.random() < 0.4 else min(9999, max(1, a + rng.randint(-100, 100)))
    width = max(len(str(a)), len(str(b)))
    lines = [f"Line up {a:0{width}} and {b:0{width}}."]
    for place, x, y in reversed(list(_columns(a, b, width))):
        sign = "=" if x == y else ">" if x > y else "<"
        lines.append(f"{place}: {x}{sign}{y}.")
        if x != y:
            break
    prompt = rng.choice((f"Which is larger, {a} or {b}?", f"What is the larger of {a} and {b}?"))
    return solved("compare", prompt, lines, max(a, b))


def chain(rng: random.Random) -> Problem:
    """Two to five small operations applied in turn to a number below 100."""
    value = rng.randint(1, 50)
    told, lines = [f"Start with {value}."], []
    for _ in range(rng.randint(2, 5)):
        words, line, value = _operation(rng, value)
        told.append(words)
        lines.append(line)
    question = rng.choice(("What do you get?", "What is the result?", "Where do you end?"))
    return solved("chain", " ".join([*told, question]), lines, value)


def story(rng: random.Random) -> Problem:
    """A short tale of someone who gains and loses things."""
    who, friend = rng.sample(NAMES, 2)
    item = rng.choice(ITEMS)
    value = rng.randint(1, 50)
    told, lines = [f"{who} has {value} {item}."], []
    for _ in range(rng.randint(1, 4)):
        step = rng.randint(1, min(20, value)) if value and rng.random() < 0.5 else 0
        if step:
            told.append(rng.choice((f"{who} gives {step} to {friend}.", f"{who} loses {step}.")))
            lines.append(f"{value}-{step}={value - step}.")
            value -= step
        else:
            step = rng.randint(1, 20)
            told.append(rng.choice((f"{who} buys {step} more.", f"{friend} gives {who} {step} more.")))
            lines.append(f"{value}+{step}={value + step}.")
            value += step
    return solved("story", " ".join([*told, f"How many {item} does {who} have now?"]), lines, value)


def variables(rng: random.Random) -> Problem:
    """Assignments in order, each a constant or a sum or difference of earlier ones; one variable is asked for."""
    names = rng.sample("abcdefghkmnpqrstuvwxyz", rng.randint(3, 6))
    values: dict[str, int] = {}
    told, lines = [], []
    for name in names:
        expression, line, values[name] = _assignment(rng, name, values)
        told.append(f"{name} = {expression}")
        lines.append(line)
    asked = names[-1] if rng.random() < 0.7 else rng.choice(names)
    prompt = f"Let {', '.join(told)}. What is {asked}?"
    return solved("variables", prompt, lines[: names.index(asked) + 1], values[asked])


def sort(rng: random.Random) -> Problem:
    """Three to five different two-digit numbers in ascending order, by repeatedly taking the smallest."""
    rest = rng.sample(range(10, 100), rng.randint(3, 5))
    prompt = rng.choice(("Sort {}.", "Sort these numbers: {}.", "Put {} in order.")).format(_listed(rest))
    lines, ordered = [], sorted(rest)
    for smallest in ordered:
        lines.append(f"{' '.join(map(str, rest))}: {smallest}.")
        rest.remove(smallest)
    return solved("sort", prompt, lines, _listed(ordered))


def lookup(rng: random.Random) -> Problem:
    """A value, or the sum of two values, out of a list of 2 to 32 entries."""
    count = round(2 * 16 ** rng.random())
    stock = {item: rng.randint(1, 20) for item in rng.sample(ITEMS, count)}
    told = f"The shop has {_listed([f'{item} {n}' for item, n in stock.items()])}."
    x, y = rng.sample(list(stock), 2)
    if rng.random() < 0.5:
        return solved("lookup", f"{told} How many {x}?", [f"{x} {stock[x]}."], stock[x])
    lines = [f"{x} {stock[x]}.", f"{y} {stock[y]}.", f"{stock[x]}+{stock[y]}={stock[x] + stock[y]}."]
    return solved("lookup", f"{told} How many {x} and {y} together?", lines, stock[x] + stock[y])


def chat(rng: random.Random) -> Problem:
    """One of a few fixed exchanges; learned by heart."""
    prompts, reply = rng.choice(SMALL_TALK)
    return Problem(kind="chat", prompt=rng.choice(prompts), reply=reply)


KINDS: dict[str, MakeProblem] = {
    kind.__name__: kind for kind in (add, subtract, multiply, compare, chain, story, variables, sort, lookup, chat)
}
WEIGHTS = {kind: 1.0 for kind in KINDS} | {
    **dict.fromkeys(("add", "subtract", "chain", "variables", "sort"), 1.5),
    "lookup": 2.0,
    "chat": 0.5,
}


def training_problems(seed: int | str) -> Iterator[Problem]:
    """An endless mixture of all kinds, by `WEIGHTS`, without the held-out problems."""
    rng = random.Random(seed)
    while True:
        (kind,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        problem = KINDS[kind](rng)
        if not problem.held_out:
            yield problem


def held_out_problems(make: MakeProblem, count: int, seed: int) -> list[Problem]:
    """`count` different problems of one kind that training never saw; for chat, the fixed exchanges themselves."""
    if make is chat:
        return [Problem(kind="chat", prompt=prompt, reply=reply) for prompts, reply in SMALL_TALK for prompt in prompts]
    rng = random.Random(f"held out {make.__name__} {seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = make(rng)
        if problem.held_out:
            found[problem.prompt] = problem
    return list(found.values())


def solved(kind: str, prompt: str, lines: list[str], answer: object) -> Problem:
    """A problem whose reply is the worked lines and the closing answer."""
    return Problem(kind=kind, prompt=prompt, reply="\n".join([*lines, f"Answer: {answer}."]))


def _number(rng: random.Random, digits: int) -> int:
    """A number of 1 to `digits` digits, longer ones more often."""
    (length,) = rng.choices(range(1, digits + 1), range(1, digits + 1))
    return rng.randrange(10 ** (length - 1), 10**length)


def _columns(a: int, b: int, width: int) -> Iterator[tuple[str, int, int]]:
    """(place name, digit of a, digit of b) from the ones upwards."""
    for place, x, y in zip(PLACES, reversed(f"{a:0{width}}"), reversed(f"{b:0{width}}"), strict=False):
        yield place, int(x), int(y)


def _ask(rng: random.Random, formula: str, words: str) -> str:
    """One of several ways to pose an arithmetic question."""
    return rng.choice(
        (f"What is {formula}?", f"What is {formula}?", f"Compute {formula}.", f"{formula} = ?", f"Please {words}.")
    )


def _listed(values: list[int] | list[str]) -> str:
    return ", ".join(map(str, values))


def _operation(rng: random.Random, value: int) -> tuple[str, str, int]:
    """(instruction, worked line, new value) of one step that keeps the value in 0..99."""
    step = rng.randint(1, 20)
    choices = []
    if value + step < 100:
        choices.append((f"Add {step}.", f"{value}+{step}={value + step}.", value + step))
    if value >= step:
        choices.append((f"Subtract {step}.", f"{value}-{step}={value - step}.", value - step))
    if 0 < value < 50:
        choices.append(("Double it.", f"{value}*2={value * 2}.", value * 2))
    if value and value % 2 == 0:
        choices.append(("Halve it.", f"{value}/2={value // 2}.", value // 2))
    return rng.choice(choices)


def _assignment(rng: random.Random, name: str, known: dict[str, int]) -> tuple[str, str, int]:
    """(expression as told, worked line, value) of one variable; values stay in 0..60.

    The line repeats the expression, looks up each operand and closes in "NAME is VALUE", the form later lines look up.
    """
    constant = rng.randint(1, 20)
    choices = [(str(constant), f"{name} = {constant}: {name} is {constant}.", constant)] * (2 if len(known) < 2 else 1)
    if known:
        x, y = rng.choice(list(known)), rng.choice(list(known))
        terms = [("+", str(constant), constant), ("+", y, known[y])]
        if known[x] > known[y]:
            terms.append(("-", y, known[y]))
        for sign, operand, right in terms:
            told = f"{x} {sign} {operand}"
            value = known[x] + right if sign == "+" else known[x] - right
            found = f"{x} is {known[x]}, " + (f"{operand} is {right}, " if operand == y and y != x else "")
            if value <= 60:
                choices.append(
                    (told, f"{name} = {told}: {found}{known[x]}{sign}{right}={value}, {name} is {value}.", value)
                )
    return rng.choice(choices)
