"""How a text becomes a model's input, and a model's output an answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxfast.data.prediction import Prediction
from jaxfast.data.text.checks import as_text
from jaxfast.data.text.rules import PAD_ID
from jaxfast.data.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class TextCodec:
    """Texts by `tokenizer`, padded to one of a few `lengths`; answers out of `classes`, None for a language model.

    A text of more than `max_length` tokens keeps its last ones. A language model's texts are not padded.
    """

    kind: ClassVar[str] = "text"

    tokenizer: TextTokenizer
    classes: tuple[str, ...] | None = None
    lengths: tuple[int, ...] = ()
    max_length: int | None = None

    def padded_length(self, n: int) -> int:
        """The smallest of `lengths` that holds `n` tokens; beyond them, a multiple of the largest.

        >>> TextCodec(TextTokenizer("{}"), ("no", "yes"), (40, 100)).padded_length(130)
        200
        """
        return next((length for length in self.lengths if length >= n), -(-n // self.lengths[-1]) * self.lengths[-1])

    def encode(self, item: Any) -> dict[str, np.ndarray]:
        """{"text": int32 (padded length,), "length": int32 ()} of a text, or such an example itself.

        {"text": int32 (tokens,)} for a language model. ValueError for what is neither str nor bytes.
        """
        if isinstance(item, Mapping):
            return {name: np.asarray(item[name]) for name in ("text", "length") if name in item}
        ids = self.tokenizer.encode([as_text(item)])[0].astype(np.int32)
        if self.classes is None:
            return {"text": ids}
        ids = ids[-(self.max_length or len(ids)) :]
        return {"text": pad(ids, self.padded_length(len(ids))), "length": np.int32(len(ids))}

    def decode(self, outputs: np.ndarray) -> Prediction | str:
        """The likeliest class by the probabilities of one text, (classes,); of a language model's ids, their text."""
        if self.classes is None:
            return self.tokenizer.decode(outputs)
        index = int(outputs.argmax())
        return Prediction(self.classes[index], index, outputs, self.classes)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives an equal codec."""
        classes = None if self.classes is None else list(self.classes)
        tokenizer = self.tokenizer.to_json()
        lengths = list(self.lengths)
        return {
            "kind": self.kind,
            "tokenizer": tokenizer,
            "classes": classes,
            "lengths": lengths,
            "max_length": self.max_length,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "TextCodec":
        classes = None if stored["classes"] is None else tuple(stored["classes"])
        tokenizer = TextTokenizer.from_json(stored["tokenizer"])
        return cls(tokenizer, classes, tuple(stored["lengths"]), stored["max_length"])


def pad(ids: np.ndarray, length: int) -> np.ndarray:
    """`ids`, int32, with xxpad after them up to `length`: after, so that a recurrent state never reads padding."""
    return np.concatenate([ids, np.full(length - len(ids), PAD_ID)]).astype(np.int32)
