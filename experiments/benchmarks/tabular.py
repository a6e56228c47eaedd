"""Adult (8 categories, 6 numbers, layers of 200 and 100): whole fits of 3 epochs, beside torch's best loop (`fits`)."""

from functools import partial

import numpy as np

from experiments.benchmarks import fits, steps
from experiments.benchmarks.harness import Workload
from experiments.benchmarks.side import Side
from experiments.data import data_file

LR, LAYERS, FILE, TARGET = 1e-2, (200, 100), "adult.csv.gz", "income-per-year"


def table(batch_size: int, rows: int | None = None):
    """The first `rows` of Adult, or all."""
    import pandas as pd

    from jaxfast import tabular

    return tabular.from_frame(pd.read_csv(data_file(FILE), nrows=rows), target=TARGET, batch_size=batch_size, seed=0)


def learner(data):
    """A learner of `data` on one device."""
    import jax

    from jaxfast import tabular

    return tabular.learner(data, layers=LAYERS, devices=jax.devices()[:1], precision="fp32", quiet=True)


def ours(folder: str, batch_size: int, epochs: int, rows: int | None = None) -> Side:
    from flax.traverse_util import flatten_dict

    learn = learner(table(batch_size, rows))
    weights = {name: np.asarray(x) for name, x in flatten_dict(learn.state.params, sep="/").items()}
    return fits.ours(folder, learn, epochs, LR, **weights)


def theirs(folder: str, batch_size: int, epochs: int, rows: int | None = None, **variant) -> Side:
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    data, left = table(batch_size, rows), steps.found(folder)
    counts = [len(column.values) + 1 for column in data.codec.embedded]
    numbers = len(data.codec.numbers)

    class Net(nn.Module):
        def __init__(self, widths):
            super().__init__()
            self.embeds = nn.ModuleList([nn.Embedding(n, width) for n, width in zip(counts, widths, strict=True)])
            self.norm = nn.BatchNorm1d(numbers)
            sizes = [sum(widths) + numbers, *LAYERS]
            hidden = []
            for a, b in zip(sizes, sizes[1:], strict=False):
                hidden += [nn.Linear(a, b, bias=False), nn.ReLU(inplace=True), nn.BatchNorm1d(b)]
            self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], data.n_out))

        def forward(self, codes, numbers):
            rows = [embed(codes[:, i]) for i, embed in enumerate(self.embeds)]
            return self.layers(torch.cat([*rows, self.norm(numbers)], 1))

    def made() -> Net:
        from jaxfast.models.tabular import emb_sz

        net, first = Net([emb_sz(n) for n in counts]), 0
        copy = lambda place, array: place.copy_(torch.tensor(array))
        with torch.no_grad():
            for embed in net.embeds:
                n, width = embed.weight.shape
                copy(embed.weight, left["embedding"][first : first + n, :width])
                first += n
            for i in range(len(LAYERS)):
                copy(net.layers[3 * i].weight, left[f"dense{i}/kernel"].T)
            copy(net.layers[-1].weight, left["head/kernel"].T)
            copy(net.layers[-1].bias, left["head/bias"])
        return net

    columns = lambda part: (part.categories.astype(np.int64), part.numbers, part.target.astype(np.int64))
    right = lambda outputs, target: (outputs.argmax(1) == target).sum()
    return fits.theirs(
        made, columns(data.train), columns(data.valid), cross_entropy, right,
        order=left["order"], size=batch_size, epochs=epochs, lr=LR, **variant,
    )  # fmt: skip


VARIANTS = {"torch": theirs, "torch.compile": partial(theirs, compiled="default")}
ON_GPU = {
    "torch": theirs,
    "torch, CUDA graph": partial(theirs, graph=True),
    "torch.compile, CUDA graphs": partial(theirs, compiled="reduce-overhead"),
}


def workload(batch_size: int, variants: dict = VARIANTS, device: str = "cpu", title: str = "", **options) -> Workload:
    return Workload(
        f"Adult, 3 epochs, batch {batch_size:,}{' on a GPU' * (device == 'gpu')}{title}",
        ours,
        variants,
        {"batch_size": batch_size, "epochs": 3},
        {"batch_size": 16, "epochs": 1, "rows": 500},
        device=device,
        files=(FILE,),
        packages=("pandas",),
        **options,
    )


WORKLOADS = {
    "tabular_b64": workload(64),
    "tabular_b1024": workload(1024),
    "tabular_scan": workload(64, ON_GPU, "gpu"),
    **{
        f"tabular_{name}": workload(64, {}, "gpu", f", {what}", variables=flags)
        for name, (what, flags) in fits.GRAPHS.items()
    },
}
