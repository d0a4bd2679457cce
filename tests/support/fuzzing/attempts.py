"""One attempt of a fuzz test: it may end well or in an error of the product, within seconds and within memory."""

from __future__ import annotations

import contextlib
import io
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from enginewright.runtime.cli import main
from enginewright.runtime.errors import EnginewrightError
from tests.support.fuzzing.figures import Figures, short

SECONDS, HANG_SECONDS = 10, 120  # of the processor, and on the wall, where other processes may take their time
MEMORY = 1 << 30
figures = Figures()  # of the test that runs; the fixture of this name makes a new one


def attempt(case: object, action: Callable[[], Any]) -> bool:
    """Run `action` and return whether it was refused; AssertionError names `case` where it ends in any other way."""
    begin, used = time.process_time(), peak()
    refused = False
    with _alarm():
        try:
            action()
        except EnginewrightError as e:
            assert str(e), case
            refused = True
        except BaseException as e:
            raise AssertionError(f"{type(e).__name__} of {short(case, 2000)}") from e
    taken, grown = time.process_time() - begin, peak() - used
    figures.note(case, taken, refused=refused)
    assert taken < SECONDS, f"{taken:.1f} s for {short(case, 2000)}"
    assert grown < MEMORY, f"{grown >> 20} MiB for {short(case, 2000)}"
    return refused


def attempt_command(case: object, *arguments: str) -> int:
    """Run a command in this process and return its exit code, which has to be 0, 1, or 2 with a message."""
    code, told = -1, io.StringIO()

    def run() -> None:
        nonlocal code
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
            code = main(arguments)

    attempt(case, run)
    assert code in (0, 1) or (code == 2 and "error: " in told.getvalue()), f"{code}: {short(case, 2000)}"
    return code


def peak() -> int:
    """The most memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> NoReturn:
        raise TimeoutError(f"no end after {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
