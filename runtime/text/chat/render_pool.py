"""Processes that render chat templates, started when they are first needed, and shared by all engines of this process."""

from __future__ import annotations

import atexit
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.chat import wire
from enginewright.runtime.text.chat.render_limits import ADDRESS_SPACE, CORE_SECONDS, START_SECONDS, WAIT_SECONDS

PROGRAM = "enginewright.runtime.text.chat.render_process"
_MOST, _IDLE = 4, 2  # processes that render at once, and those that stay when they have nothing to do


class RenderProcess:
    """A process of PROGRAM; created by a RenderPool. Used by one thread at a time.

    Raises:
        RequestError: it cannot be started.
    """

    def __init__(self) -> None:
        paths = [str(Path(path).resolve()) for path in sys.path if path]
        command = [_interpreter(), "-P", "-m", PROGRAM]
        self._command = " ".join(command)
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                process_group=0,  # Ctrl-C is for the process that serves
            )
        except OSError as e:
            raise RequestError(
                f"chat: the process that renders templates cannot be started ({e}); pass a plain prompt, or allow it"
            ) from e
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        self._is_ready = False

    @property
    def is_alive(self) -> bool:
        """Whether it can take a request."""
        return self._process.poll() is None

    def ask(self, request: bytes) -> dict[str, Any] | None:
        """Return the answer to a packed request; None where the process ends without one, or takes longer than it may.

        Raises:
            RequestError: the process does not start.
        """
        if not self._is_ready:
            if self._receive(time.monotonic() + START_SECONDS) is None:
                raise RequestError(
                    f"chat: the process that renders templates does not start; try `{self._command}`, or pass a plain prompt"
                )
            self._is_ready = True
        try:
            self._send(request)
        except BrokenPipeError:
            return None
        return self._receive(time.monotonic() + WAIT_SECONDS)

    def end(self, patience: float = 0.0) -> int:
        """Wait for the end for `patience` seconds, then kill the process.

        Return its code or, below 0, the signal that ended it.
        """
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._requests.close()
        self._answers.close()
        return code

    def forget(self) -> None:
        """Close this process' ends of the pipes, in a fork: the process is the parent's."""
        self._requests.close()
        self._answers.close()
        self._process.returncode = 0  # nobody waits for it here

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """Return the next message; None where there is none before `deadline`, a time of `time.monotonic`."""

        def read(size: int) -> bytes:
            left = max(deadline - time.monotonic(), 0)
            return os.read(self._answers.fileno(), size) if self._poll.poll(left * 1000) else b""

        try:
            message: dict[str, Any] = wire.unpack(wire.receive(read))
        except EOFError:
            return None
        return message

    def _send(self, request: bytes) -> None:
        view = memoryview(request)
        while view:
            view = view[os.write(self._requests.fileno(), view) :]


class RenderPool:
    """Processes that render, each for one request at a time."""

    def __init__(self) -> None:
        self._idle: list[RenderProcess] = []
        self._room = threading.BoundedSemaphore(_MOST)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of a process, as PROGRAM gives it.

        Where the process is lost, the answer is {"kind": ..., "reason": ...}.

        Raises:
            RequestError: none can be started, or none is free for WAIT_SECONDS.
        """
        packed = wire.pack(request)
        if not self._room.acquire(timeout=WAIT_SECONDS):
            raise RequestError(
                f"chat: {_MOST} other templates took more than {WAIT_SECONDS:g} s; send the conversation again later"
            )
        try:
            process = self._take()
            try:
                answer = process.ask(packed)
            except BaseException:  # such as Ctrl-C: the answer may come later, and be taken for another's
                process.end()
                raise
            if answer is None:
                return _loss(process.end(patience=0.5))
            if answer.get("kind") == "MemoryError" or len(self._idle) >= _IDLE:
                process.end()
            else:
                self._idle.append(process)
            return answer
        finally:
            self._room.release()

    def close(self) -> None:
        """End the processes that have nothing to do."""
        while self._idle:
            self._idle.pop().end()

    def forget(self) -> None:
        """Close the pipes to processes that belong to the process from which this one was forked."""
        while self._idle:
            self._idle.pop().forget()

    def _take(self) -> RenderProcess:
        """Return a process that waits for a request."""
        while self._idle:
            try:
                process = self._idle.pop()
            except IndexError:  # another thread has taken it
                break
            if process.is_alive:
                return process
            process.end()
        return RenderProcess()


_pool = RenderPool()


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of one of this process' RenderPool."""
    return _pool.ask(request)


def _start_anew() -> None:
    """Give a fork a pool of its own: a process that renders for two would mix up their answers."""
    global _pool
    old, _pool = _pool, RenderPool()
    old.forget()


def _loss(code: int) -> dict[str, Any]:
    """Return the answer in place of the one that a process could not give."""
    if code == -signal.SIGPROF:
        return {"kind": "TimeoutError", "reason": f"it takes more than {CORE_SECONDS:g} s of a core"}
    if code == -signal.SIGKILL:
        return {
            "kind": "TimeoutError",
            "reason": f"it takes more than {WAIT_SECONDS:g} s, or all memory of this machine",
        }
    why = f"signal {-code}" if code < 0 else f"code {code}"
    most = ADDRESS_SPACE >> 20
    return {"kind": "MemoryError", "reason": f"its process, which may take {most} MiB, ended with {why}"}


def _interpreter() -> str:
    """Return a Python of this version: where Python is embedded, sys.executable may be another program."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    beside = Path(sys.exec_prefix) / "bin" / name
    if beside.is_file():
        return str(beside)
    return sys.executable or shutil.which(name) or name


os.register_at_fork(after_in_child=_start_anew)
atexit.register(lambda: _pool.close())
