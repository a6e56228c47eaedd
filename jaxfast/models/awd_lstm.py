"""AWD-LSTM (Merity et al. 2017, https://arxiv.org/abs/1708.02182): an encoder of texts, and a language model."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.kernels.embedding import embed
from jaxfast.kernels.lstm import lstm

State = tuple[tuple[jax.Array, jax.Array], ...]
"""(h, c) of each layer, (batch, width) and fp32."""


class Drawn(NamedTuple):
    """The weights of one pass over a batch, with what dropout leaves of them, and the masks of its activations.

    `layers`: (input_kernel, hidden_kernel, bias) each. `words` (vocabulary,): what an embedding is multiplied by;
    `inputs` (batch, emb_size) and `hidden`, (batch, width) between two layers: the same at every step. None: no
    dropout.
    """

    embedding: jax.Array
    layers: tuple[tuple[jax.Array, jax.Array, jax.Array], ...]
    words: jax.Array | None
    inputs: jax.Array | None
    hidden: tuple[jax.Array | None, ...]


class AWDLSTM(nn.Module):
    """The encoder: an embedding and layers of LSTM, the last as wide as the embedding (fastai's AWD_LSTM).

    Dropout, each kind at its rate: of whole words of the vocabulary (`embed_drop`), of embedded numbers (`input_drop`)
    and outputs between the layers (`hidden_drop`) alike at every step (Gal and Ghahramani 2016), and of the
    hidden-to-hidden weights (`weight_drop`; Wan et al. 2013). Embeddings start in U(-.1, .1), layers in U(-1, 1) /
    sqrt(width), as in torch. `kernel`: as for `kernels.lstm`. Parameters "embedding" (vocab_size, emb_size), and
    "input_kernel", "hidden_kernel", "bias" of "rnn0", "rnn1", ...; the state is fp32 whatever `dtype` says. Rng
    "dropout".
    """

    vocab_size: int
    emb_size: int = 400
    hidden_size: int = 1152
    n_layers: int = 3
    hidden_drop: float = 0.15
    input_drop: float = 0.25
    embed_drop: float = 0.02
    weight_drop: float = 0.2
    kernel: str = "auto"
    dtype: Any = jnp.float32

    @property
    def widths(self) -> tuple[int, ...]:
        """Of each layer's outputs."""
        return (self.hidden_size,) * (self.n_layers - 1) + (self.emb_size,)

    def initial_state(self, batch: int) -> State:
        """All zeros."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return tuple((jnp.zeros((batch, width), wide),) * 2 for width in self.widths)

    @nn.compact
    def draw(self, batch: int, train: bool) -> Drawn:
        """The weights and masks of a pass over `batch` texts."""

        def mask(rate: float, *shape: int) -> jax.Array | None:
            if not train or rate == 0:
                return None
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
            return jnp.where(kept, jnp.float32(1 / (1 - rate)), 0)

        embedding = self.param("embedding", _uniform(0.1), (self.vocab_size, self.emb_size), jnp.float32)
        layers, inputs = [], self.emb_size
        for i, width in enumerate(self.widths):
            weights = self.param(f"rnn{i}", _lstm_init, inputs, width)
            dropped = weights["hidden_kernel"]
            if (kept := mask(self.weight_drop, *dropped.shape)) is not None:
                dropped = dropped * kept
            layers.append((weights["input_kernel"], dropped, weights["bias"]))
            inputs = width
        words = mask(self.embed_drop, self.vocab_size)
        hidden = tuple(mask(self.hidden_drop, batch, width) for width in self.widths[:-1])
        return Drawn(embedding, tuple(layers), words, mask(self.input_drop, batch, self.emb_size), hidden)

    def run(self, drawn: Drawn, text: jax.Array, state: State) -> tuple[jax.Array, State]:
        """int32 ids (batch, steps) to outputs (steps, batch, emb_size) and the state after them; a pure function."""
        text = text.T
        x = embed(drawn.embedding, text).astype(self.dtype)
        if drawn.words is not None:
            x = x * drawn.words[text][..., None].astype(x.dtype)
        after = []
        for layer, before, mask in zip(drawn.layers, state, (drawn.inputs, *drawn.hidden), strict=True):
            x = x if mask is None else x * mask.astype(x.dtype)
            x, last = lstm(x, before, *layer, kernel=self.kernel)
            after.append(last)
        return x, tuple(after)


class LanguageModel(nn.Module):
    """Predicts the next token at every place of `batch_size` streams (fastai's AWD_LSTM with a tied LinearDecoder).

    int32 ids (batch_size, bptt) and booleans (batch_size,), True where a stream begins, to logits (batch_size, bptt,
    vocab_size). The state at the end of a batch is kept in the collection "carry", and the next batch begins with it;
    no gradient flows back over it. The decoder's weights are the embedding's. `output_drop`: dropout of the last
    outputs, alike at every step. In training the penalties AR, `ar` times the mean square of these, and TAR, `tar`
    times that of the change from step to step before dropout (Merity et al. 2017, sections 4.6 and 4.7), are sown into
    "penalties". ValueError for a batch of another size.
    """

    encoder: AWDLSTM
    batch_size: int
    output_drop: float = 0.1
    ar: float = 2.0
    tar: float = 1.0

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Each layer, then the embedding with the decoder (fastai's awd_lstm_lm_split)."""
        return (*((f"encoder/rnn{i}",) for i in range(self.encoder.n_layers)), ("encoder/embedding", "bias"))

    def setup(self):
        start = self.encoder.initial_state(self.batch_size)
        self.carry = [self.variable("carry", f"rnn{i}", lambda x: x, zeros) for i, zeros in enumerate(start)]
        self.bias = self.param("bias", nn.initializers.zeros, (self.encoder.vocab_size,), jnp.float32)
        # the same at every step
        self.dropout = nn.Dropout(self.output_drop, broadcast_dims=(0,))

    def __call__(self, text: jax.Array, reset: jax.Array, train: bool = False) -> jax.Array:
        if self.is_initializing():  # on any number of rows
            state = self.encoder.initial_state(len(text))
        elif len(text) != self.batch_size:
            raise ValueError(
                f"a batch of {len(text)} for a language model of {self.batch_size} streams: a batch goes on where the "
                "one before ended, so all have data.batch_size rows, and accumulate is 1"
            )
        else:
            state = jax.tree.map(lambda x: jnp.where(reset[:, None], 0, x), tuple(c.value for c in self.carry))
        drawn = self.encoder.draw(len(text), train)
        raw, state = self.encoder.run(drawn, text, state)
        if self.is_mutable_collection("carry") and not self.is_initializing():
            for variable, value in zip(self.carry, jax.lax.stop_gradient(state), strict=True):
                variable.value = value
        x = self.dropout(raw, deterministic=not train)
        if train:
            sow_penalties(self, jnp.square(_wide(x)).mean(), jnp.square(jnp.diff(_wide(raw), axis=0)).mean())
        return self._decode(drawn, x.swapaxes(0, 1))

    def advance(self, tokens: jax.Array, state: State) -> tuple[jax.Array, State]:
        """One step of generation: int32 ids (rows,) and a state to logits (rows, vocab_size) and the state after."""
        drawn = self.encoder.draw(len(tokens), False)
        x, state = self.encoder.run(drawn, tokens[:, None], state)
        return self._decode(drawn, x[0]), state

    def _decode(self, drawn: Drawn, x: jax.Array) -> jax.Array:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.matmul(x, drawn.embedding.T.astype(x.dtype), preferred_element_type=wide) + self.bias


def sow_penalties(module: nn.Module, activity: jax.Array, change: jax.Array) -> None:
    """Hand AR and TAR to the training step, which adds what lies in "penalties" to the loss that it differentiates."""
    for name, value in (("ar", module.ar * activity), ("tar", module.tar * change)):
        module.sow("penalties", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: 0.0)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _uniform(bound: float):
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _lstm_init(key: jax.Array, inputs: int, width: int) -> dict[str, jax.Array]:
    shapes = {"input_kernel": (inputs, 4 * width), "hidden_kernel": (width, 4 * width), "bias": (4 * width,)}
    keys, init = jax.random.split(key, 3), _uniform(width**-0.5)
    return {name: init(key, shape, jnp.float32) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
