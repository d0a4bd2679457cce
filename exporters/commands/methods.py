"""`enginewright methods`: lists the inference methods, what each of them gives, and its options."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from typing import Any

from enginewright.exporters.config_text import describe_fields
from enginewright.exporters.methods.registry import METHODS, find_method
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
    for name in arguments.names:
        if name not in METHODS:
            raise ExportError(f"methods: got {name!r}, expected one of {', '.join(METHODS)}")
    described = {name: describe(name) for name in arguments.names or METHODS}
    if arguments.json:
        print(json.dumps(described, indent=2))
    elif arguments.names:
        print("\n\n".join(_details(name, described[name]) for name in arguments.names))
    else:
        width = max(map(len, described))
        print("\n".join(f"{name:{width}}  {each['gives']}" for name, each in described.items()))
        print(
            "\nbuild and export-checkpoint take them as --apply NAME:option=value,...; `enginewright methods NAME` shows the options.\n"
            "Depth-Attention needs no option: a checkpoint's config asks for it (docs/methods/depth_attention.md)."
        )
    return 0


def describe(name: str) -> dict[str, Any]:
    """Return what a method gives, its page, and its options with type, default and meaning, as plain JSON values."""
    method = find_method(name)
    _, told = describe_fields(method.Config)
    options = {
        field.name: {
            "type": str(field.type),
            "default": None if field.default is dataclasses.MISSING else field.default,
            "required": field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            "meaning": told.get(field.name, ""),
        }
        for field in dataclasses.fields(method.Config)
    }
    gives = (method.__doc__ or "").partition("\n")[0].partition(": ")[2]
    return {"gives": gives, "page": f"{PAGES}/{name}.md", "options": options}


def _details(name: str, described: dict[str, Any]) -> str:
    lines = textwrap.wrap(f"{name}: {described['gives']}", WIDTH)
    lines.append(f"page: {described['page']}")
    for option, each in described["options"].items():
        default = "required" if each["required"] else f"default {_as_option(each['default'])}"
        lines += textwrap.wrap(
            f"{option} ({default}): {each['meaning']}", WIDTH, initial_indent="  ", subsequent_indent="      "
        )
    return "\n".join(lines)


def _as_option(value: Any) -> str:
    """A default as `--apply` would take it."""
    return str(value).lower() if isinstance(value, bool) else str(value) or "empty"
