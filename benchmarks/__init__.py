"""Commands that measure speed, memory and quality; README.md in this folder lists them.

Each runs in the checkout's root as `python -m benchmarks.FOLDER.NAME`. If enginewright is not installed, the checkout serves
as the package, as it does for the tests.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

if "enginewright" not in sys.modules and importlib.util.find_spec("enginewright") is None:
    _spec = ModuleSpec("enginewright", None, is_package=True)
    _spec.submodule_search_locations = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["enginewright"] = importlib.util.module_from_spec(_spec)
