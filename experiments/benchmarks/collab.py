"""MovieLens 100k in the course's setting (lesson 4): whole fits, beside torch's best loop (`fits`), and rate searches.

torch's gradients of embeddings are dense: AdamW takes no sparse ones.
"""

from functools import partial

import numpy as np

from experiments.benchmarks import fits, steps
from experiments.benchmarks.harness import Workload
from experiments.benchmarks.side import Side
from experiments.movielens import COURSE, ratings, split

FILE = "ml-100k.zip"


def table(rows: int | None = None):
    """The first `rows` ratings, or all."""
    return split(ratings()[:rows], 0, COURSE.batch_size)


def learner(data):
    """A learner of `data` on one device."""
    import jax

    from jaxfast import collab

    return collab.learner(
        data, n_factors=COURSE.n_factors, y_range=(0, 5.5), weight_decay=COURSE.weight_decay,
        devices=jax.devices()[:1], precision="fp32", quiet=True,
    )  # fmt: skip


def shared(learn) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in learn.state.params.items()}


def ours(folder: str, epochs: int, rows: int | None = None) -> Side:
    learn = learner(table(rows))
    return fits.ours(folder, learn, epochs, COURSE.lr, **shared(learn))


def our_search(folder: str, rates: int, rows: int | None = None) -> Side:
    """A search of the learning rate of an untrained model, which it leaves as it is."""
    learn = learner(table(rows))
    fits.ours(folder, learn, 1, COURSE.lr, **shared(learn))
    counted = {"bytes": rates * fits.optimizer_bytes(learn)}
    return Side(lambda: learn.lr_find(steps=rates).raw_losses[:2], counted=counted)


def net(left: dict[str, np.ndarray]):
    """The model in torch, with our first weights."""
    import torch
    from torch import nn

    class Dot(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("user_factors", "item_factors", "user_bias", "item_bias"):
                setattr(self, name, nn.Embedding.from_pretrained(torch.tensor(left[name]), freeze=False))

        def forward(self, user, item):
            dots = (self.user_factors(user) * self.item_factors(item)).sum(1)
            return 5.5 * torch.sigmoid(dots + self.user_bias(user).squeeze(1) + self.item_bias(item).squeeze(1))

    return Dot()


def columns(part, users: int, items: int) -> tuple[np.ndarray, ...]:
    """Users, items and ratings; who was not seen in training gets the last row, where our model has the mean."""
    return (
        np.minimum(part.user, users - 1).astype(np.int64),
        np.minimum(part.item, items - 1).astype(np.int64),
        part.target,
    )


def theirs(folder: str, epochs: int, rows: int | None = None, **variant) -> Side:
    from torch.nn.functional import mse_loss

    data, left = table(rows), steps.found(folder)
    sizes = len(data.codec.users), len(data.codec.items)
    squares = lambda outputs, target: ((outputs - target) ** 2).sum()
    return fits.theirs(
        lambda: net(left), columns(data.train, *sizes), columns(data.valid, *sizes), mse_loss, squares,
        order=left["order"], size=COURSE.batch_size, epochs=epochs, lr=COURSE.lr,
        weight_decay=COURSE.weight_decay, **variant,
    )  # fmt: skip


def their_search(folder: str, rates: int, rows: int | None = None) -> Side:
    """fastai's search as a plain loop: it ends where the smoothed loss is four times its best."""
    import torch
    from torch.nn.functional import mse_loss

    device = steps.torch_device()
    data, left = table(rows), steps.found(folder)
    train = [torch.tensor(x).to(device) for x in columns(data.train, len(data.codec.users), len(data.codec.items))]
    order, size = torch.tensor(left["order"]).long().to(device), COURSE.batch_size

    def search() -> list[float]:
        model = net(left).to(device)
        optimizer = steps.adamw(model.parameters(), weight_decay=COURSE.weight_decay)
        losses, best, smooth = [], float("inf"), 0.0
        for i, rate in enumerate(np.geomspace(1e-7, 10, rates)):
            optimizer.param_groups[0]["lr"] = float(rate)
            index = order[i * size : (i + 1) * size]
            user, item, target = (x[index] for x in train)
            optimizer.zero_grad(set_to_none=True)
            loss = mse_loss(model(user, item), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            smooth = 0.98 * smooth + 0.02 * losses[-1]
            average = smooth / (1 - 0.98 ** (i + 1))
            best = min(best, average)
            if average > 4 * best:
                break
        return losses[:2]

    return Side(search)


def workload(title: str, variants: dict, device: str, **options) -> Workload:
    return Workload(
        title, ours, variants, {"epochs": COURSE.epochs}, {"epochs": 1, "rows": 2000},
        device=device, files=(FILE,), packages=("pandas",), **options,
    )  # fmt: skip


def search(device: str) -> Workload:
    return Workload(
        f"MovieLens, a search of the learning rate, 100 steps{' on a GPU' * (device == 'gpu')}", our_search,
        {"torch": their_search}, {"rates": 100}, {"rates": 20, "rows": 2000},
        device=device, files=(FILE,), packages=("pandas",),
    )  # fmt: skip


WORKLOADS = {
    "collab_b64": workload(
        "MovieLens, 5 epochs, batch 64", {"torch": theirs, "torch.compile": partial(theirs, compiled="default")}, "cpu"
    ),
    "lr_find": search("cpu"),
    "lr_find_gpu": search("gpu"),
    "collab_scan": workload(
        "MovieLens, 5 epochs, batch 64 on a GPU",
        {
            "torch": theirs,
            "torch, CUDA graph": partial(theirs, graph=True),
            "torch.compile, CUDA graphs": partial(theirs, compiled="reduce-overhead"),
        },
        "gpu",
    ),
    **{
        f"collab_{name}": workload(f"MovieLens, 5 epochs, batch 64 on a GPU, {what}", {}, "gpu", variables=flags)
        for name, (what, flags) in fits.GRAPHS.items()
    },
}
