"""The type of an inference method: its options, and the hooks through which an export lets it act.

A method is a module or a folder of `exporters/methods/` that has an object `METHOD = Method(...)`. An export calls the hooks
that METHOD names in this order:

    choose_cache(config, cache) -> cache                        replaces the format of the cache, a `CacheFormat`
    extend_cache(config, cache) -> cache                        adds to the format that was chosen: a policy, inputs of the
                                                                graph; refuses a format that it does not fit
    choose_decoding(config, decoding) -> decoding               changes the manifest's `decoding`, which tells the runtime
                                                                how to make tokens of the graph's outputs
    check_model(config, checkpoint)                             refuses a checkpoint that the method does not fit
    conditions(config, checkpoint) -> conditions                declares what a request may name, such as a vector,
                                                                as the manifest's `Condition` by name
    condition_entries(config, conditions) -> entries            gives entries that every loaded engine has: arrays by condition,
                                                                entry and tensor
    code_form(config) -> form                                   the form of the codes that the next hook will make, a `CodeForm`
    transform_weights(config, weights, checkpoint) -> weights   changes weights, before the graph is captured
    passes(config) -> passes                                    passes over the graph, before its projections are packed
    extend_graph(config, anchors)                               adds nodes, inputs and outputs at the anchors of the decoder
                                                                graph, whose weights are still recipes
    more_graphs(config, anchors) -> graphs                      gives further graphs of the engine by name, such as those that
                                                                serve a cache policy
    tolerance(config, tolerance) -> tolerance                   loosens what `check` and the trial of a new engine allow

`transform_weights` takes and returns {parameter name: Weight}. A `Weight` is a recipe, and the hook computes no more than it
must. A method that quantises a weight sets `Weight.quantized`, and no method after it may change that weight.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeAlias, TypeVar

import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.exporters.capture.cache_formats import CacheFormat
from enginewright.exporters.methods.anchors import Anchors
from enginewright.exporters.methods.tolerance import Tolerance
from enginewright.exporters.methods.tuner import Tuner
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.weight import CodeForm, Weight
from enginewright.runtime.artifact.manifest import Condition
from enginewright.runtime.errors import ExtensionError

C = TypeVar("C")
Entries: TypeAlias = Mapping[str, Mapping[str, Mapping[str, NDArray[Any]]]]
"""Arrays by the names of a condition, of an entry and of a tensor."""

HOOKS = (
    "choose_cache",
    "extend_cache",
    "choose_decoding",
    "check_model",
    "conditions",
    "condition_entries",
    "code_form",
    "transform_weights",
    "passes",
    "extend_graph",
    "more_graphs",
    "tolerance",
)
"""The names of the hooks, in the order in which an export calls them."""


@dataclass(frozen=True, kw_only=True)
class Method(Generic[C]):
    """An inference method; its module creates it.

    A hook that is None does nothing.

    name: that of `--apply NAME:option=value,...` and of the method's page in docs/methods/.
    summary: what it gives, as a phrase without a full stop; `enginewright methods` and README's table show it.
    paper: its number on arXiv; empty where there is none.
    config: the frozen dataclass of the options; None: the method has only tuners.
    other_options: further names of `--apply` that enter the same hooks, each with its config.
    repeatable: whether one export may apply it several times.
    choose_cache: may stand in only one of the methods of an export.
    extend_cache: runs for every method that has it, after `choose_cache`.
    choose_decoding: may stand in only one of the methods of an export.
    check_model: raises ExportError or UnsupportedError for a checkpoint that the method does not fit.
    conditions: no two methods of an export may declare the same name.
    condition_entries: gets the conditions of all methods as the manifest will have them; without it engines begin with none.
    code_form: lets an export refuse a form that its format does not hold before hours of calibration.
    transform_weights: without it the method has no effect on exported checkpoints, and is refused there.
    passes: they run over the whole graph, method by method.
    extend_graph: raises UnsupportedError for a graph without the anchors that it needs.
    more_graphs: no two methods of an export may give the same name, and none the decoder's; they are small, and computed in
        float32.
    tolerance: gets what is allowed without the method.
    tuners: commands of `enginewright tune` that make what the options name.

    Raises:
        ExtensionError: a keyword that no field has, such as a misspelt hook, a hook that is no function, or hooks without a
            config.
    """

    name: str
    summary: str
    paper: str = ""
    config: type[C] | None = None
    other_options: Mapping[str, type[C]] = field(default_factory=dict)
    repeatable: bool = False
    choose_cache: Callable[[C, CacheFormat], CacheFormat] | None = None
    extend_cache: Callable[[C, CacheFormat], CacheFormat] | None = None
    choose_decoding: Callable[[C, dict[str, Any]], dict[str, Any]] | None = None
    check_model: Callable[[C, Checkpoint], None] | None = None
    conditions: Callable[[C, Checkpoint], dict[str, Condition]] | None = None
    condition_entries: Callable[[C, dict[str, Condition]], Entries] | None = None
    code_form: Callable[[C], CodeForm] | None = None
    transform_weights: Callable[[C, dict[str, Weight], Checkpoint], dict[str, Weight]] | None = None
    passes: Callable[[C], tuple[ir.passes.PassBase, ...]] | None = None
    extend_graph: Callable[[C, Anchors], None] | None = None
    more_graphs: Callable[[C, Anchors], dict[str, ir.Model]] | None = None
    tolerance: Callable[[C, Tolerance], Tolerance] | None = None
    tuners: tuple[Tuner, ...] = ()

    def __new__(cls, **given: Any) -> Self:
        """Refuse keywords that are not fields with the place and the names that are known."""
        known = [each.name for each in dataclasses.fields(cls)]
        if unknown := [name for name in given if name not in known]:
            where = _place(next((_module(value) for value in given.values() if _module(value)), ""))
            hint = _nearest(unknown[0])
            raise ExtensionError(
                f"{where}: METHOD: got {unknown[0]!r}, expected hooks among {', '.join(HOOKS)}, or {', '.join(_plain())}"
                f"{f'; do you mean {hint}?' if hint else ''}"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        given = {hook: found for hook in HOOKS if (found := getattr(self, hook)) is not None}
        if wrong := [hook for hook, found in given.items() if not callable(found)]:
            raise ExtensionError(
                f"METHOD {self.name!r}: {wrong[0]}: got a {type(given[wrong[0]]).__name__}, expected a function"
            )
        if given and not self.options:
            raise ExtensionError(
                f"METHOD {self.name!r}: got {', '.join(given)} and no config, expected a frozen dataclass of options, without "
                "which `--apply` does not take the method; pass config, an empty dataclass if there are no options"
            )

    @property
    def options(self) -> dict[str, type[C]]:
        """The names of `--apply` that enter the method, each with its config."""
        return {**({} if self.config is None else {self.name: self.config}), **self.other_options}


def check_functions(methods: Iterable[Method[Any]]) -> None:
    """Refuse functions that look like hooks and are none, because an export would silently skip them.

    It looks at the public functions of the modules that define the configs and the hooks.

    Raises:
        ExtensionError: a function has a hook's name, or one that differs in at most two letters, and no METHOD names it.
    """
    known = list(methods)
    hooks = [found for each in known for hook in HOOKS if (found := getattr(each, hook)) is not None]
    configs = [config for each in known for config in each.options.values()]
    for module in sorted({_module(each) for each in (*configs, *hooks)}):
        for name, hook in _lookalikes(module):
            if vars(sys.modules[module])[name] not in hooks:
                raise ExtensionError(
                    f"{_place(module)}: got a function {name}, which no METHOD names; do: pass it to Method as {hook}, or "
                    "give it another name, or one that begins with _"
                )


def _lookalikes(module: str) -> Iterator[tuple[str, str]]:
    """Each public function of the module whose name is at most two letters away from a hook's, and that hook."""
    for name, value in vars(sys.modules[module]).items() if module in sys.modules else ():
        own = inspect.isfunction(value) and value.__module__ == module
        if own and not name.startswith("_") and (hook := _nearest(name)):
            yield name, hook


def _nearest(name: str) -> str:
    """The hook whose name is at most two letters away from `name`; empty if there is none."""
    return next((hook for hook in HOOKS if _edits(name, hook) <= 2), "")


def _edits(name: str, hook: str) -> int:
    """How many letters are to be removed, added or replaced to make `hook` of `name`, at most."""
    changes = difflib.SequenceMatcher(None, name, hook, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in changes if kind != "equal")


def _plain() -> list[str]:
    """The fields that are not hooks."""
    return [each.name for each in dataclasses.fields(Method) if each.name not in HOOKS]


def _module(value: Any) -> str:
    """The name of the module that defines a class or function; empty for any other value."""
    return str(value.__module__) if isinstance(value, type) or inspect.isfunction(value) else ""


def _place(module: str) -> str:
    """The file of a module, as errors show it."""
    return str(getattr(sys.modules.get(module), "__file__", None) or module or "exporters/methods")
