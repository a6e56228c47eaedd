"""Foreign weights to Flax variables, without the framework that wrote them."""

from jaxfast.pretrained.channels import adapt_statistics
from jaxfast.pretrained.names import load_body, to_torch_names, to_variables, torch_name
from jaxfast.pretrained.read import read_weights
from jaxfast.pretrained.sources import Weights, find_weights, weights_path

__all__ = [
    "Weights",
    "adapt_statistics",
    "find_weights",
    "load_body",
    "read_weights",
    "to_torch_names",
    "to_variables",
    "torch_name",
    "weights_path",
]
