"""Builds an engine directory from a checkpoint: `python build_engine.py --model DIR --output DIR`.

The same as `enginewright build`; `--help` lists the options.
"""

import sys

from enginewright.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:]]))
