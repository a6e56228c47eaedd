"""Image models in Flax Linen, one architecture a file."""

from jaxfast.models.classifier import ImageClassifier
from jaxfast.models.efficientnet_lite import (
    EfficientNetLite,
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
)
from jaxfast.models.heads import ClassifierHead, LinearHead
from jaxfast.models.layers import BatchNorm, Conv
from jaxfast.models.resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152

__all__ = [
    "BatchNorm",
    "ClassifierHead",
    "Conv",
    "EfficientNetLite",
    "ImageClassifier",
    "LinearHead",
    "ResNet",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
]
