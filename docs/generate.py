"""Fills the reference pages from the code, so that they cannot drift from it.

An mkdocs hook: a line `<!-- generate: NAME -->` of a page becomes what `TABLES[NAME]` returns. `tests/test_docs.py` calls
the same functions. They import the package, so that a build of the site needs what a build of an engine needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("exporters", "builders", "plugins", "runtime")
MARK = re.compile(r"^<!-- generate: ([a-z-]+) -->$", re.MULTILINE)

if (
    "enginewright" not in sys.modules and importlib.util.find_spec("enginewright") is None
):  # the checkout is the package
    enginewright = types.ModuleType("enginewright")
    enginewright.__path__ = [str(ROOT)]
    sys.modules["enginewright"] = enginewright


def on_startup(**_: Any) -> None:
    """Lay the four packages, and nothing else of the checkout, where mkdocstrings looks for them."""
    home = ROOT / "build/docs/enginewright"
    home.mkdir(parents=True, exist_ok=True)
    (home / "__init__.py").write_text('"""Export, build and run LLM inference engines."""\n')
    for name in PACKAGES:
        if not (home / name).is_symlink():
            (home / name).symlink_to(ROOT / name)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page; KeyError for a name that no function here has."""
    return MARK.sub(lambda mark: TABLES[mark[1]](), markdown)


# ---- commands ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand with its parser; `name` holds two words where the command has subcommands of its own."""

    name: str
    summary: str
    parser: argparse.ArgumentParser


def commands() -> Iterator[Command]:
    """Every command of `enginewright`, subcommands after the command they belong to."""
    cli = importlib.import_module("enginewright.runtime.cli")
    for name, (module, summary) in cli.COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"enginewright {name}", add_help=False)
        importlib.import_module(module).add_arguments(parser)
        yield Command(name=name, summary=summary, parser=parser)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub, inner in action.choices.items():
                    yield Command(name=f"{name} {sub}", summary=inner.description or "", parser=inner)


def command_reference() -> str:
    """One section for each command: its summary, and a table of its arguments."""
    return "\n".join(_describe_command(command) for command in commands())


def _describe_command(command: Command) -> str:
    summary = command.summary[:1].upper() + command.summary[1:].rstrip(".") + "."
    return f"## enginewright {command.name}\n\n{summary}\n\n{_table_of_arguments(command)}"


def _table_of_arguments(command: Command) -> str:
    rows = [_describe_argument(action) for action in command.parser._actions if "--help" not in action.option_strings]
    return _table(("argument", "meaning", "default"), rows)


def _describe_argument(action: argparse.Action) -> tuple[str, str, str]:
    if isinstance(action, argparse._SubParsersAction):
        return _code(str(action.metavar or action.dest)), f"one of {', '.join(action.choices)}", "required"
    values = "" if action.nargs == 0 else str(action.metavar or _choices(action) or action.dest.upper())
    flags = ", ".join(action.option_strings)
    told = f"one of {', '.join(map(str, action.choices))}" if action.choices and action.metavar else ""
    meaning = "; ".join(filter(None, ((action.help or "").replace("%%", "%"), told)))
    return _code(f"{flags} {values}".strip()), meaning, _default(action)


def _choices(action: argparse.Action) -> str:
    return "|".join(map(str, action.choices)) if action.choices else ""


def _default(action: argparse.Action) -> str:
    if action.required and (action.option_strings or action.nargs not in ("*", "?")):
        return "required"
    if action.default in (None, False, argparse.SUPPRESS) or action.default == []:
        return ""
    return _code(str(action.default))


# ---- ops -----------------------------------------------------------------------------------


def declared_ops() -> dict[str, Any]:
    """Every op's declaration by its name."""
    ops: dict[str, Any] = importlib.import_module("enginewright.plugins.ops.registry").OPS
    return ops


def op_reference() -> str:
    """One section for each op: its inputs, outputs and attributes."""
    return "\n".join(_describe_op(op) for op in declared_ops().values())


def _describe_op(op: Any) -> str:
    inputs = [(_code(t.name), *_shape_and_type(t), _input_doc(t)) for t in op.inputs]
    outputs = [(_code(t.name), *_shape_and_type(t), _output_doc(t)) for t in op.outputs]
    attributes = [
        (_code(a.name), a.type, "required" if a.default is None else _code(str(a.default)), a.doc)
        for a in op.attributes
    ]
    module, function = op.oracle.split(":")
    parts = [
        f"## {op.name}",
        f"Version {op.version}. {op.doc}",
        f"Its definition in numpy: `{module}.{function}`.",
        _table(("input", "type", "shape", "meaning"), inputs),
        _table(("output", "type", "shape", "meaning"), outputs),
    ]
    if attributes:
        parts.append(_table(("attribute", "type", "default", "meaning"), attributes))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _shape_and_type(tensor: Any) -> tuple[str, str]:
    return ", ".join(tensor.types), _code(f"[{', '.join(tensor.shape)}]")


def _input_doc(tensor: Any) -> str:
    kind = "optional" if tensor.optional else "any number of them" if tensor.variadic else ""
    return "; ".join(filter(None, (tensor.doc, kind)))


def _output_doc(tensor: Any) -> str:
    kind = "optional" if tensor.optional else ""
    return "; ".join(filter(None, (tensor.doc, f"updates `{tensor.alias}` in place" if tensor.alias else "", kind)))


# ---- the decoder graph ---------------------------------------------------------------------


