"""Checkpoints for the tests of this folder, and a table of what their attempts took."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.exporters.fixtures import checkpoint
from tests.support.fuzzing import attempts
from tests.support.fuzzing.figures import HEADER, Figures

FEWEST = 10  # attempts of which figures are worth a line

__all__ = ["checkpoint", "figures", "pytest_terminal_summary"]


@pytest.fixture(autouse=True)
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """The figures of a test, to which `attempt` adds."""
    attempts.figures = Figures()
    yield attempts.figures
    if attempts.figures.attempts >= FEWEST:
        name = request.node.nodeid.rpartition("/")[2]
        request.node.user_properties.append(("fuzz", attempts.figures.row(name)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of all tests, those of other processes included, where ENGINEWRIGHT_FUZZ says how much to try."""
    reports = [r for reports in terminalreporter.stats.values() for r in reports if isinstance(r, pytest.TestReport)]
    rows = sorted({tuple(row) for r in reports for key, row in r.user_properties if key == "fuzz"})
    if not rows or "ENGINEWRIGHT_FUZZ" not in os.environ:
        return
    terminalreporter.section("fuzz: figures")
    for row in (HEADER, *rows):
        terminalreporter.write_line(" | ".join(str(value) for value in row))
