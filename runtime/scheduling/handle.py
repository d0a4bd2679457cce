"""The handle of a submitted request, by which its owner reads tokens, waits or cancels."""

from __future__ import annotations

from collections.abc import Iterator

from enginewright.runtime.requests.completion import Completion, Token
from enginewright.runtime.requests.request import Generation, Request
from enginewright.runtime.scheduling.step_loop import StepLoop


class Handle:
    """A submitted request; created by `LLM.submit`. Any thread can iterate over its tokens, wait for it, or cancel it."""

    def __init__(self, owner: object, loop: StepLoop, request: Generation) -> None:
        self._owner = owner  # keeps the engine open
        self._loop = loop
        self._request = request

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self._request.done.is_set()

    def __iter__(self) -> Iterator[Token]:
        """Yield the tokens as they come; of several consumers, one gets each token."""
        if not self.done:
            self._loop.check_may_wait()
        while True:
            event = self._request.events.get()
            if isinstance(event, Token):
                yield event
                continue
            self._request.events.put(event)  # for other consumers that wait
            if isinstance(event, Exception):
                raise event
            return

    def result(self) -> Completion:
        """Wait for the end, and return the whole completion, whether or not its tokens were read."""
        wait_for(self._loop, self._request)
        assert self._request.completion is not None
        return self._request.completion

    def cancel(self) -> None:
        """End the request before the next step, which frees its row and its tiles."""
        self._loop.cancel(self._request)


def wait_for(loop: StepLoop, request: Request) -> None:
    """Wait for the end of `request`, and raise the error that ended it."""
    if not request.done.is_set():
        loop.check_may_wait()
    request.done.wait()
    if request.error is not None:
        raise request.error