def port_reference() -> str:
    """Tables of the packed graph's inputs and outputs, and of the inputs of a graph of standard ops."""
    graph = importlib.import_module("enginewright.runtime.artifact.decoder_graph")
    return "\n".join(
        (
            "## Inputs\n",
            _port_table((*graph.INPUTS, graph.TILES, graph.EXACT)),
            "## Outputs\n",
            _port_table(graph.OUTPUTS),
            "Each pool comes out as `NAME.out`, in the same buffer as the input.\n",
            "## Inputs of a condition\n",
            _port_table((graph.CONDITION_INDEX, graph.CONDITION_SCALE, graph.CONDITION_TENSOR)),
            "## Inputs of a graph of standard ops\n",
            _port_table((*graph.DENSE_INPUTS, graph.DENSE_CACHE)),
        )
    )


def _port_table(ports: Iterable[Any]) -> str:
    rows = [
        (_code(port.name), port.dtype, _code(f"[{', '.join(map(str, port.axes))}]"), port.lives, _port_doc(port))
        for port in ports
    ]
    return _table(("name", "type", "axes", "kind", "meaning"), rows)


def _port_doc(port: Any) -> str:
    return f"{port.doc}; KVarN caches alone" if port.optional else str(port.doc)


# ---- the manifest --------------------------------------------------------------------------


def manifest_reference() -> str:
    """One section for each record of the manifest, outermost first."""
    module = importlib.import_module("enginewright.runtime.artifact.manifest")
    todo, done = [module.Manifest], list[type]()
    while todo:
        record = todo.pop(0)
        done.append(record)
        for inner in _records_in(record):
            if inner not in done and inner not in todo:
                todo.append(inner)
    return f"The format's number is {module.FORMAT}.\n\n" + "\n".join(map(_describe_record, done))


def _describe_record(record: type) -> str:
    return f"## {record.__name__}\n\n{_field_table(record, 'key')}"


def _field_table(record: type, title: str) -> str:
    """What the record's docstring says before its fields, then a table of them with what it says of each."""
    hints, (intro, told) = typing.get_type_hints(record), _describe_fields(record)
    rows = [
        (_code(f.name), _type_name(hints[f.name]), _field_default(f), told.get(f.name, "")) for f in _fields(record)
    ]
    return f"{intro}\n\n{_table((title, 'type', 'default', 'meaning'), rows)}"


def _describe_fields(record: type) -> tuple[str, dict[str, str]]:
    described: tuple[str, dict[str, str]] = importlib.import_module(
        "enginewright.exporters.config_text"
    ).describe_fields(record)
    return described


def _fields(record: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(record)


def _records_in(record: type) -> Iterator[type]:
    for hint in typing.get_type_hints(record).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                yield part


def _type_name(hint: Any) -> str:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return f"[{hint.__name__}](#{_anchor(hint.__name__)})"
    origin, arguments = typing.get_origin(hint), [a for a in typing.get_args(hint) if a is not ...]
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"object of {_type_name(arguments[1])}"
    if origin is typing.Literal:
        return ", ".join(_code(str(a)) for a in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(a) for a in arguments)
    return _JSON_NAMES.get(hint, getattr(hint, "__name__", str(hint)))


_JSON_NAMES: dict[Any, str] = {
    str: "string", int: "whole number", float: "number", bool: "true or false", types.NoneType: "null", Any: "any value"
}  # fmt: skip


def _field_default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _code(_json_like(field.default))
    if field.default_factory is not dataclasses.MISSING:
        return _code(_json_like(field.default_factory()))
    return "required"


def _json_like(value: Any) -> str:
    known = {"None": "null", "()": "[]", "True": "true", "False": "false"}
    return known.get(str(value), str(value).replace("'", '"'))


# ---- method options ------------------------------------------------------------------------


def method_options(name: str) -> str:
    """The options of one method, from its config, or from its tuners' arguments where it has none."""
    method = _methods().find_methods()[name]
    if method.config is not None:
        return _field_table(method.config, "option")
    tuners = {f"tune {tuner.name}" for tuner in method.tuners}
    return "\n".join(_table_of_arguments(command) for command in commands() if command.name in tuners)


def method_table(pages: str = "") -> str:
    """Every method with what it gives, its paper and its page, then the features that a config asks for.

    pages: the folder of the pages, as links reach it.
    """
    methods = _methods().find_methods().values()
    features = importlib.import_module("enginewright.exporters.features.registry").find_features().values()
    named = [(_code(each.name), each) for each in methods] + [(each.title, each) for each in features]
    rows = [(name, each.summary, _paper(each.paper), f"[{each.name}]({pages}{each.name}.md)") for name, each in named]
    return _table(("name", "what it gives", "paper", "page"), rows)


def _paper(number: str) -> str:
    return f"[{number}](https://arxiv.org/abs/{number})" if number else ""


def _methods() -> Any:
    return importlib.import_module("enginewright.exporters.methods.registry")


# ---- the rest ------------------------------------------------------------------------------


def changelog() -> str:
    """CHANGELOG.md without its title, which the page has, and with links from this folder."""
    return (ROOT / "CHANGELOG.md").read_text().partition("\n")[2].lstrip().replace("](docs/", "](")


TABLES: dict[str, Callable[[], str]] = {
    "commands": command_reference,
    "ops": op_reference,
    "decoder-graph": port_reference,
    "manifest": manifest_reference,
    "changelog": changelog,
    "methods": lambda: method_table("methods/"),
    **{f"method-{name}": lambda name=name: method_options(name) for name in _methods().find_methods()},  # type: ignore[misc]
}


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    if not rows:
        return "It takes no arguments.\n"
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
