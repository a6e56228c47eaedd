"""A training step of the language model beside the best torch loop: tokens a second.

    taskset -c 1 python -m experiments.benchmarks.lstm
    python -m experiments.benchmarks.lstm --vocab 60000 --batch-size 128     # on an accelerator

AWD-LSTM's sizes: embedding 400, three layers 1152, 1152, 400, 70 steps, tied decoder, without dropout, AdamW, fp32
(TF32 where the device has it). torch: nn.LSTM, one for each layer, its decoder's weight the embedding's, fused AdamW.
Both sides start from the same weights, and must give the same loss before anything is timed; then whole chunks of
steps alternate and the fastest of each counts. On CPU both are timed by CPU time, on an accelerator by the clock.

One core of an AMD EPYC that others used too, jax 0.10.2, torch 2.13, tokens/s, ours and theirs:

    --batch-size 16    0.91x   473   519
    --batch-size 64    0.87x   554   635

XLA's product of (64, 1152) and (1152, 4608) in the scan reaches 70 to 80 GFLOP/s there, the large ones outside 100.
"""

import argparse
import time

import numpy as np

SIZES = {"emb_size": 400, "hidden_size": 1152, "n_layers": 3}
BPTT = 70


def ours(text: np.ndarray, target: np.ndarray, vocab_size: int, steps: int):
    """(loss of the first weights, those weights, a function that trains `steps` steps)."""
    import jax

    from jaxfast import losses, optim, training
    from jaxfast.mesh import data_mesh
    from jaxfast.models.awd_lstm import AWDLSTM, LanguageModel

    none = {"hidden_drop": 0.0, "input_drop": 0.0, "embed_drop": 0.0, "weight_drop": 0.0}
    module = LanguageModel(AWDLSTM(vocab_size, **SIZES, **none), len(text), output_drop=0.0, ar=0.0, tar=0.0)
    mesh = data_mesh(jax.devices()[:1])
    batch = jax.device_put({"text": text, "target": target, "reset": np.zeros(len(text), bool)})
    state = training.create_state(module, (text[:1], np.zeros(1, bool)), optim.hyper_adamw, mesh=mesh)
    part = training.trainable(state.params)
    step = training.make_step(module, losses.cross_entropy, optim.hyper_adamw, part, inputs=("text", "reset"))
    chunk = training.make_chunk(step, len(text), mesh, resident=False, capacity=steps)
    rows = training.hyper_rows(steps, [1e-3], 0.9, 0.01)
    params = jax.device_get(state.params)
    held = [state]
    first = []

    def fit() -> float:
        held[0], found, *_ = chunk(held[0], batch, np.empty(0, np.int32), np.int32(0), np.int32(steps), rows, False)
        found = np.asarray(found)
        first.append(float(found[0]))
        return float(found[-1])

    fit()
    return first[0], params, fit


def theirs(text: np.ndarray, target: np.ndarray, params: dict, steps: int):
    """(loss of `params`, a function that trains `steps` steps) of the same model in torch."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    encoder = params["encoder"]
    tensor = lambda array: torch.tensor(np.array(array))
    embedding = nn.Parameter(tensor(encoder["embedding"]).to(device))
    bias = nn.Parameter(tensor(params["bias"]).to(device))
    layers = []
    for i in range(SIZES["n_layers"]):
        weights = encoder[f"rnn{i}"]
        layer = nn.LSTM(*reversed([len(weights["hidden_kernel"]), len(weights["input_kernel"])]))
        with torch.no_grad():
            layer.weight_ih_l0.copy_(tensor(weights["input_kernel"].T))
            layer.weight_hh_l0.copy_(tensor(weights["hidden_kernel"].T))
            layer.bias_ih_l0.copy_(tensor(weights["bias"]))
            layer.bias_hh_l0.zero_()
        layers.append(layer.to(device))
    trained = [embedding, bias, *(p for layer in layers for p in layer.parameters())]
    optimizer = torch.optim.AdamW(trained, 1e-3, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01, fused=True)
    text, target = (torch.tensor(array.T).long().to(device) for array in (text, target))
    hidden = [None] * len(layers)

    def loss():
        x = nn.functional.embedding(text, embedding)
        for i, layer in enumerate(layers):
            x, after = layer(x, hidden[i])
            hidden[i] = tuple(part.detach() for part in after)
        return cross_entropy((x @ embedding.T + bias).flatten(0, 1), target.flatten())

    def fit() -> float:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            value = loss()
            value.backward()
            optimizer.step()
        return value.item()

    with torch.no_grad():
        first = loss().item()
    hidden[:] = [None] * len(layers)
    return first, fit


def measure(vocab_size: int, batch_size: int, steps: int, repeats: int = 3) -> dict:
    """The row "lstm" of the report."""
    import jax

    if jax.default_backend() == "cpu":
        import torch

        torch.set_num_threads(1)
    ids = np.random.default_rng(0).integers(9, vocab_size, (batch_size, BPTT + 1)).astype(np.int32)
    text, target = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
    our_loss, params, our_fit = ours(text, target, vocab_size, steps)
    their_loss, their_fit = theirs(text, target, params, steps)
    if abs(our_loss - their_loss) > 1e-3 * their_loss:
        raise ValueError(f"the losses of the same weights differ: {our_loss:.6f} and {their_loss:.6f}")
    their_fit()
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter

    def rate(fit) -> float:
        begin = clock()
        fit()
        return steps * batch_size * BPTT / (clock() - begin)

    found = [(rate(our_fit), rate(their_fit)) for _ in range(repeats)]
    ours_, theirs_ = (max(column) for column in zip(*found, strict=True))
    return {"name": "lstm", "ratio": ours_ / theirs_, "ours": ours_, "theirs": theirs_, "unit": "tokens/s"}


ROWS = {"lstm": lambda: [measure(8000, 16, 2)]}
"""What measures the row of the report."""


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.lstm",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--vocab", type=int, default=8000, help="size of the vocabulary (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="streams (%(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="steps between two looks at the clock (%(default)s)")
    options = parser.parse_args(arguments)
    row = measure(options.vocab, options.batch_size, options.steps)
    print(
        f"{row['name']:20} {row['ratio']:5.2f}x   {row['ours']:.0f} beside {row['theirs']:.0f} {row['unit']}",
        flush=True,
    )
    return [row]


if __name__ == "__main__":
    main()
