"""The entries of an engine's conditions by name, and what a request chooses of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from weakref import WeakSet

from enginewright.runtime.artifact.manifest import Condition
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.request import Request
from enginewright.runtime.requests.sampling import Sampling

Choices = Mapping[str, str | tuple[str, float]]


class ConditionEntries:
    """The names of the entries that a loaded engine has, with their numbers; created by the ConditionStore.

    Any thread may call it, but for `write` and `drop`.
    """

    def __init__(self, conditions: Mapping[str, Condition]) -> None:
        self._conditions = conditions
        self._numbers = {
            name: {entry: i for i, entry in enumerate(each.entries, 1)} for name, each in conditions.items()
        }
        self._versions: dict[tuple[str, int], int] = {}  # how often an entry's values have been replaced
        self._users: WeakSet[Request] = WeakSet()  # requests that have chosen something; they may have ended
        self._lock = threading.Lock()  # so that no request chooses an entry while it is dropped

    def names(self, condition: str) -> tuple[str, ...]:
        """The entries of `condition`, in the order in which they came."""
        return tuple(self._of(condition))

    def write(self, condition: str, entry: str, fill: Callable[[int], None]) -> None:
        """Let `fill(number)` write the values of `entry`, then let requests choose it.

        The number is the entry's own if it is known, else the lowest free one. To be called on the step loop's thread, between
        two steps: so no two entries get one number, and a request that is made from now on meets the new values alone.

        Raises:
            RequestError: the engine has no such condition, or no room for another entry.
        """
        numbers = self._of(condition)
        most = self._conditions[condition].capacity
        if entry not in numbers and len(numbers) == most:
            raise RequestError(
                f"condition {condition!r}: got a new entry {entry!r}, but the engine holds {most} ({', '.join(numbers)}); "
                "replace one of these or drop it, or build an engine with a larger capacity"
            )
        free = (number for number in range(1, most + 1) if number not in numbers.values())
        number = numbers[entry] if entry in numbers else next(free)
        self._versions[condition, number] = self._versions.get((condition, number), 0) + 1
        fill(number)
        with self._lock:
            numbers[entry] = number

    def drop(self, condition: str, entry: str) -> None:
        """Forget `entry`, so that another can have its place. To be called on the step loop's thread, between two steps.

        Raises:
            RequestError: the engine has no such condition or entry, or a request that has not ended uses it.
        """
        numbers = self._of(condition)
        with self._lock:
            if entry not in numbers:
                known = ", ".join(numbers) or "none"
                raise RequestError(
                    f"condition {condition!r}: got {entry!r} to drop, expected one of the entries that it has: {known}"
                )
            number = numbers[entry]
            using = [each for each in self._users if not each.done.is_set()]
            if count := sum(each.conditions.get(condition, (0, 0.0))[0] == number for each in using):
                raise RequestError(
                    f"condition {condition!r}: got {entry!r} to drop, and {count} requests that have not ended use it; wait for "
                    "them, or cancel them"
                )
            del numbers[entry]

    def choices(self, sampling: Sampling) -> dict[str, str | tuple[str, float]]:
        """Return what `sampling` chooses: its vector and its adapter as entries of the conditions that have these.

        Raises:
            RequestError: it names a vector or an adapter, and the engine has none, or it chooses of that condition otherwise as
                well.
        """
        found = dict(sampling.conditions)
        for kind, entry, scale in (
            ("vector", sampling.vector, sampling.vector_scale),
            ("adapter", sampling.adapter, sampling.adapter_scale),
        ):
            if entry is None:
                continue
            name = self.of_kind(kind, f"Sampling.{kind}")
            if name in found:
                raise RequestError(
                    f"Sampling.{kind}: got {entry!r}, and conditions[{name!r}] as well; give one of them"
                )
            found[name] = (entry, scale) if self._conditions[name].scaled or scale != 1 else entry
        return found

    def of_kind(self, kind: str, where: str) -> str:
        """Return the name of the condition whose entries are of a kind: "vector" or "adapter".

        Raises:
            RequestError: the engine has none; the error begins with `where`.
        """
        for name, condition in self._conditions.items():
            if (condition.vectors if kind == "vector" else condition.adapters) is not None:
                return name
        article = "an" if kind == "adapter" else "a"
        raise RequestError(
            f"{where}: got {article} {kind}, but this engine adds none; build one with a method that adds {kind}s, which "
            "`enginewright methods` lists"
        )

    def apply(self, choices: Choices, request: Request) -> None:
        """Give `request` the entries that it names.

        Raises:
            RequestError: the engine has no such condition or entry, or the condition takes no scale.
        """
        with self._lock:
            self._apply(choices, request)
            self._users.add(request)

    def _apply(self, choices: Choices, request: Request) -> None:
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
            else:  # what it changes begins there
                request.shareable = request.conditions_begin
        request.conditions = chosen
        request.prefix_salt = repr(sorted(salt)).encode() if salt else b""

    def _of(self, condition: str) -> dict[str, int]:
        if condition not in self._numbers:
            known = ", ".join(self._numbers) or "none"
            raise RequestError(f"Sampling.conditions: got {condition!r}, and the engine has the conditions {known}")
        return self._numbers[condition]
