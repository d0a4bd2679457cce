"""Seeded changes of valid files: of values of JSON, and of bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    0.5,
    -0.0,
    1e308,
    65_536,
    2**31 - 1,
    2**31,
    2**63,
    10**9,
    10**30,
    10**400,
    "",
    "x",
    "0",
    "\0",
    "../../etc",
    "{}",
    "a" * 500,
    [],
    {},
    [[]],
    [None],
    [0, 1, 2],
    {"": None},
    {"kind": "x"},
)
INSERTED = (
    b"[",
    b"{",
    b'"',
    b"9" * 5000,
    b"[" * 200,
    b"NaN",
    b"1e999",
    b"\\ud800",
    b"\xff",
    b"\x00",
    b",",
    b"-",
    b"null",
)


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every value within `value`, that of itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from places(child, (*path, key))


def at(value: Any, path: Path) -> Any:
    """Return the value at `path`."""
    for key in path:
        value = value[key]
    return value


def changed(value: Any, path: Path, to: Any) -> Any:
    """Return a copy of `value` with `to` at `path`."""
    made = copy.deepcopy(value)
    at(made, path[:-1])[path[-1]] = to
    return made


def change_json(rng: random.Random, value: Any) -> Any:
    """Return a copy of `value` with one change, seldom with more: of a type, of a size, a key less or more."""
    made = value
    for _ in range(1 if rng.random() < 0.8 else rng.randint(2, 4)):
        if not (known := list(places(made))):
            return made
        path = rng.choice(known)
        found = at(made, path)
        made = rng.choice((_replace, _replace, _delete, _scale, _swap, _add))(rng, made, path, found)
    return made


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return the content with some bytes turned, left out, put in or repeated."""
    made = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(made) + 1)
        kind = rng.randrange(5)
        if kind == 0 and place < len(made):
            made[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del made[place:]
        elif kind == 2:
            del made[place : place + rng.randint(1, 16)]
        elif kind == 3:
            made[place:place] = rng.choice(INSERTED)
        else:
            made[place:place] = made[place : place + rng.randint(1, 64)]
    return bytes(made)


def change_text(rng: random.Random, value: Any) -> bytes:
    """Return the text of a JSON value with a change, mostly one that leaves it JSON."""
    if rng.random() < 0.85:
        return json.dumps(change_json(rng, value)).encode()
    return change_bytes(rng, json.dumps(value).encode())


def _replace(rng: random.Random, value: Any, path: Path, found: Any) -> Any:
    return changed(value, path, rng.choice(VALUES))


def _delete(rng: random.Random, value: Any, path: Path, found: Any) -> Any:
    made = copy.deepcopy(value)
    del at(made, path[:-1])[path[-1]]
    return made


def _scale(rng: random.Random, value: Any, path: Path, found: Any) -> Any:
    if isinstance(found, list):
        return changed(value, path, found * rng.choice((0, 2, 50)))
    if isinstance(found, str):
        return changed(value, path, rng.choice((found + "x", found[1:], found.upper(), found * 50)))
    if isinstance(found, bool) or not isinstance(found, int | float):
        return _replace(rng, value, path, found)
    floating = float(found) if abs(found) < 2**1000 else 0.0  # larger whole numbers have none
    return changed(
        value, path, rng.choice((found + 1, found - 1, -found, found * 2, found * 2**20, found // 2, floating))
    )


def _swap(rng: random.Random, value: Any, path: Path, found: Any) -> Any:
    return changed(value, path, at(value, rng.choice(list(places(value)))))


def _add(rng: random.Random, value: Any, path: Path, found: Any) -> Any:
    if isinstance(found, dict):
        return changed(value, path, {**found, rng.choice(("x", "", *map(str, found))): rng.choice(VALUES)})
    if isinstance(found, list):
        return changed(value, path, [*found, rng.choice(VALUES)])
    return _replace(rng, value, path, found)
