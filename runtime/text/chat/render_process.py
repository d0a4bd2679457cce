"""The program of a process that renders chat templates under limits; `render_pool` starts it.

A template is a program that anyone may have written, and a single expression of it can ask for more time or memory than
there is. Inside Python nothing bounds that: an operation of the interpreter cannot be interrupted. The operating system bounds
a process, so templates run in one that can be lost.
"""

from __future__ import annotations

import os
import resource
import signal
from datetime import datetime
from functools import partial
from typing import Any

from enginewright.runtime.text.chat import wire
from enginewright.runtime.text.chat.environment import compile_template
from enginewright.runtime.text.chat.render_limits import ADDRESS_SPACE, CORE_SECONDS, FREE_CHARACTERS, PER_BYTE

_LONGEST_REASON = 2000


def main() -> None:
    """Say on standard output that the process is ready, and answer each request on standard input, until that ends."""
    answers = os.dup(1)
    os.dup2(2, 1)
    _set_limits()
    _write(answers, wire.pack({"ready": True}))
    while True:
        try:
            request = wire.receive(partial(os.read, 0))
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, CORE_SECONDS)
        answer = _answer(request)
        _write(answers, wire.pack(answer))
        signal.setitimer(signal.ITIMER_PROF, 0)


def _set_limits() -> None:
    """Bound what the process can take, and let the timer kill it within any operation."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    for limit, value in (
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # pipes are no files
    ):
        _, most = resource.getrlimit(limit)
        allowed = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (allowed, allowed))


def _answer(packed: bytes) -> dict[str, Any]:
    """Return {"reads": ...} or {"text": ...}, or {"stage": ..., "kind": ..., "reason": ...} of what a template raises."""
    stage = "compile"
    try:
        request = wire.unpack(packed)
        compiled = compile_template(request["source"])
        if "values" not in request:
            return {"reads": sorted(compiled.reads)}
        stage = "render"
        text = compiled.render(request["values"], datetime.fromisoformat(request["now"]))
        limit = FREE_CHARACTERS + PER_BYTE * len(packed)
        if len(text) > limit:
            return _failure(stage, "OverflowError", f"it writes {len(text)} characters, more than {limit}")
        return {"text": text}
    except MemoryError:
        return _failure(stage, "MemoryError", f"it takes more than {ADDRESS_SPACE >> 20} MiB")
    except Exception as e:  # of any kind, those of Python's compiler, recursion and memory among them
        return _failure(stage, type(e).__name__, e)


def _failure(stage: str, kind: str, reason: object) -> dict[str, Any]:
    try:
        shown = str(reason)[:_LONGEST_REASON]
    except Exception:  # of any kind: the message may hold a value that cannot be written
        shown = "without a message"
    return {"stage": stage, "kind": kind, "reason": shown}


def _write(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


if __name__ == "__main__":
    main()
    os._exit(0)  # nothing is left to clean up
