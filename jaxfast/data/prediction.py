"""What a model says of one item, in the reader's terms."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A classifier's answer: the `label`, its `index`, and the `probabilities` of all classes, shape (classes,).

    With any number of labels per item, `label` holds all names above one half and `index` their numbers, an array.
    """

    label: str
    index: int | np.ndarray
    probabilities: np.ndarray

    def __repr__(self) -> str:
        shown = ", ".join(f"{p:.3f}" for p in self.probabilities[:10])
        more = ", ..." if len(self.probabilities) > 10 else ""
        return f"Prediction({self.label!r}, index={self.index}, probabilities=[{shown}{more}])"
