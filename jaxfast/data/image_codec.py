"""How an image becomes a model's input, and a model's output an answer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from jaxfast.data.images import read_image
from jaxfast.data.points import to_pixels
from jaxfast.data.prediction import KeyPoints, Prediction, Segmentation, Value, shares
from jaxfast.messages import first


@dataclass(frozen=True)
class ImageCodec:
    """Images of `size` (height, width) and `channels`, brought there by `resize`; answers out of `classes`.

    `task` is "single_label", the likeliest class; "multi_label", every class above one half; "segmentation", the
    likeliest class of every pixel; "regression", numbers, and "points", places, which `classes` are the names of.
    `view` is the size of the part, in the middle, that the model sees, None for all.
    """

    size: tuple[int, int]
    resize: str
    channels: int
    classes: tuple[str, ...]
    task: str
    view: tuple[int, int] | None = None
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

    def decode(self, outputs: np.ndarray) -> Prediction | Segmentation | Value | KeyPoints:
        """What the activated outputs of one item say.

        Probabilities (classes,): the likeliest class, or all above one half; (height, width, classes): the likeliest
        class of every pixel. Numbers (k,) as they are, one alone as a float. Places (k, 2) from -1..1 over what the
        model sees to pixels of the image at `size`.
        """
        if self.task == "segmentation":
            return Segmentation(outputs.argmax(-1).astype(np.uint8), outputs, self.classes)
        if self.task == "regression":
            return Value(float(outputs[0]) if len(self.classes) == 1 else outputs)
        if self.task == "points":
            view = self.view or self.size
            corner = [(whole - part) // 2 for whole, part in zip(self.size, view, strict=True)]
            points = to_pixels(np.asarray(outputs, np.float64), view) + corner[::-1]
            return KeyPoints(points, self.classes, self.size, self.resize)
        if self.task == "single_label":
            index = int(outputs.argmax())
            return Prediction(self.classes[index], index, outputs, self.classes)
        on = outputs > 0.5
        return Prediction(self.label(on), np.flatnonzero(on), outputs, self.classes)

    def label(self, target: np.ndarray | int) -> str:
        """A target in words: its class, all of its classes, the shares of a mask's classes, numbers, or places in
        pixels of the image at `size`."""
        if self.task == "single_label":
            return self.classes[int(target)]
        if self.task == "segmentation":
            return shares(target, self.classes)
        if self.task == "regression":
            named = zip(self.classes, target, strict=True)
            return f"{target[0]:.4g}" if len(target) == 1 else first([f"{n} {x:.4g}" for n, x in named])
        if self.task == "points":
            named = zip(self.classes, to_pixels(target, self.size), strict=True)
            return first([f"{name} ({x:.1f}, {y:.1f})" for name, (x, y) in named])
        return ", ".join(name for name, on in zip(self.classes, target, strict=True) if on) or "(none)"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values.

        >>> list(ImageCodec((64, 64), "crop", 3, ("cat", "dog"), "single_label").to_json().values())
        [[64, 64], 'crop', 3, ['cat', 'dog'], 'single_label', None]
        """
        view = None if self.view is None else list(self.view)
        return asdict(self) | {"size": list(self.size), "classes": list(self.classes), "view": view}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ImageCodec":
        """The codec that `to_json` gave the fields of; TypeError for other fields."""
        view = None if fields.get("view") is None else tuple(fields["view"])
        return cls(**{**fields, "size": tuple(fields["size"]), "classes": tuple(fields["classes"]), "view": view})
