"""Adult on one core: this library beside the best torch loop and beside the real fastai, in CPU time.

    taskset -c 1 python -m experiments.benchmarks.tabular
    JAXFAST_FASTAI_PYTHON=/path/to/python taskset -c 1 python -m experiments.benchmarks.tabular fastai_adult

The same rows, columns, network, optimizer, schedule, batch size and epochs on each side, each epoch followed by a pass
over the validation rows. The torch loop keeps its tensors in memory, draws batches by index and steps a fused AdamW;
runs of both sides alternate and the fastest of each counts. fastai 2.8 lives in an environment of its own (`pip install
fastai`). Rows "tabular_b64", "tabular_b1024": fits after compilation. "fastai_adult": the same against fastai;
"fastai_adult_cold" and "fastai_adult_cached": whole processes, imports, tracing and compilation (or its persistent
cache) counted.

One core of an AMD EPYC that others used too, jax 0.10.2, torch 2.13, fastai 2.8.12, CPU seconds, ours and theirs:

    tabular_b64           5.4x   0.35    1.90
    tabular_b1024         1.6x   0.30    0.50    (another run: 2.0x, 0.36 and 0.71)
    fastai_adult         34x     0.36   12.5
    fastai_adult_cold     2.0x   8.6    17.0
    fastai_adult_cached   4.7x   3.6    17.0
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.data import data_file

EPOCHS, LR, LAYERS = 3, 1e-2, (200, 100)
FASTAI = Path(__file__).with_name("fastai_adult.py")


def our_learner(batch_size: int):
    """A learner of Adult on one device."""
    import jax

    from jaxfast import tabular

    data = tabular.from_file(data_file("adult.csv.gz"), target="income-per-year", batch_size=batch_size, seed=0)
    return tabular.learner(data, layers=LAYERS, devices=jax.devices()[:1], quiet=True)


def torch_fit(data):
    """A function that trains a network anew in torch on the arrays of `data` and returns its accuracy."""
    import torch
    from torch import nn

    from jaxfast.models.tabular import emb_sz

    torch.set_num_threads(1)
    counts = [len(column.values) + 1 for column in data.codec.embedded]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeds = nn.ModuleList([nn.Embedding(n, emb_sz(n)) for n in counts])
            self.norm = nn.BatchNorm1d(len(data.codec.numbers))
            widths = [sum(map(emb_sz, counts)) + len(data.codec.numbers), *LAYERS]
            hidden = []
            for a, b in zip(widths, widths[1:], strict=False):
                hidden += [nn.Linear(a, b, bias=False), nn.ReLU(inplace=True), nn.BatchNorm1d(b)]
            self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], data.n_out))

        def forward(self, codes, numbers):
            rows = [embed(codes[:, i]) for i, embed in enumerate(self.embeds)]
            return self.layers(torch.cat([*rows, self.norm(numbers)], 1))

    def tensors(part):
        return torch.tensor(part.categories).long(), torch.tensor(part.numbers), torch.tensor(part.target).long()

    train, valid, size = tensors(data.train), tensors(data.valid), data.batch_size
    steps = len(data.train) // size

    def fit() -> float:
        net, loss = Net(), nn.CrossEntropyLoss()
        optimizer = torch.optim.AdamW(net.parameters(), LR, betas=(0.95, 0.99), eps=1e-5, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LR, total_steps=EPOCHS * steps, pct_start=0.25, base_momentum=0.85, max_momentum=0.95
        )
        for _ in range(EPOCHS):
            net.train()
            order = torch.randperm(len(data.train))
            for i in range(steps):
                codes, numbers, target = (values[order[i * size : (i + 1) * size]] for values in train)
                optimizer.zero_grad(set_to_none=True)
                loss(net(codes, numbers), target).backward()
                optimizer.step()
                schedule.step()
            net.eval()
            with torch.no_grad():
                accuracy = (net(*valid[:2]).argmax(1) == valid[2]).float().mean()
        return float(accuracy)

    return fit


def seconds(run) -> float:
    """CPU time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def row(name: str, ours: float, theirs: float) -> dict:
    return {"name": name, "ratio": theirs / ours, "ours": ours, "theirs": theirs, "unit": "CPU seconds"}


def against_torch(batch_size: int, repeats: int = 4) -> dict:
    """Whole fits of both sides after compilation."""
    learn = our_learner(batch_size)
    our_fit, their_fit = lambda: learn.fit_one_cycle(EPOCHS, LR), torch_fit(learn.data)
    our_fit(), their_fit()
    ours, theirs = zip(*[(seconds(our_fit), seconds(their_fit)) for _ in range(repeats)], strict=True)
    return row(f"tabular_b{batch_size}", min(ours), min(theirs))


def process(command: list[str]) -> tuple[float, dict]:
    """CPU time of a whole process, and the JSON of its last line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return total, json.loads(output.strip().splitlines()[-1])


def against_fastai() -> list[dict]:
    """fastai's fit beside ours after compilation, and whole processes beside whole processes."""
    python = os.environ.get("JAXFAST_FASTAI_PYTHON", sys.executable)
    their_total, theirs = process([python, str(FASTAI), str(data_file("adult.csv.gz"))])
    with tempfile.TemporaryDirectory() as cache:
        ours = [sys.executable, "-m", "experiments.benchmarks.tabular", "--ours", cache]
        cold, _ = process(ours)
        cached, _ = process(ours)
    learn = our_learner(64)
    fit = lambda: learn.fit_one_cycle(EPOCHS, LR)
    fit()
    return [
        row("fastai_adult", min(seconds(fit) for _ in range(4)), theirs["fit"]),
        row("fastai_adult_cold", cold, their_total),
        row("fastai_adult_cached", cached, their_total),
    ]


def _one_process(cache: str) -> None:
    import jax

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    learn = our_learner(64)
    learn.fit_one_cycle(EPOCHS, LR)
    print(json.dumps({"accuracy": learn.history.epochs[-1]["accuracy"]}))


ROWS = {
    "tabular_b64": lambda: [against_torch(64)],
    "tabular_b1024": lambda: [against_torch(1024)],
    "fastai_adult": against_fastai,
}
"""What measures each row, or rows, of the report."""


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.tabular",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("names", nargs="*", choices=[[], *ROWS], help="rows to measure (default: those against torch)")
    parser.add_argument("--ours", metavar="CACHE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.ours:
        return _one_process(options.ours)
    rows = [r for name in options.names or ("tabular_b64", "tabular_b1024") for r in ROWS[name]()]
    for r in rows:
        print(f"{r['name']:20} {r['ratio']:5.2f}x   {r['ours']:.3f} beside {r['theirs']:.3f} {r['unit']}", flush=True)
    return rows


if __name__ == "__main__":
    main()
