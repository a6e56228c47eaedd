"""The fast.ai practice of training neural networks, as pure functions on JAX.

The public names load when they are first used, so that `import jaxfast` does not even import jax.
"""

import importlib

__version__ = "0.1.0"

_modules = (
    "augment",
    "collab",
    "data",
    "interpret",
    "kernels",
    "losses",
    "mesh",
    "metrics",
    "mix",
    "models",
    "optim",
    "plot",
    "precision",
    "pretrained",
    "schedules",
    "sweep",
    "tabular",
    "text",
    "training",
    "vision",
)
_names = {"Learner": "jaxfast.learner", "load_export": "jaxfast.export"}

__all__ = [*_modules, *_names]


def __getattr__(name):
    if name in _modules:
        return importlib.import_module(f"jaxfast.{name}")
    if name in _names:
        return getattr(importlib.import_module(_names[name]), name)
    raise AttributeError(f"module 'jaxfast' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
