"""A corpus of English and code with real word statistics: the sources and language reference of the running Python.

Other Python versions have other texts, so figures are comparable only within one version. A document's name decides whether it
is held out.
"""

import random
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

HELD_OUT_SHARE = 24  # one in this many documents is never trained on
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
SMALLEST, LARGEST = 500, 200_000  # characters: neither empty modules nor tables
LARGEST_HELD_OUT = 24_000  # characters, so that no one document is most of the held-out text
HAVE_TWINS = {"io.py", "sndhdr.py"}  # a sixth of their lines are also in modules that are trained on


@dataclass(frozen=True, kw_only=True)
class Document:
    """One source file, or one topic of the language reference."""

    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether this document is for evaluation and never trained on."""
        return zlib.crc32(self.name.encode()) % HELD_OUT_SHARE == 0


def documents() -> Iterator[Document]:
    """Yield every document, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if LEFT_OUT.isdisjoint(name.split("/")):
            text = path.read_text(encoding="utf-8", errors="replace")
            if SMALLEST <= len(text) <= LARGEST:
                yield Document(name=name, text=text)
    for topic in sorted(topics):
        if len(topics[topic]) >= SMALLEST:
            yield Document(name=f"topic {topic}", text=topics[topic])


def held_out_text() -> str:
    """The held-out documents in a fixed shuffled order, with blank lines in between.

    Documents with their own copyright notice are left out, so that the rest is under Python's licence alone.
    """
    texts = [document.text for document in documents() if document.held_out and document.name not in HAVE_TWINS]
    texts = [text for text in texts if len(text) <= LARGEST_HELD_OUT and "copyright" not in text.lower()]
    random.Random(0).shuffle(texts)
    return "\n\n".join(texts)


if __name__ == "__main__":
    print("\n\n".join(document.text for document in documents() if not document.held_out))
