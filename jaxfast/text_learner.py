"""Learners of texts: an encoder that is handed on, and a language model that writes."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxfast.data.text.rules import PAD_ID, SPECIAL, UNK
from jaxfast.data.text.show import TextTable
from jaxfast.export import save_export
from jaxfast.learner import Learner
from jaxfast.losses import Loss, cross_entropy
from jaxfast.mesh import place, replicated
from jaxfast.messages import check_answer, check_number, check_whole
from jaxfast.models.generate import beam_search, sample
from jaxfast.pretrained.awd_lstm import TextWeights, named, read_text_weights, save_text_weights

_MOMS = (0.8, 0.7, 0.8)


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
        save_export(path, module, self.state.variables, self.data, self.loss)

    def load_encoder(self, encoder: "TextLearner | TextWeights | str | os.PathLike") -> None:
        """Take over an encoder as `language_learner` does, and freeze all but the last group (fastai's load_encoder).

        Raises ValueError if its sizes differ.
        """
        self._take(text_weights(encoder))

    def _take(self, weights: TextWeights) -> None:
        params = self.state.params
        there, ours = weights.sizes, TextWeights(params, ()).sizes
        if there != ours:
            raise ValueError(f"the encoder has {named(there)}, the model {named(ours)}: give the config of one of them")
        new = {name: tree for name, tree in weights.fitted(self.data.vocab).params.items() if name in params}
        layout = jax.tree.map(lambda x: x.sharding, {name: params[name] for name in new})
        self.state = self.state.replace(params={**params, **place(new, layout)})
        self.freeze()  # as fastai's load_encoder


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
        advance, state = self._advance_from(beams or 1)
        if beams is None:
            new = sample(advance, state, prompt, n_words, temperature=temperature, top_p=top_p, seed=seed)
        else:
            new = beam_search(advance, self._rows, state, prompt, n_words, beams)
        return self.data.decode(prompt + new)

    def show_results(self, n: int = 9, seed: int = 0, *, n_words: int = 20) -> TextTable:
        """A table of `n` validation texts drawn with `seed`: how each begins, how it goes on for `n_words` tokens, and
        how the model does (temperature .75)."""
        check_whole("n_words", n_words)
        documents, rows, decode = self.data.valid.documents, [], self.data.decode
        for i in np.random.default_rng(seed).permutation(len(documents))[:n]:
            ids = documents[int(i)].tolist()
            cut = min(n_words, (len(ids) + 1) // 2)
            advance, state = self._advance_from(1)
            new = sample(advance, state, ids[:cut], n_words, temperature=0.75, top_p=None, seed=seed)
            rows.append((decode(ids[:cut]), decode(ids[cut : cut + n_words]), decode(new)))
        return TextTable(("text", "goes on", "the model goes on"), tuple(rows))

    def _advance_from(self, rows: int) -> tuple[Callable, Any]:
        """The compiled step of generation with today's parameters, and the state that it begins with."""
        variables = self.state.variables
        state = place(self.module.encoder.initial_state(rows), replicated(self.mesh))

        def advance(tokens: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
            scores, state = self._advance(variables, tokens, state)
            check_answer(np.asarray(scores).max(-1))  # words that are never written have -inf
            return scores, state

        return advance, state

    def export(self, path: str | os.PathLike) -> None:
        """ValueError: an export answers one item by itself, and a language model goes on from word to word."""
        raise ValueError("a language model cannot be exported: keep it with save or save_encoder, export a classifier")

    @property
    def _advance(self) -> Callable:
        module, size = self.module, len(self.data.vocab)
        never = np.isin(np.arange(size), [SPECIAL.index(UNK), PAD_ID])

        def advance(variables, tokens, state):
            logits, state = module.apply(variables, tokens, state, method="advance")
            return jax.nn.log_softmax(jax.numpy.where(never, -jax.numpy.inf, logits)), state

        return self.programs.get("advance", (module, size), lambda: jax.jit(advance))

    @property
    def _rows(self) -> Callable:
        take = lambda state, rows: jax.tree.map(lambda x: x[rows], state)
        return self.programs.get("rows", (), lambda: jax.jit(take))


def text_weights(encoder) -> TextWeights | None:
    """The weights that are meant by an encoder: a learner, a file of `save_encoder`, a folder of fastai's."""
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
