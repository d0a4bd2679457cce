"""The entries of an engine's conditions by name, and what a request chooses of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from enginewright.runtime.artifact.manifest import Condition
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.request import Request


class ConditionEntries:
    """The names of the entries that a loaded engine has, with their numbers; created by the LLM.

    Any thread may call it, but for `write`.
    """

    def __init__(self, conditions: Mapping[str, Condition]) -> None:
        self._conditions = conditions
        self._numbers = {
            name: {entry: i for i, entry in enumerate(each.entries, 1)} for name, each in conditions.items()
        }
        self._versions: dict[tuple[str, int], int] = {}  # how often an entry's values have been replaced

    def names(self, condition: str) -> tuple[str, ...]:
        """The entries of `condition`, in the order of their numbers."""
        return tuple(self._numbers[condition])

    def write(self, condition: str, entry: str, fill: Callable[[int], None]) -> None:
        """Let `fill(number)` write the values of `entry`, then let requests choose it.

        The number is the entry's own if it is known, else the next free one. To be called on the step loop's thread, between
        two steps: so no two entries get one number, and a request that is made from now on meets the new values alone.

        Raises:
            RequestError: the engine has no such condition, or no room for another entry.
        """
        numbers = self._of(condition)
        if entry not in numbers and len(numbers) == (most := self._conditions[condition].capacity):
            raise RequestError(
                f"condition {condition!r}: got a new entry {entry!r}, but the engine holds {most} ({', '.join(numbers)}); "
                "replace one of these, or build an engine with a larger capacity"
            )
        number = numbers.get(entry, len(numbers) + 1)
        self._versions[condition, number] = self._versions.get((condition, number), 0) + 1
        fill(number)
        numbers[entry] = number

    def apply(self, choices: Mapping[str, str | tuple[str, float]], request: Request) -> None:
        """Give `request` the entries that its Sampling names.

        Raises:
            RequestError: the engine has no such condition or entry, or the condition takes no scale.
        """
        chosen: dict[str, tuple[int, float]] = {}
        salt: list[tuple[str, int, int, float]] = []
        for name, choice in choices.items():
            entry, scale = choice if isinstance(choice, tuple) else (choice, 1.0)
            numbers = self._of(name)
            if entry not in numbers:
                known = ", ".join(numbers) or "none yet; add one by LLM.add_condition"
                raise RequestError(f"Sampling.conditions[{name!r}]: got {entry!r}, expected one of the entries {known}")
            if isinstance(choice, tuple) and not self._conditions[name].scaled:
                raise RequestError(
                    f"Sampling.conditions[{name!r}]: got a scale, and this condition has none; name the entry alone"
                )
            chosen[name] = numbers[entry], scale
            if self._conditions[name].applies == "all":
                salt.append((name, numbers[entry], self._versions.get((name, numbers[entry]), 0), scale))
            else:  # what it changes begins with the prompt's last token
                request.shareable = request.prompt_tokens - 1
        request.conditions = chosen
        request.prefix_salt = repr(sorted(salt)).encode() if salt else b""

    def _of(self, condition: str) -> dict[str, int]:
        if condition not in self._numbers:
            known = ", ".join(self._numbers) or "none"
            raise RequestError(f"Sampling.conditions: got {condition!r}, and the engine has the conditions {known}")
        return self._numbers[condition]
