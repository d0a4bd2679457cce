"""The door of the inference methods, and the order in which an export calls the hooks of those that it applies."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from transformers import PreTrainedModel

from enginewright.exporters.capture.cache_formats import CacheFormat
from enginewright.exporters.config_text import make_config
from enginewright.exporters.methods.anchors import Anchors
from enginewright.exporters.methods.hooks import Method, check_functions
from enginewright.exporters.methods.model_hash import hash_after
from enginewright.exporters.methods.tolerance import Tolerance
from enginewright.exporters.methods.tuner import Tuner
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.weight import CodeForm, Weight
from enginewright.runtime.artifact.extension import Door
from enginewright.runtime.artifact.manifest import Condition, Manifest
from enginewright.runtime.errors import ExportError, ExtensionError

DOOR: Door[Method[Any]] = Door("enginewright.exporters.methods", "METHOD", Method)


@dataclass(frozen=True)
class Applied:
    """A method with its config, as one export applies it; `apply_method` creates it.

    name: of the option, one of `find_options`.
    config: an instance of the config that belongs to this name.
    """

    name: str
    config: Any

    def describe(self) -> dict[str, Any]:
        """The manifest's record of the method."""
        return {"name": self.name, **dataclasses.asdict(self.config)}

    def transform_weights(self, weights: dict[str, Weight], checkpoint: Checkpoint) -> dict[str, Weight]:
        """Pass the weights of `checkpoint`'s model through the method, if it changes any."""
        return transform_weights((self,), weights, checkpoint)


def find_methods() -> dict[str, Method[Any]]:
    """Every method by name, in alphabetical order.

    Raises:
        ExtensionError: a module of the folder has a METHOD that is none or misspells a hook, or two have one name.
    """
    found = dict(sorted(DOOR.entries().items()))
    check_functions(found.values())
    _refuse_shared("--apply", [(name, method) for method in found.values() for name in method.options])
    _refuse_shared("tune", [(tuner.name, method) for method in found.values() for tuner in method.tuners])
    return found


def _refuse_shared(where: str, names: list[tuple[str, Method[Any]]]) -> None:
    """Raise ExtensionError where two methods give one name to the commands."""
    owners: dict[str, str] = {}
    for name, method in names:
        if name in owners:
            raise ExtensionError(
                f"{where} {name}: got it from the methods {owners[name]} and {method.name}, expected one method for each "
                "name; rename one"
            )
        owners[name] = method.name


def find_options() -> dict[str, Method[Any]]:
    """Each name that `--apply` takes, with its method, in alphabetical order."""
    return dict(sorted((name, method) for method in find_methods().values() for name in method.options))


def find_tuners() -> dict[str, Tuner]:
    """Each command of `enginewright tune` by name."""
    return {tuner.name: tuner for method in find_methods().values() for tuner in method.tuners}


def find_method(name: object) -> Method[Any]:
    """The method that the name of an option enters; an ExportError about an unknown name lists the known ones."""
    known = find_options()
    if not isinstance(name, str) or name not in known:
        raise ExportError(
            f"apply: unknown method {name!r}; known: {', '.join(known)}; one of your own needs its folder, by --extensions or "
            "extend"
        )
    return known[name]


def apply_method(name: str, options: dict[str, Any]) -> Applied:
    """Return the method `name` with a config of options, whose values may be text.

    Raises:
        ExportError: an unknown name or option, or a value that the config refuses.
    """
    return Applied(name, make_config(find_method(name).options[name], options, name))


def applied_methods(manifest: Manifest) -> tuple[Applied, ...]:
    """The methods that an engine was built with, in order."""
    records = [dict(record) for record in manifest.applied]
    return tuple(apply_method(record.pop("name"), record) for record in records)


def check_together(applied: Sequence[Applied]) -> None:
    """Raise ExportError where methods exclude each other: the same one twice, or two that choose the same thing."""
    methods = [(each.name, find_method(each.name)) for each in applied]
    for index, (name, method) in enumerate(methods):
        earlier = next((other for other, found in methods[:index] if found.name == method.name), None)
        if earlier is not None and not method.repeatable:
            both = name if earlier == name else f"{earlier} and {name}"
            raise ExportError(f"apply: got {both} twice, expected it once; apply {method.name} once")
    for hook, what in (("choose_cache", "the cache"), ("choose_decoding", "the decoding")):
        names = [name for name, method in methods if getattr(method, hook) is not None]
        if len(names) > 1:
            raise ExportError(
                f"apply: got {names[0]} and {names[1]}, which both choose {what}, expected one of them; build without the "
                "other"
            )


def _hooks(applied: Sequence[Applied], name: str) -> Iterator[tuple[Applied, Callable[..., Any]]]:
    """The hook `name` of every method that has it, in order."""
    for method in applied:
        hook = getattr(find_method(method.name), name)
        if hook is not None:
            yield method, hook


def changing(applied: Sequence[Applied]) -> str:
    """The first method that changes weights, so that codes of a checkpoint have to be restored to numbers; empty for none."""
    return next((method.name for method, _ in _hooks(applied, "transform_weights")), "")


def giving_graphs(applied: Sequence[Applied]) -> str:
    """The first method that gives graphs of its own, next to the decoder's; empty for none."""
    return next((method.name for method, _ in _hooks(applied, "more_graphs")), "")


def code_forms(applied: Sequence[Applied]) -> list[CodeForm]:
    """The form of the codes of each method that will quantise weights."""
    return [hook(method.config) for method, hook in _hooks(applied, "code_form")]


