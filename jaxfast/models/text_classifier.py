"""A classifier of texts of any length over AWD-LSTM's encoder (Howard and Ruder 2018, section 3.3)."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.models.awd_lstm import AWDLSTM, sow_penalties
from jaxfast.models.layers import BatchNorm


class TextClassifier(nn.Module):
    """Concat pooling over the whole text, then fastai's head (text_classifier_learner; PoolingLinearClassifier).

    int32 ids (batch, padded) and lengths (batch,) to logits (batch, n_out) in fp32; what lies beyond a length is
    padding, and is never seen. The text is read in equal chunks of at most `bptt` tokens, the state going on from one
    to the next; gradients stay within a chunk, and only the chunks that end a text, `max_len` tokens at most, have
    any, as in fastai, which pools over these alone. `hidden`: widths of the head's layers; `drops`: the dropouts before
    each of them and before the last one (fastai's `output_p` and `ps`). `ar`, `tar`: as for `LanguageModel`. Parameters
    under "encoder" and "head".
    """

    encoder: AWDLSTM
    n_out: int
    hidden: tuple[int, ...] = (50,)
    drops: tuple[float, ...] = (0.4, 0.1)
    bptt: int = 72
    max_len: int = 1440
    ar: float = 2.0
    tar: float = 1.0

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The embedding, each layer, the head (fastai's awd_lstm_clas_split)."""
        return ("encoder/embedding",), *((f"encoder/rnn{i}",) for i in range(self.encoder.n_layers)), ("head",)

    @nn.compact
    def __call__(self, text: jax.Array, length: jax.Array, train: bool = False) -> jax.Array:
        batch, padded = text.shape
        chunks = -(-padded // self.bptt)
        size = -(-padded // chunks)
        drawn = self.encoder.draw(batch, train)
        # How many chunks lie before each text, so that all texts end in the last one.
        empty = chunks - jnp.maximum(-(-length // size), 1)
        place = jnp.arange(chunks * size) - empty[:, None] * size
        text = jnp.take_along_axis(text, jnp.clip(place, 0, padded - 1), axis=1)
        inside = (place >= 0) & (place < length[:, None])
        cut = lambda x: x.reshape(batch, chunks, size).swapaxes(0, 1)
        number = jnp.arange(chunks)
        sequence = cut(text), cut(inside), number[:, None] == empty

        early = max(chunks - max(self.max_len // size, 1), 0) if train else 0
        state = self.encoder.initial_state(batch)
        before, after = (jax.tree.map(lambda x, i=i: x[i], sequence) for i in (slice(early), slice(early, None)))
        state, first = jax.lax.scan(partial(_read_chunk, self.encoder, jax.lax.stop_gradient(drawn)), state, before)
        _, ended = jax.lax.scan(partial(_read_chunk, self.encoder, drawn), state, after)
        if train:
            n = jnp.maximum(ended.count.sum() * self.encoder.emb_size, 1)
            sow_penalties(self, ended.activity.sum() / n, ended.change.sum() / n)
        total = first.sum.sum(0) + ended.sum.sum(0)
        highest = jnp.maximum(first.max.max(0, initial=-jnp.inf), ended.max.max(0))
        mean = total / jnp.maximum(length, 1)[:, None]
        return PoolHead((*self.hidden, self.n_out), self.drops, name="head")(
            jnp.concatenate([ended.last[-1], highest, mean], axis=-1), train
        )


class Pooled(NamedTuple):
    """What is kept of a chunk, fp32: the output at its last token, the maximum and the sum, (batch, emb_size), over the
    tokens inside of the text; their number, their squares and those of the changes, summed."""

    last: jax.Array
    max: jax.Array
    sum: jax.Array
    count: jax.Array
    activity: jax.Array
    change: jax.Array


def _read_chunk(encoder: AWDLSTM, drawn, state, chunk):
    text, inside, begins = chunk
    state = jax.tree.map(lambda x: jnp.where(begins[:, None], 0, x), jax.lax.stop_gradient(state))
    outputs, state = encoder.run(drawn, text, state)
    outputs = outputs.swapaxes(0, 1)
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    there = inside[..., None]
    end = jnp.maximum(inside.sum(1) - 1, 0)
    steps = jnp.diff(outputs, axis=1) * there[:, 1:]
    return state, Pooled(
        jnp.take_along_axis(outputs, end[:, None, None], axis=1)[:, 0],
        jnp.where(there, outputs, -jnp.inf).max(1),
        jnp.where(there, outputs, 0).sum(1),
        inside.sum(),
        jnp.where(there, jnp.square(outputs), 0).sum(),
        jnp.square(steps).sum(),
    )


class PoolHead(nn.Module):
    """Batch norm, dropout, dense without bias and ReLU for each of `widths`, the last without ReLU (fastai's
    LinBnDrop); fp32. Layers norm0, dense0, norm1, ..."""

    widths: tuple[int, ...]
    drops: tuple[float, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        for i, (width, rate) in enumerate(zip(self.widths, self.drops, strict=True)):
            x = BatchNorm(dtype=x.dtype, name=f"norm{i}")(x, train=train)
            x = nn.Dropout(rate, deterministic=not train)(x)
            x = nn.Dense(width, use_bias=False, dtype=x.dtype, kernel_init=kernel_init, name=f"dense{i}")(x)
            x = x if i == len(self.widths) - 1 else nn.relu(x)
        return x
