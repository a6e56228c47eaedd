"""Metrics of numbers: squared and absolute errors, and the share of the variance that is explained."""

import jax.numpy as jnp
import numpy as np

from jaxfast.metrics.protocol import HostMetric, Metric, mean_of


def mse() -> Metric:
    """The mean squared error."""
    return mean_of("mse", lambda outputs, target: jnp.square(_difference("mse", outputs, target)))


def rmse() -> Metric:
    """The root of the mean squared error over the whole set."""
    return mean_of("rmse", lambda outputs, target: jnp.square(_difference("rmse", outputs, target)), np.sqrt)


def mae() -> Metric:
    """The mean absolute error."""
    return mean_of("mae", lambda outputs, target: jnp.abs(_difference("mae", outputs, target)))


def r2() -> HostMetric:
    """1 - squared errors / squared deviations of the targets from their mean, averaged over columns (scikit-learn's
    r2_score).

    In fp64 on the host: a variance from fp32 sums cancels where the mean is large beside it (years, prices). A
    constant target gives 1 if it is met exactly, else 0.
    """

    def compute(outputs, targets):
        errors = _difference("r2", np.asarray(outputs, np.float64), np.asarray(targets, np.float64))
        errors = errors.reshape(len(targets), -1)
        truth = np.asarray(targets, np.float64).reshape(errors.shape)
        left, spread = (errors**2).sum(0), ((truth - truth.mean(0)) ** 2).sum(0)
        constant = spread == 0
        explained = 1 - left / np.where(constant, 1, spread)
        return float(np.where(constant, left == 0, explained).mean())

    return HostMetric("r2", compute, check=compute)


def _difference(name, outputs, target):
    if outputs.size != target.size or outputs.shape[:1] != target.shape[:1]:
        raise ValueError(
            f"metric {name!r} compares numbers one by one: the outputs have the shape {outputs.shape}, "
            f"the targets {target.shape}"
        )
    if not isinstance(outputs, np.ndarray):
        outputs, target = outputs.astype(jnp.float32), target.astype(jnp.float32)
    return outputs.reshape(target.shape) - target