def transform_weights(
    applied: Sequence[Applied], weights: dict[str, Weight], checkpoint: Checkpoint
) -> dict[str, Weight]:
    """Pass the weights of `checkpoint`'s model through every method that changes them, in order.

    Changed weights keep the record of the codes that the checkpoint stores them in; names of one weight stay so.
    """
    for method, hook in _hooks(applied, "transform_weights"):
        changed, made = hook(method.config, weights, checkpoint), dict[int, Weight]()
        for name, weight in changed.items():
            if id(weight) not in made:
                before = weights.get(name, weight)
                made[id(weight)] = weight.in_place_of(before, f"{method.name} changes weights")
        weights = {name: made[id(weight)] for name, weight in changed.items()}
    return weights


def choose_cache(applied: Sequence[Applied], cache: CacheFormat) -> CacheFormat:
    """Return the format of the cache, `cache` unless a method chooses another, with what methods add to it."""
    for name in ("choose_cache", "extend_cache"):
        for method, hook in _hooks(applied, name):
            cache = hook(method.config, cache)
    return cache


def choose_decoding(applied: Sequence[Applied]) -> dict[str, Any]:
    """Return the manifest's decoding, autoregressive unless a method chooses another."""
    decoding: dict[str, Any] = {"kind": "autoregressive"}
    for method, hook in _hooks(applied, "choose_decoding"):
        decoding = hook(method.config, decoding)
    return decoding


def check_model(applied: Sequence[Applied], checkpoint: Checkpoint) -> None:
    """Let every method look at the checkpoint, and refuse it by raising."""
    for method, hook in _hooks(applied, "check_model"):
        hook(method.config, checkpoint)


def conditions(applied: Sequence[Applied], checkpoint: Checkpoint) -> dict[str, Condition]:
    """Return every condition of a request that the methods declare, by name.

    Raises:
        ExportError: two methods declare the same name.
    """
    found: dict[str, Condition] = {}
    owners: dict[str, str] = {}
    for method, hook in _hooks(applied, "conditions"):
        try:
            declared = hook(method.config, checkpoint)
        except ValueError as e:
            raise ExportError(f"{method.name}: condition: {e}") from e
        for name, condition in declared.items():
            if name in found:
                raise ExportError(
                    f"apply: got {owners[name]} and {method.name}, which both declare the condition {name!r}, expected one "
                    "of them; build without the other"
                )
            found[name], owners[name] = condition, method.name
    return found


def name_model(
    applied: Sequence[Applied], conditions: dict[str, Condition], checkpoint: Checkpoint, model: PreTrainedModel
) -> dict[str, Condition]:
    """Return the conditions, those of vectors with the hash of the model that vectors have to be made on."""
    if all(each.vectors is None for each in conditions.values()):
        return conditions
    digest = hash_of_applied(applied, checkpoint, model)
    return {
        name: each
        if each.vectors is None
        else dataclasses.replace(each, vectors=dataclasses.replace(each.vectors, model=digest))
        for name, each in conditions.items()
    }


def hash_of_applied(applied: Sequence[Applied], checkpoint: Checkpoint, model: PreTrainedModel) -> str:
    """The hash of the model that methods make of a checkpoint; `model` has its parameters' names."""
    return hash_after(
        checkpoint, model, [partial(hook, each.config) for each, hook in _hooks(applied, "transform_weights")]
    )


def condition_entries(
    applied: Sequence[Applied], conditions: dict[str, Condition]
) -> dict[str, dict[str, dict[str, NDArray[Any]]]]:
    """Return the entries that methods give to conditions, by condition, entry and tensor.

    Raises:
        ExportError: the name of an entry is no part of a file's name.
        ExtensionError: a method gives entries of a condition that no method declares.
    """
    found: dict[str, dict[str, dict[str, NDArray[Any]]]] = {}
    for method, hook in _hooks(applied, "condition_entries"):
        for name, entries in hook(method.config, conditions).items():
            if name not in conditions:
                raise ExtensionError(
                    f"{method.name}: condition_entries: got {name!r}, expected a condition that is declared"
                )
            if wrong := [entry for entry in entries if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", entry)]:
                raise ExportError(
                    f"{method.name}: got an entry called {wrong[0]!r}, expected letters, digits, _, - and . alone"
                )
            found.setdefault(name, {}).update({entry: dict(arrays) for entry, arrays in entries.items()})
    return found


def passes(applied: Sequence[Applied]) -> list[ir.passes.PassBase]:
    """Return the graph passes of every method, in order."""
    return [each for method, hook in _hooks(applied, "passes") for each in hook(method.config)]


def extend_graph(applied: Sequence[Applied], anchors: Anchors) -> None:
    """Let every method add to the decoder graph, in order.

    Raises:
        ExtensionError: a method has declared a condition that no method reads.
    """
    for method, hook in _hooks(applied, "extend_graph"):
        hook(method.config, anchors)
    anchors.finish()


def more_graphs(applied: Sequence[Applied], anchors: Anchors) -> dict[str, ir.Model]:
    """Return the further graphs that methods give, by name.

    Raises:
        ExportError: two methods give the same name.
        ExtensionError: one gives the decoder's.
    """
    found: dict[str, ir.Model] = {}
    for method, hook in _hooks(applied, "more_graphs"):
        for name, graph in hook(method.config, anchors).items():
            if name == "decoder":
                raise ExtensionError(
                    f"{method.name}: more_graphs: got 'decoder', expected another name; rename the graph"
                )
            if name in found:
                raise ExportError(
                    f"apply: got two methods with a graph {name!r}, expected one; build without {method.name}"
                )
            found[name] = graph
    return found


def tolerance(applied: Sequence[Applied], allowed: Tolerance) -> Tolerance:
    """Return what is allowed with the methods, from what is allowed without them."""
    for method, hook in _hooks(applied, "tolerance"):
        allowed = hook(method.config, allowed)
    return allowed
