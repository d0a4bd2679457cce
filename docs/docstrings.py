"""Makes the docstrings of the Python reference Markdown, where they are plain text: lists of fields, and brackets as they are.

A griffe extension; mkdocs.yml names it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

CODE = re.compile(r"(`[^`]*`)")
SECTION = re.compile(r"^(Raises|Returns|Yields|Args|Attributes|Example|Examples|Note):$", re.MULTILINE)


class PlainDocstrings(griffe.Extension):
    """Rewrites each docstring once its object is complete."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value, _names(obj))


def _names(obj: griffe.Object) -> list[str]:
    """The parameters or fields that the object's docstring may describe."""
    if isinstance(obj, griffe.Function):
        return [parameter.name for parameter in obj.parameters if parameter.name != "self"]
    if isinstance(obj, griffe.Class):
        return [name for name, member in obj.members.items() if member.is_attribute]
    return []


def readable(text: str, names: list[str]) -> str:
    """The docstring with a list of what it says of `names`, and with brackets that Markdown takes for text."""
    head, *rest = SECTION.split(text, maxsplit=1)
    head = _as_list(head, names) if names else head
    text = head + (f"{rest[0]}:{rest[1]}" if rest else "")
    return "".join(part if part.startswith("`") else _escape(part) for part in CODE.split(text))


def _as_list(text: str, names: list[str]) -> str:
    """Every `name: ...` or `name, name: ...` that opens a line or a sentence as an item; what follows a blank line stays."""
    known = "|".join(map(re.escape, names))
    entry = rf"(?:^|(?<=[.;)] ))((?:{known})(?:\[\w+(?:, \w+)*\])?(?:, (?:{known}))*(?: \w+\d+)?): "
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        before, *found = re.split(entry, paragraph, flags=re.MULTILINE)
        items = [f"- `{name}`: {' '.join(doc.split())}" for name, doc in zip(found[::2], found[1::2], strict=True)]
        paragraphs.append("\n\n".join(filter(None, (before.strip(), "\n".join(items)))))
    return "\n\n".join(filter(None, paragraphs)) + "\n\n"


def _escape(text: str) -> str:
    return text.replace("][", "]\\[").replace("<", "&lt;")
