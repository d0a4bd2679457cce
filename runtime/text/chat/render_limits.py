"""The limits of a chat template: time, memory, and the length of the text that it writes."""

from __future__ import annotations

CORE_SECONDS = 2.0
"""The most that a template may take of a core, compilation included, before its process is killed."""
WAIT_SECONDS = 6.0
"""The longest that a rendering may take where the machine has other work, and the longest that one may wait for others."""
START_SECONDS = 30.0
"""The longest that the start of a process may take, which is 0.1 s on an idle machine."""
ADDRESS_SPACE = 512 << 20
"""Bytes that a template's process may map, of which the interpreter and Jinja take about 30 MiB."""
FREE_CHARACTERS, PER_BYTE = 1 << 20, 16
"""A text may have this many characters, and so many more for each byte of the conversation and the template."""
