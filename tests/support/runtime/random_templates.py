"""Chat templates made at random: orderly ones with errors, and expressions that grow as fast as expressions can."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.support.runtime.template_bombs import DEPTH, MEMORY, TIME

_VALUES = (
    "messages",
    "messages[0]",
    "messages[0].content",
    "x",
    "ns.x",
    "ns",
    "tools",
    "loop",
    "[]",
    "{}",
    "''",
    "(1,)",
)
_VALUES += (
    "none",
    "true",
    "'ab'",
    "3",
    "10**6",
    "-1",
    "1.5",
    "range(999)",
    "missing",
    "dict(a=1)",
    "cycler(1, 2)",
    "m",
)
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "not in", "and", "or", "is", "|", ".")
_FILTERS = (
    "abs attr batch capitalize center default dictsort escape first float forceescape format groupby indent int items"
)
_FILTERS += (
    " join last length list lower map max min pprint random reject replace reverse round select slice sort string"
)
_FILTERS += " striptags sum title tojson trim truncate unique upper urlencode urlize wordcount wordwrap xmlattr"
_METHODS = "upper split splitlines replace center ljust zfill join format format_map encode translate expandtabs count items keys"
_METHODS += " get copy index __class__ _x to_bytes hex bit_length as_integer_ratio fromkeys append pop"


def expression(draw: random.Random, depth: int = 3) -> str:
    """Return an expression, of which most raise something."""
    if depth == 0 or draw.random() < 0.2:
        return draw.choice(_VALUES)
    inner = [expression(draw, depth - 1) for _ in range(3)]
    return draw.choice(
        (
            f"({inner[0]} {draw.choice(_OPERATORS)} {inner[1]})",
            f"({inner[0]} | {draw.choice(_FILTERS.split())})",
            f"({inner[0]} | {draw.choice(_FILTERS.split())}({inner[1]}))",
            f"({inner[0]} | {draw.choice(_FILTERS.split())}({inner[1]}, {inner[2]}))",
            f"({inner[0]}).{draw.choice(_METHODS.split())}",
            f"({inner[0]}).{draw.choice(_METHODS.split())}({inner[1]})",
            f"({inner[0]})[{inner[1]}:{inner[2]}]",
            f"[{inner[0]}, {inner[1]}]",
            f"{{{inner[0]}: {inner[1]}}}",
            f"({inner[0]} if {inner[1]} else {inner[2]})",
            f"m({inner[0]})",
        )
    )


def statements(draw: random.Random, depth: int = 3) -> str:
    """Return a template of nested statements."""
    if depth == 0:
        return f"{{{{ {expression(draw)} }}}}"
    inner = "".join(statements(draw, depth - 1) for _ in range(draw.randint(1, 2)))
    some = expression(draw, 2)
    return draw.choice(
        (
            f"{{% for i in {some} %}}{inner}{{% endfor %}}",
            f"{{% for i in range({draw.choice((3, 99, 99999))}) %}}{inner}{{% endfor %}}",
            f"{{% for i in {some} recursive %}}{inner}{{{{ loop({some}) }}}}{{% endfor %}}",
            f"{{% if {some} %}}{inner}{{% else %}}{inner}{{% endif %}}",
            f"{{% set x = {some} %}}{inner}",
            f"{{% set ns.x = {some} %}}{inner}",
            f"{{% macro m(n) %}}{inner}{{% endmacro %}}{{{{ m({some}) }}}}",
            f"{{% filter {draw.choice(_FILTERS.split())} %}}{inner}{{% endfilter %}}",
            f"{{% set x %}}{inner}{{% endset %}}",
            f"{{% generation %}}{inner}{{% endgeneration %}}",
            f"{{% call(a) m({some}) %}}{inner}{{% endcall %}}",
        )
    )


def random_template(draw: random.Random, corpus: Sequence[str]) -> str:
    """Return a template: of statements, one of `corpus` with errors, or, rarely, one that asks for more than there is."""
    kind = draw.random()
    if kind < 0.05:
        return draw.choice([bomb for bombs in (MEMORY, TIME, DEPTH) for bomb in bombs.values()])
    if kind < 0.5:
        return "{% set ns = namespace(x=messages) %}" + "".join(statements(draw) for _ in range(draw.randint(1, 3)))
    return _damaged(draw.choice(corpus), corpus, draw)


def _damaged(source: str, corpus: Sequence[str], draw: random.Random) -> str:
    """Return the template after a few cuts, insertions and repetitions."""
    for _ in range(draw.randint(1, 4)):
        begin = draw.randrange(len(source) + 1)
        end = min(len(source), begin + draw.choice((1, 1, 3, 20, 200)))
        other = draw.choice(corpus)
        at = draw.randrange(len(other))
        piece = draw.choice(
            ("", "{{", "%}", "{#", "'", "\0", "\ud7ff", expression(draw), statements(draw, 1), other[at : at + 99])
        )
        source = source[:begin] + piece * draw.choice((1, 1, 1, 2, 300)) + source[end:]
    return source
