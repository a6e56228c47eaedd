"""How an image becomes a model's input, and a model's output an answer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from jaxfast.data.images import read_image
from jaxfast.data.prediction import Prediction
from jaxfast.messages import first


@dataclass(frozen=True)
class ImageCodec:
    """Images of `size` (height, width) and `channels`, brought there by `resize`; answers out of `classes`.

    `task` is "single_label", the likeliest class, or "multi_label", every class above one half.
    """

    size: tuple[int, int]
    resize: str
    channels: int
    classes: tuple[str, ...]
    task: str
    kind: ClassVar[str] = "image"

    def encode(self, item: Any) -> dict[str, np.ndarray]:
        """{"image": uint8 (height, width, channels)} of a path, bytes, a PIL image, an array, or such an example.

        Raises ValueError for what is not an image, FileNotFoundError for a missing file.
        """
        from PIL import Image

        if isinstance(item, Mapping):
            if "image" not in item:
                raise ValueError(f"an example needs an entry 'image', this one has {first(list(item))}")
            item = item["image"]
        Image.init()  # load Pillow's plugins before a thread opens a file: two at once can miss a format
        return {"image": read_image(item, self.size, self.resize, self.channels)}

    def decode(self, probabilities: np.ndarray) -> Prediction:
        """What the probabilities of one item, (classes,), say: the likeliest class, or all above one half."""
        if self.task == "single_label":
            index = int(probabilities.argmax())
            return Prediction(self.classes[index], index, probabilities)
        on = probabilities > 0.5
        return Prediction(self.label(on), np.flatnonzero(on), probabilities)

    def label(self, target: np.ndarray | int) -> str:
        """The name of a target: its class, or all of its classes."""
        if self.task == "single_label":
            return self.classes[int(target)]
        return ", ".join(name for name, on in zip(self.classes, target, strict=True) if on) or "(none)"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values.

        >>> ImageCodec((64, 64), "crop", 3, ("cat", "dog"), "single_label").to_json()
        {'size': [64, 64], 'resize': 'crop', 'channels': 3, 'classes': ['cat', 'dog'], 'task': 'single_label'}
        """
        return asdict(self) | {"size": list(self.size), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ImageCodec":
        """The codec that `to_json` gave the fields of; TypeError for other fields."""
        return cls(**{**fields, "size": tuple(fields["size"]), "classes": tuple(fields["classes"])})
