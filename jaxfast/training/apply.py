"""Calling a module: in training mode where it takes one."""

import inspect
from typing import Any

import flax.linen as nn

from jaxfast.messages import first
from jaxfast.models.layers import BatchNorm

_MODAL = (BatchNorm, nn.BatchNorm, nn.Dropout)
"""Layers that compute something else in training."""


def apply(module: nn.Module, variables: dict, *inputs: Any, train: bool, **options: Any) -> Any:
    """`module.apply`, with `train` where the module's `__call__` takes it."""
    return module.apply(variables, *inputs, **(mode(module, train)), **options)


def mode(module: nn.Module, train: bool) -> dict[str, bool]:
    """{"train": train} for a module whose `__call__` takes it, {} for others.

    `nn.Sequential` passes keywords to its first layer only, so it is called without.

    >>> mode(nn.Dense(3), True), mode(nn.Sequential([nn.Dense(3)]), True)
    ({}, {})
    """
    if isinstance(module, nn.Sequential):
        return {}
    parameters = inspect.signature(type(module).__call__).parameters
    takes = "train" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {"train": train} if takes else {}


def check_module(module: nn.Module) -> None:
    """Raise ValueError, with a module that does it, if an `nn.Sequential` has layers of two modes."""
    if not isinstance(module, nn.Sequential):
        return
    modal = list(dict.fromkeys(type(layer).__name__ for layer in module.layers if isinstance(layer, _MODAL)))
    if modal:
        raise ValueError(
            f"nn.Sequential does not tell {first(modal)} whether it trains: write the module out, such as\n\n"
            "class Net(nn.Module):\n"
            "    @nn.compact\n"
            "    def __call__(self, x, train=False):\n"
            "        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(64)(x)))\n"
            "        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))"
        )
