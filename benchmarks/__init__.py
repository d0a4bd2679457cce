"""Commands that measure speed, memory and quality; README.md here lists them.

Each runs in the checkout's root as `python -m benchmarks.FOLDER.NAME`. Where enginewright is not installed, the checkout is
taken as the package, as the tests do.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

if "enginewright" not in sys.modules and importlib.util.find_spec("enginewright") is None:
    _spec = ModuleSpec("enginewright", None, is_package=True)
    _spec.submodule_search_locations = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["enginewright"] = importlib.util.module_from_spec(_spec)
