"""Scripts that stand outside the package, evaluation/ and docs/, loaded as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_script(path: Path, name: str | None = None) -> ModuleType:
    """The module of a script, anew at each call.

    Args:
        path: of the script.
        name: under which dataclasses look it up; default that of the file.
    """
    if str(path.parent) not in sys.path:  # where a script that is run finds those beside it
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
