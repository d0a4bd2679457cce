"""The Jinja environment that chat templates are written for: that of transformers, with its sandbox, functions and tags."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils


@dataclass(frozen=True, kw_only=True)
class CompiledTemplate:
    """A template that is ready to run; created by `compile_template`.

    reads: names of the variables that it reads and does not set before; functions of the environment are none of them.
    """

    template: jinja2.Template
    reads: frozenset[str]

    def render(self, values: dict[str, Any], now: datetime) -> str:
        """Return the text of the template with these variables; `strftime_now` gives parts of `now`.

        Raises whatever the template raises.
        """
        self.template.globals["strftime_now"] = lambda form: now.strftime(form)
        return self.template.render(values)


@functools.lru_cache(maxsize=32)
def compile_template(source: str) -> CompiledTemplate:
    """Return the template of this text, compiled once however many requests use it.

    Raises whatever Jinja and Python's compiler raise for the text: a template is a program that anyone may have written.
    """
    environment = _environment()
    reads = jinja2.meta.find_undeclared_variables(environment.parse(source))
    return CompiledTemplate(template=environment.from_string(source), reads=frozenset(reads))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _reject,
        "strftime_now": None,  # set for each rendering
        "namespace": _make_namespace,
        "dict": _DictFunction(),
    }
    return environment


class _Generation(jinja2.ext.Extension):
    """The tag `{% generation %} ... {% endgeneration %}`, which marks the answer for training; here it changes no text.

    As in transformers its body is the body of a call block, so that a variable set inside is not seen outside.
    """

    tags: set[str] = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Return a call block around the statements up to endgeneration."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: jinja2.runtime.Macro) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """A namespace without names that begin with an underscore, which Python keeps for its inner workings."""

    def __setitem__(self, name: str, value: Any) -> None:
        _check_names([name])
        super().__setitem__(name, value)


def _make_namespace(*pairs: Any, **values: Any) -> _Namespace:
    made = dict(*pairs, **values)
    _check_names(made)
    return _Namespace(made)


def _check_names(names: Iterable[Any]) -> None:
    if hidden := [name for name in names if isinstance(name, str) and name.startswith("_")]:
        raise jinja2.exceptions.SecurityError(f"namespace: got the name {hidden[0]!r}, expected no leading underscore")


class _DictFunction:
    """The function `dict` of templates, without the attributes of Python's class."""

    def __call__(self, *pairs: Any, **values: Any) -> dict[Any, Any]:
        return dict(*pairs, **values)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """Return a dict that has `value` under each of the keys."""
        return dict.fromkeys(keys, value)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return `value` as JSON, without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _reject(message: str) -> None:
    raise jinja2.TemplateError(message)
