"""Tests of stop strings in a text that comes in pieces: they are found wherever the pieces break."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.runtime.text.stop_strings import StopStrings


@given(st.text("abx", max_size=30), st.lists(st.text("abx", min_size=1, max_size=4), max_size=3), st.data())
@settings(max_examples=200, deadline=None)
def test_stop_strings_cut_wherever_the_pieces_break(text: str, stops: list[str], data: st.DataObject) -> None:
    matcher, shown, found, rest = StopStrings(stops), "", False, text
    ends = [0]
    while rest and not found:
        length = data.draw(st.integers(0, 4))
        piece, found = matcher.push(rest[:length])
        rest, shown = rest[length:], shown + piece
        ends.append(ends[-1] + length)
    shown += "" if found else matcher.flush()
    # the first stop to be complete decides; among those complete with the same piece, the earliest start
    complete = [end for end in ends if any(stop in text[:end] for stop in stops)]
    assert found == bool(complete)
    seen = text[: complete[0]] if complete else text
    assert shown == (seen[: min(seen.find(s) for s in stops if s in seen)] if complete else text)


def test_a_partial_match_is_held_back_and_released() -> None:
    matcher = StopStrings(["worse"])
    assert [matcher.push(piece) for piece in ("hello w", "or", "ld")] == [
        ("hello ", False),
        ("", False),
        ("world", False),
    ]
    assert matcher.push("wor") == ("", False)
    assert matcher.flush() == "wor"


def test_no_stop_strings_hold_nothing_back() -> None:
    assert StopStrings(()).push("text") == ("text", False)
