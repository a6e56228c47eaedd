"""The front door for texts: language models and classifiers, ULMFiT (Howard and Ruder 2018, arXiv 1801.06146)."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxfast.data import frames
from jaxfast.data.text import LanguageData, TextData, TextTokenizer, join_fields, language_data, text_data
from jaxfast.messages import check_number, check_type, check_whole, first, nearest
from jaxfast.models.awd_lstm import AWDLSTM, LanguageModel
from jaxfast.models.text_classifier import TextClassifier
from jaxfast.pretrained.awd_lstm import TextWeights, named
from jaxfast.text_learner import LanguageLearner, TextLearner, text_weights

__all__ = [
    "CLASSIFIER",
    "LANGUAGE_MODEL",
    "LanguageData",
    "LanguageLearner",
    "TextData",
    "TextLearner",
    "classifier_learner",
    "from_frame",
    "from_texts",
    "language_learner",
]

_SIZES = {"emb_size": 400, "hidden_size": 1152, "n_layers": 3}
LANGUAGE_MODEL = _SIZES | {
    "output_drop": 0.1, "hidden_drop": 0.15, "input_drop": 0.25, "embed_drop": 0.02, "weight_drop": 0.2,
}  # fmt: skip
"""A language model's `config` (fastai's awd_lstm_lm_config)."""
CLASSIFIER = _SIZES | {
    "output_drop": 0.4, "hidden_drop": 0.3, "input_drop": 0.4, "embed_drop": 0.05, "weight_drop": 0.5,
}  # fmt: skip
"""A classifier's `config` (fastai's awd_lstm_clas_config)."""


def from_frame(
    df: Any,
    *,
    text: str | Sequence[str] = "text",
    label: str | None = None,
    vocab: TextTokenizer | Sequence[str] | None = None,
    valid: float | str | Sequence[int] | Sequence[bool] = 0.2,
    batch_size: int = 64,
    bptt: int = 72,
    **options: Any,
) -> LanguageData | TextData:
    """One text per row of a data frame (pandas, polars ...): to classify by the column `label`, without it to model.

    `text`: a column, or several, which become fields of one text. `valid`: a fraction, row numbers, booleans, or the
    name of a column of booleans. `vocab`, `bptt` and `options` as in `from_texts`. ValueError for columns that are
    missing or hold something else.
    """
    frame = frames.to_frame(df)
    columns = (text,) if isinstance(text, str) else tuple(text)
    frames.check_columns(frame, [*columns, *([] if label is None else [label])], "there is no column")
    if isinstance(valid, str):
        frames.check_columns(frame, [valid], "valid=")
        mask = frame[valid]
        if frames.kind_of(mask) != frames.FLAG or mask.is_null().any():
            raise ValueError(f"valid={valid!r} must be a column of booleans without empty cells, it holds {mask.dtype}")
        valid = mask.to_numpy().astype(bool)
    fields = [frame[column].to_list() for column in columns]
    texts = fields[0] if len(fields) == 1 else [join_fields(row) for row in zip(*fields, strict=True)]
    labels = None if label is None else frame[label].to_list()
    return from_texts(texts, labels, vocab=vocab, valid=valid, batch_size=batch_size, bptt=bptt, **options)


def from_texts(
    texts: Sequence[str | bytes],
    labels: Sequence[Any] | None = None,
    *,
    vocab: TextTokenizer | Sequence[str] | None = None,
    valid: float | Sequence[int] | Sequence[bool] = 0.2,
    batch_size: int = 64,
    bptt: int = 72,
    **options: Any,
) -> LanguageData | TextData:
    """Texts to classify by `labels`, or without them to model in streams of `bptt` tokens.

    `vocab`: a tokenizer, such as another data's `codec.tokenizer`, or its words (default: learnt from the training
    texts). `options`: those of `data.text.language_data`, and with labels of `data.text.text_data`.
    """
    options = {"vocab": vocab, "valid": valid, "batch_size": batch_size, **options}
    return language_data(texts, bptt=bptt, **options) if labels is None else text_data(texts, labels, **options)


def language_learner(
    data: LanguageData,
    *,
    encoder: "TextLearner | TextWeights | str | os.PathLike | None" = None,
    config: Mapping[str, float] | None = None,
    drop_mult: float = 1.0,
    metrics: Sequence[str | Callable] = ("accuracy", "perplexity"),
    **options: Any,
) -> "LanguageLearner":
    """An AWD-LSTM language model of `data`, with AR 2 and TAR 1.

    `config`: what differs from `LANGUAGE_MODEL`: emb_size, hidden_size, n_layers and the dropouts, which `drop_mult`
    multiplies. `encoder`: weights to begin with, decoder included where they have one: a learner, a file of
    `save_encoder`, or a folder with fastai's pair of files (`pretrained.awd_lstm.read_text_weights`); they give the
    sizes, and words that they do not know get the mean embedding; the learner starts frozen then. `options` are
    `Learner`'s; momentum goes .8, .7, .8.
    """
    check_type("data", data, LanguageData, "text.from_frame without a label")
    weights = text_weights(encoder)
    found = _config(LANGUAGE_MODEL, config, drop_mult, weights)
    output_drop = found.pop("output_drop")
    module = LanguageModel(AWDLSTM(len(data.vocab), **found), data.batch_size, output_drop)
    return LanguageLearner(data, module, weights, metrics=metrics, **options)


def classifier_learner(
    data: TextData,
    *,
    encoder: "TextLearner | TextWeights | str | os.PathLike | None" = None,
    config: Mapping[str, float] | None = None,
    drop_mult: float = 1.0,
    hidden: Sequence[int] = (50,),
    bptt: int = 72,
    max_len: int = 1440,
    metrics: Sequence[str | Callable] = ("accuracy",),
    **options: Any,
) -> "TextLearner":
    """A `TextClassifier` of `data`: `encoder`, `config` (over `CLASSIFIER`) and `drop_mult` as in `language_learner`.

    `hidden`: widths of the head's layers. Texts are read in chunks of `bptt` tokens, and gradients come from the last
    `max_len` tokens. With an `encoder` the learner starts frozen: ULMFiT trains the head first, then more and more of
    the layers, each at a rate 2.6 times that of the one before: `freeze_to(-2)`, ..., `unfreeze()`, with
    `slice(lr / 2.6**4, lr)`.
    """
    check_type("data", data, TextData, "text.from_frame with a label")
    check_whole("bptt", bptt)
    check_whole("max_len", max_len)
    if not isinstance(hidden, Sequence) or not all(isinstance(width, int) and width > 0 for width in hidden):
        raise ValueError(f"hidden={hidden!r}: give the widths of the head's layers, such as (50,)")
    weights = text_weights(encoder)
    found = _config(CLASSIFIER, config, drop_mult, weights)
    output_drop = found.pop("output_drop")
    module = TextClassifier(
        AWDLSTM(len(data.vocab), **found), len(data.classes), tuple(hidden), (output_drop, *[0.1] * len(hidden)), bptt,
        max_len,
    )  # fmt: skip
    return TextLearner(data, module, weights, metrics=metrics, **{"resident": False, **options})


def _config(default: dict, given: Mapping | None, drop_mult: float, weights: TextWeights | None) -> dict:
    """The sizes and dropouts of a model; sizes are those of `weights`."""
    given = dict(given or {})
    check_number("drop_mult", drop_mult)
    unknown = [name for name in given if name not in default]
    if unknown:
        raise ValueError(
            f"config has {unknown[0]!r}: give some of {first(list(default), 20)}{nearest(unknown[0], default)}"
        )
    sizes = {} if weights is None else weights.sizes
    other = {name: given[name] for name in sizes if name in given and given[name] != sizes[name]}
    if other:
        raise ValueError(f"config has {named(other)}, the encoder {named(sizes)}: leave the sizes to the encoder")
    found = default | given | sizes
    for name in _SIZES:
        check_whole(name, found[name])
    for name in found.keys() - _SIZES.keys():
        check_number(name, found[name], 0, 1)
        found[name] *= drop_mult
        if found[name] >= 1:
            raise ValueError(f"{name} is {found[name]:g} with drop_mult={drop_mult:g}: a dropout lies below 1")
    return found
