"""Optional dependencies, imported when they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(module_name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import and return a module that one of the package's extras installs.

    Raises ImportError with the pip command when its distribution is not installed.

    >>> need("math", extra="plot", purpose="plots").__name__
    'math'
    """
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        top = module_name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise  # the module is there; what it imports itself is not
        raise ImportError(f"{purpose} need {top}: pip install 'jaxfast[{extra}]'") from None
