"""Chat templates that ask for more time, memory or depth than a serving process has."""

from __future__ import annotations

_DOUBLED = "{% set ns = namespace(x=%s) %}{% for i in range(200) %}{% set ns.x = %s %}{% endfor %}"
_NESTED = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4


def doubled(start: str, step: str, end: str = "") -> str:
    """A value that grows 200 times, and what is then done with it."""
    return _DOUBLED.replace("%s", start, 1).replace("%s", step, 1) + end


MEMORY = {
    "text times number": "{{ 'a' * 10**10 }}",
    "list times number": "{{ [messages] * 10**9 }}",
    "text times number, not constant": "{{ messages[0].content * 10**10 }}",
    "center": "{{ 'a'.center(10**10) }}",
    "ljust": "{{ messages[0].content.ljust(10**10) }}",
    "zfill": "{{ messages[0].content.zfill(10**10) }}",
    "center filter": "{{ messages[0].content | center(10**10) }}",
    "indent filter": "{{ ('a\n' * 10**6) | indent(10**6) }}",
    "replace": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "replace filter": "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
    "translate": "{{ ('a' * 10**6).translate({97: 'b' * 10**6}) }}",
    "expandtabs": "{{ ('\t' * 10**6).expandtabs(10**6) }}",
    "join": "{{ ('b' * 10**6).join(['a'] * 10**6) }}",
    "join filter": "{{ (['a'] * 10**6) | join('b' * 10**6) }}",
    "format": "{{ '{:10000000000}'.format('a') }}",
    "format by width": "{{ '{:{}}'.format('a', 10**10) }}",
    "percent": "{{ '%10000000000s' % 'a' }}",
    "percent by width": "{{ '%*d' % (2 * 10**9, 1) }}",
    "format filter": "{{ '%2000000000s' | format('a') }}",
    "precision": "{{ '%.2000000000f' | format(1.5) }}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "list of a range": "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = ns.x + [range(99999) | list] %}{% endfor %}",
    "doubled text": doubled("'ab'", "ns.x ~ ns.x"),
    "doubled list": doubled("[1]", "ns.x + ns.x"),
    "doubled in a list": doubled("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
    "doubled as JSON": doubled("[1]", "[ns.x, ns.x]", "{{ ns.x | tojson }}"),
    "doubled indent": "{{ [[1] * 10**6] | tojson(indent=10**5) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9, 'x') | list }}",
    "lorem": "{{ lipsum(10**9) }}",
    "long output": "{% for i in range(99999) %}{{ 'a' * 10**5 }}{% endfor %}",
    "strftime": "{{ strftime_now('%c' * 10**8) }}",
}
"""Those that ask for memory, or for a longer text than there may be."""

TIME = {
    "nested ranges": _NESTED,
    "power": "{{ (7 ** (10**9)) % 10 }}",
    "doubled digits": doubled("7", "ns.x * ns.x", "{{ ns.x % 10 }}"),
    "doubled comparison": doubled("[1]", "[ns.x, ns.x]", "{% set a = ns.x %}")
    + doubled("[1]", "[ns.x, ns.x]", "{{ a == ns.x }}"),
    "doubled hash": doubled("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    "sum of lists": "{{ ([[1] * 100] * 10**6) | sum(start=[]) | length }}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(200) }}",
    "recursive loop": "{% for i in [0, 1] recursive %}{% if loop.depth < 200 %}{{ loop([0, 1]) }}{% endif %}{% endfor %}",
    "backtracking": "{{ ('a@' * 10**6) | urlize }}",
    "long search": "{{ ('a' * 10**6 + 'b') in ('a' * 10**7) * 20 }}{% for i in range(9999) %}{{ ('a' * 10**6).count('aab') }}{% endfor %}",
}
"""Those that ask for time."""

DEPTH = {
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "lists": "{{ " + "[" * 50_000 + "]" * 50_000 + " }}",
    "ifs": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "fors": "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "long sum": "{{ " + "+".join(["messages"] * 50_000) + " }}",
    "not": "{{ " + "not " * 50_000 + "1 }}",
    "filters": "{{ 1" + " | string" * 50_000 + " }}",
    "macros in macros": "".join(f"{{% macro m{i}() %}}" for i in range(3_000)) + "{% endmacro %}" * 3_000,
    "deep value": doubled("[]", "[ns.x]").replace("200", "99999") + "{{ ns.x }}",
}
"""Those that nest deeper than Python or its compiler goes."""
