"""Writes the model of a GGUF file as an ordinary checkpoint in float32, for runtimes that read no GGUF.

    python -m benchmarks.peers.write_checkpoint --gguf FILE.gguf --output CHECKPOINT

Its weights are the numbers that the file's blocks stand for. Config, tokenizer and chat template lie next to them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.reference import load_reference


def main(arguments: Sequence[str]) -> int:
    """Write the checkpoint into a new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True, metavar="FILE.gguf")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a folder that does not exist")
    args = parser.parse_args(arguments)
    if args.output.exists():
        parser.error(f"--output: got {args.output}, which exists, expected a new folder")
    write_checkpoint(args.gguf, args.output)
    return 0


def write_checkpoint(file: str, folder: Path) -> None:
    """Write the model of a GGUF file to a new folder, float32."""
    opened = open_checkpoint(file)
    load_reference(file, ()).save_pretrained(folder)
    for name in opened.file_names():
        if not (folder / name).exists():
            (folder / name).write_bytes(opened.read_file(name))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
