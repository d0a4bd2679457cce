"""`enginewright methods`: lists the inference methods, what each of them gives, and its options."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from typing import Any

from enginewright.exporters.config_text import describe_fields
from enginewright.exporters.features.registry import find_features
from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.methods.registry import DOOR, find_methods
from enginewright.runtime.errors import ExportError

PAGES = "docs/methods"
WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="methods to show with their options (default: all, a line each)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, options included")


def run(arguments: argparse.Namespace) -> int:
    """Print the methods."""
    methods = find_methods()
    for name in arguments.names:
        if name not in methods:
            raise ExportError(f"methods: got {name!r}, expected one of {', '.join(methods)}")
    described = {name: describe(methods[name]) for name in arguments.names or methods}
    if arguments.json:
        print(json.dumps(described, indent=2))
    elif arguments.names:
        print("\n\n".join(_details(name, described[name]) for name in arguments.names))
    else:
        width = max(map(len, described))
        print("\n".join(f"{name:{width}}  {each['gives']}" for name, each in described.items()))
        print(
            "\nbuild and export-checkpoint take them as --apply NAME:option=value,...; `enginewright methods NAME` shows the options."
        )
        if alone := [name for name, method in methods.items() if not method.options]:
            print(
                f"{', '.join(alone)}: by `enginewright tune` alone; what they write is taken by another method or tool."
            )
        for feature in find_features().values():
            print(f"{feature.title} needs no option: a checkpoint's config asks for it ({PAGES}/{feature.name}.md).")
    return 0


def describe(method: Method[Any]) -> dict[str, Any]:
    """Return what a method gives, its page, its tuners, and its options, as plain JSON values.

    A method of an extension has no page. Options have their type, default and meaning; `other_options` are those of further names of `--apply`.
    """
    return {
        "gives": method.summary,
        "page": f"{PAGES}/{method.name}.md" if DOOR.is_bundled(method.name) else None,
        "options": {} if method.config is None else _describe_options(method.config),
        "other_options": {name: _describe_options(config) for name, config in method.other_options.items()},
        "tuners": {tuner.name: tuner.summary for tuner in method.tuners},
    }


def _describe_options(config: type) -> dict[str, Any]:
    _, told = describe_fields(config)
    return {
        field.name: {
            "type": str(field.type),
            "default": None if field.default is dataclasses.MISSING else field.default,
            "required": field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            "meaning": told.get(field.name, ""),
        }
        for field in dataclasses.fields(config)
    }


def _details(name: str, described: dict[str, Any]) -> str:
    lines = textwrap.wrap(f"{name}: {described['gives']}", WIDTH)
    if described["page"] is not None:
        lines.append(f"page: {described['page']}")
    lines += _option_lines(described["options"])
    for other, options in described["other_options"].items():
        lines += [f"--apply {other}:", *_option_lines(options)]
    lines += [f"enginewright tune {tuner}: {summary}" for tuner, summary in described["tuners"].items()]
    return "\n".join(lines)


def _option_lines(options: dict[str, Any]) -> list[str]:
    lines = []
    for option, each in options.items():
        default = "required" if each["required"] else f"default {_as_option(each['default'])}"
        lines += textwrap.wrap(
            f"{option} ({default}): {each['meaning']}", WIDTH, initial_indent="  ", subsequent_indent="      "
        )
    return lines


def _as_option(value: Any) -> str:
    """A default as `--apply` would take it."""
    return str(value).lower() if isinstance(value, bool) else str(value) or "empty"
