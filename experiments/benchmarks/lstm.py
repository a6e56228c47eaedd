"""A training step of the language model: AWD-LSTM's sizes, 70 tokens, tied decoder, without dropout.

torch: nn.LSTM, one for each layer, which is cuDNN's on a GPU; its decoder's weight is the embedding's.
"""

import numpy as np

from experiments.benchmarks import steps
from experiments.benchmarks.harness import Workload
from experiments.benchmarks.side import Side

SIZES = {"vocab": 8000, "emb": 400, "hidden": 1152, "layers": 3, "bptt": 70}
SMALL = {"vocab": 50, "emb": 8, "hidden": 12, "layers": 2, "bptt": 5, "batch": 3, "steps_": 2}


def texts(vocab: int, batch: int, bptt: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise and what follows on each token of it, (batch, bptt) both."""
    ids = np.random.default_rng(0).integers(9, vocab, (batch, bptt + 1)).astype(np.int32)
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


def ours(
    folder: str,
    vocab: int,
    emb: int,
    hidden: int,
    layers: int,
    bptt: int,
    batch: int,
    steps_: int,
    precision: str = "fp32",
) -> Side:
    from flax.traverse_util import flatten_dict

    from jaxfast import losses
    from jaxfast.models.awd_lstm import AWDLSTM, LanguageModel

    none = {"hidden_drop": 0.0, "input_drop": 0.0, "embed_drop": 0.0, "weight_drop": 0.0}
    encoder = AWDLSTM(vocab, emb, hidden, layers, **none)
    text, target = texts(vocab, batch, bptt)
    side, variables = steps.ours(
        LanguageModel(encoder, batch, output_drop=0.0, ar=0.0, tar=0.0),
        {"text": text, "target": target, "reset": np.zeros(batch, bool)},
        losses.cross_entropy, inputs=("text", "reset"), steps=steps_, work=batch * bptt, precision=precision,
    )  # fmt: skip
    steps.leave(folder, flatten_dict(variables["params"], sep="/"))
    return side


def theirs(
    folder: str,
    vocab: int,
    emb: int,
    hidden: int,
    layers: int,
    bptt: int,
    batch: int,
    steps_: int,
    precision: str = "fp32",
    **variant,
) -> Side:
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy, embedding

    left = steps.found(folder)
    widths = [emb, *(hidden,) * (layers - 1), emb]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Parameter(torch.tensor(left["encoder/embedding"]))
            self.bias = nn.Parameter(torch.tensor(left["bias"]))
            self.layers = nn.ModuleList([nn.LSTM(a, b) for a, b in zip(widths, widths[1:], strict=False)])
            self.hidden = [None] * layers
            with torch.no_grad():
                for i, layer in enumerate(self.layers):
                    layer.weight_ih_l0.copy_(torch.tensor(left[f"encoder/rnn{i}/input_kernel"].T))
                    layer.weight_hh_l0.copy_(torch.tensor(left[f"encoder/rnn{i}/hidden_kernel"].T))
                    layer.bias_ih_l0.copy_(torch.tensor(left[f"encoder/rnn{i}/bias"]))
                    layer.bias_hh_l0.zero_()

        def forward(self, text):
            x = embedding(text, self.embedding)
            for i, layer in enumerate(self.layers):
                x, after = layer(x, self.hidden[i])
                self.hidden[i] = tuple(part.detach() for part in after)
            return (x @ self.embedding.T + self.bias).flatten(0, 1)

    text, target = (np.ascontiguousarray(x.T).astype(np.int64) for x in texts(vocab, batch, bptt))
    products = sum(4 * b * (a + b) for a, b in zip(widths, widths[1:], strict=False)) + emb * vocab
    return steps.theirs(
        Model(), [text], target.ravel(), cross_entropy, steps=steps_, work=batch * bptt, precision=precision,
        flops=6.0 * batch * bptt * products, **variant,
    )  # fmt: skip


def workload(title: str, batch: int, steps_: int, **options) -> Workload:
    precision = {"precision": options.get("precision", "fp32")}
    sizes = SIZES | options.pop("sizes", {}) | {"batch": batch, "steps_": steps_} | precision
    return Workload(title, ours, {"nn.LSTM": theirs}, sizes, SMALL | precision, unit="tokens", **options)


ON_GPU = {"device": "gpu", "sizes": {"vocab": 60_000}}
WORKLOADS = {
    "lstm": workload("AWD-LSTM 400 / 1152 x 3, batch 16: training step", 16, 2),
    "lstm_b64": workload("AWD-LSTM 400 / 1152 x 3, batch 64: training step", 64, 2),
    "lstm_cudnn": workload("AWD-LSTM beside cuDNN, 60,000 words, batch 64: training step", 64, 10, **ON_GPU),
    "lstm_bf16": workload("the same in bf16", 64, 10, **ON_GPU, precision="bf16", tolerance=0.03),
}
