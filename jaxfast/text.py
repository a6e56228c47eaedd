"""The front door for texts: language models and classifiers, ULMFiT (Howard and Ruder 2018, arXiv 1801.06146)."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxfast.data import frames
from jaxfast.data.text import LanguageData, TextData, TextTokenizer, join_fields, language_data, text_data
from jaxfast.data.text.rules import PAD_ID, SPECIAL, UNK
from jaxfast.export import save_export
from jaxfast.learner import Learner
from jaxfast.losses import Loss, cross_entropy
from jaxfast.mesh import place, replicated
from jaxfast.messages import check_number, check_type, check_whole, first, nearest
from jaxfast.models.awd_lstm import AWDLSTM, LanguageModel
from jaxfast.models.generate import beam_search, sample
from jaxfast.models.text_classifier import TextClassifier
from jaxfast.pretrained.awd_lstm import TextWeights, read_text_weights, save_text_weights

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
_MOMS = (0.8, 0.7, 0.8)


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
    sizes, and words that they do not know get the mean embedding. `options` are `Learner`'s; momentum goes .8, .7, .8.
    """
    check_type("data", data, LanguageData, "text.from_frame without a label")
    weights = _weights(encoder)
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
    `max_len` tokens. ULMFiT trains the head first, then more and more of the layers, each at a rate 2.6 times that of
    the one before: `freeze()`, `freeze_to(-2)`, ..., `unfreeze()`, with `slice(lr / 2.6**4, lr)`.
    """
    check_type("data", data, TextData, "text.from_frame with a label")
    check_whole("bptt", bptt)
    check_whole("max_len", max_len)
    if not isinstance(hidden, Sequence) or not all(isinstance(width, int) and width > 0 for width in hidden):
        raise ValueError(f"hidden={hidden!r}: give the widths of the head's layers, such as (50,)")
    weights = _weights(encoder)
    found = _config(CLASSIFIER, config, drop_mult, weights)
    output_drop = found.pop("output_drop")
    module = TextClassifier(
        AWDLSTM(len(data.vocab), **found), len(data.classes), tuple(hidden), (output_drop, *[0.1] * len(hidden)), bptt,
        max_len,
    )  # fmt: skip
    return TextLearner(data, module, weights, metrics=metrics, **{"resident": False, **options})


class TextLearner(Learner):
    """A `Learner` whose module has an encoder that can be saved, and taken over by another learner."""

    def __init__(self, data, module, weights: TextWeights | None = None, *, loss: Loss = cross_entropy, **options: Any):
        super().__init__(data, module, loss=loss, **{"moms": _MOMS, **options})
        if weights is not None:
            self._take(weights)

    @property
    def weights(self) -> TextWeights:
        """The encoder's parameters, and a language model's decoder, with the vocabulary."""
        params = jax.device_get(self.state.params)
        return TextWeights({name: params[name] for name in ("encoder", "bias") if name in params}, self.data.vocab)

    def save_encoder(self, path: str | os.PathLike) -> None:
        """Write the encoder and its vocabulary into one safetensors file."""
        save_text_weights(path, self.weights)

    def export(self, path: str | os.PathLike) -> None:
        """Write the classifier as one file that reads texts of any length: `export.save_export`."""
        # Chunks of the size that every padded length is a multiple of, and a program for every platform.
        module = self.module.clone(encoder=self.module.encoder.clone(kernel="scan"), bptt=8)
        save_export(path, module, self.state.variables, self.data, self._programs.loss)

    def load_encoder(self, encoder: "TextLearner | TextWeights | str | os.PathLike") -> None:
        """Take over an encoder as `language_learner` does; ValueError where its sizes differ."""
        self._take(_weights(encoder))

    def _take(self, weights: TextWeights) -> None:
        params = self.state.params
        there, ours = weights.sizes, TextWeights(params, ()).sizes
        if there != ours:
            raise ValueError(
                f"the encoder has {_named(there)}, the model {_named(ours)}: give the config of one of them"
            )
        new = {name: tree for name, tree in weights.fitted(self.data.vocab).params.items() if name in params}
        layout = jax.tree.map(lambda x: x.sharding, {name: params[name] for name in new})
        self.state = self.state.replace(params={**params, **place(new, layout)})


class LanguageLearner(TextLearner):
    """A `Learner` of a language model: `predict` writes on."""

    def predict(
        self,
        text: str,
        n_words: int = 30,
        *,
        temperature: float = 0.75,
        top_p: float | None = None,
        beams: int | None = None,
        seed: int = 0,
    ) -> str:
        """`text` and `n_words` more tokens: drawn by chance with `seed`, or by `beams` the likeliest that are found.

        `temperature` below 1 prefers likely words; `top_p` leaves only the likeliest, which together have that
        probability (nucleus sampling). xxunk and xxpad are never written. ValueError for numbers out of range, and for
        `top_p` with `beams`.
        """
        check_whole("n_words", n_words)
        check_number("temperature", temperature)
        if temperature == 0 or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(f"temperature={temperature}, top_p={top_p}: give numbers above 0, top_p up to 1")
        if beams is not None:
            check_whole("beams", beams)
            if top_p is not None:
                raise ValueError("beams finds the likeliest text, top_p draws one: give one of them")
        prompt = self.data.encode(text)["text"].tolist()
        variables = self.state.variables
        state = place(self.module.encoder.initial_state(beams or 1), replicated(self.mesh))
        advance = lambda tokens, state: self._advance(variables, tokens, state)
        if beams is None:
            new = sample(advance, state, prompt, n_words, temperature=temperature, top_p=top_p, seed=seed)
        else:
            new = beam_search(advance, self._rows, state, prompt, n_words, beams)
        return self.data.decode(prompt + new)

    def export(self, path: str | os.PathLike) -> None:
        """ValueError: an export answers one item by itself, and a language model goes on from word to word."""
        raise ValueError("a language model cannot be exported: keep it with save or save_encoder, export a classifier")

    @cached_property
    def _advance(self) -> Callable:
        never = np.isin(np.arange(len(self.data.vocab)), [SPECIAL.index(UNK), PAD_ID])

        def advance(variables, tokens, state):
            logits, state = self.module.apply(variables, tokens, state, method="advance")
            return jax.nn.log_softmax(jax.numpy.where(never, -jax.numpy.inf, logits)), state

        return jax.jit(advance)

    @cached_property
    def _rows(self) -> Callable:
        return jax.jit(lambda state, rows: jax.tree.map(lambda x: x[rows], state))


def _weights(encoder) -> TextWeights | None:
    if encoder is None or isinstance(encoder, TextWeights):
        return encoder
    if isinstance(encoder, TextLearner):
        return encoder.weights
    if isinstance(encoder, (str, os.PathLike)):
        return read_text_weights(encoder)
    raise ValueError(
        f"encoder is {type(encoder).__name__}: give a learner of text.language_learner, a file of save_encoder, or a "
        "folder of fastai's"
    )


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
        raise ValueError(f"config has {_named(other)}, the encoder {_named(sizes)}: leave the sizes to the encoder")
    found = default | given | sizes
    for name in _SIZES:
        check_whole(name, found[name])
    for name in found.keys() - _SIZES.keys():
        check_number(name, found[name], 0, 1)
        found[name] *= drop_mult
        if found[name] >= 1:
            raise ValueError(f"{name} is {found[name]:g} with drop_mult={drop_mult:g}: a dropout lies below 1")
    return found


def _named(sizes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sizes.items())
