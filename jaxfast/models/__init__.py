"""Image models in Flax Linen, one architecture a file."""

from jaxfast.models.classifier import ImageClassifier
from jaxfast.models.densenet import DenseNet, densenet121, densenet161, densenet169, densenet201
from jaxfast.models.efficientnet_lite import (
    EfficientNetLite,
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
)
from jaxfast.models.heads import ClassifierHead, LinearHead
from jaxfast.models.layers import BatchNorm, Conv
from jaxfast.models.resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152
from jaxfast.models.unet import DynamicUnet
from jaxfast.models.vgg import VGG, VGGHead, vgg16, vgg16_bn, vgg19, vgg19_bn
from jaxfast.models.xresnet import XResNet, xresnet18, xresnet34, xresnet50, xresnet101

__all__ = [
    "VGG",
    "BatchNorm",
    "ClassifierHead",
    "Conv",
    "DynamicUnet",
    "DenseNet",
    "EfficientNetLite",
    "ImageClassifier",
    "LinearHead",
    "ResNet",
    "VGGHead",
    "XResNet",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "xresnet101",
    "xresnet18",
    "xresnet34",
    "xresnet50",
]
