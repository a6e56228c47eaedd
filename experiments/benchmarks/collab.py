"""MovieLens 100k on one core: this library beside the best torch loop and beside the real fastai, in CPU time.

    taskset -c 1 python -m experiments.benchmarks.collab
    JAXFAST_FASTAI_PYTHON=/path/to/python taskset -c 1 python -m experiments.benchmarks.collab fastai_movielens

The same rows, model, optimizer, schedule, batch size and epochs on each side (lesson 4: 5 epochs at 5e-3, 40 factors,
weight decay .1, batches of 64), each epoch followed by a pass over the validation rows. The torch loop keeps its
tensors in memory, shuffles them once an epoch, slices batches and steps a fused AdamW with dense gradients (AdamW takes
no sparse ones, and `foreach` is slower); runs of both sides alternate and the fastest of each counts. fastai 2.8 lives
in an environment of its own. Rows "collab_b64" and "lr_find": after compilation, beside torch. "fastai_movielens" and
"fastai_lr_find": the same beside fastai; "fastai_movielens_cold", "fastai_movielens_cached": whole processes, with
imports, tracing and compilation (or its cache).

On one core of an server CPU shared with others, jax 0.10.2, torch 2.13, fastai 2.8.12, CPU seconds, ours beside theirs:
collab_b64 4.2x and 5.0x in two runs (0.82 beside 3.39, 0.84 beside 4.25), lr_find 3.2x and 3.3x (0.0166 beside 0.0555),
fastai_movielens 59x (0.82 beside 47.8), fastai_lr_find 42x (0.0165 beside 0.698), fastai_movielens_cold 6.6x (8.1
beside 53.2), fastai_movielens_cached 13.5x (3.9 beside 53.2).
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from experiments.benchmarks.tabular import process, row, seconds
from experiments.data import data_file
from experiments.movielens import COURSE, ratings, split

FASTAI = Path(__file__).with_name("fastai_movielens.py")


def our_learner():
    """A learner of MovieLens on one device."""
    import jax

    from jaxfast import collab

    options = {"n_factors": COURSE.n_factors, "y_range": (0, 5.5), "weight_decay": COURSE.weight_decay}
    return collab.learner(split(ratings(), 0), **options, devices=jax.devices()[:1], quiet=True)


def torch_side(data):
    """Functions that train a model anew in torch, and that search its learning rate over 100 steps."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    sizes, size = (len(data.codec.users) + 1, len(data.codec.items) + 1), data.batch_size

    class Dot(torch.nn.Module):
        def __init__(self):
            super().__init__()
            tables = [torch.nn.Embedding(n, k) for k in (COURSE.n_factors, 1) for n in sizes]
            self.users, self.items, self.user_bias, self.item_bias = tables
            for table in tables:
                torch.nn.init.trunc_normal_(table.weight, std=0.01)

        def forward(self, user, item):
            dots = (self.users(user) * self.items(item)).sum(1)
            return 5.5 * torch.sigmoid(dots + self.user_bias(user).squeeze(1) + self.item_bias(item).squeeze(1))

    def tensors(part):
        return torch.tensor(part.user).long(), torch.tensor(part.item).long(), torch.tensor(part.target)

    train, valid = tensors(data.train), tensors(data.valid)
    steps = len(data.train) // size

    def made():
        model = Dot()
        options = {"betas": (0.95, 0.99), "eps": 1e-5, "weight_decay": COURSE.weight_decay, "fused": True}
        return model, torch.optim.AdamW(model.parameters(), COURSE.lr, **options)

    def step(model, optimizer, user, item, target):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(model(user, item), target)
        loss.backward()
        optimizer.step()
        return loss

    def fit() -> float:
        model, optimizer = made()
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            COURSE.lr,
            total_steps=COURSE.epochs * steps,
            pct_start=0.25,
            base_momentum=0.85,
            max_momentum=0.95,
        )
        for _ in range(COURSE.epochs):
            order = torch.randperm(len(data.train))
            shuffled = [values[order] for values in train]
            for i in range(steps):
                step(model, optimizer, *(values[i * size : (i + 1) * size] for values in shuffled))
                schedule.step()
            with torch.no_grad():
                parts = zip(*(values.split(size) for values in valid), strict=True)
                error = sum(float(((model(user, item) - target) ** 2).sum()) for user, item, target in parts)
        return error / len(data.valid)

    def lr_find() -> list[float]:
        model, optimizer = made()
        order = torch.randperm(len(data.train))
        losses, best, smooth = [], float("inf"), 0.0
        for i, lr in enumerate(np.geomspace(1e-7, 10, 100)):
            optimizer.param_groups[0]["lr"] = float(lr)
            rows = order[i * size : (i + 1) * size]
            losses.append(step(model, optimizer, *(values[rows] for values in train)).item())
            smooth = 0.98 * smooth + 0.02 * losses[-1]
            average = smooth / (1 - 0.98 ** (i + 1))
            best = min(best, average)
            if average > 4 * best:
                break
        return losses

    return fit, lr_find


def against_torch(repeats: int = 4) -> list[dict]:
    """Whole fits and searches of both sides after compilation."""
    learn = our_learner()
    their_fit, their_search = torch_side(learn.data)
    our_fit = lambda: learn.fit_one_cycle(COURSE.epochs, COURSE.lr)
    our_fit(), learn.lr_find(), their_search()
    fits = [(seconds(our_fit), seconds(their_fit)) for _ in range(repeats)]
    fresh = our_learner()  # the search is of an untrained model on both sides
    fresh.lr_find(), fresh.lr_find()
    searches = [(seconds(fresh.lr_find), seconds(their_search)) for _ in range(3 * repeats)]
    best = lambda pairs: [min(side) for side in zip(*pairs, strict=True)]
    return [row("collab_b64", *best(fits)), row("lr_find", *best(searches))]


def against_fastai() -> list[dict]:
    """fastai's fit beside ours after compilation, and whole processes beside whole processes."""
    python = os.environ.get("JAXFAST_FASTAI_PYTHON", sys.executable)
    their_total, theirs = process([python, str(FASTAI), str(data_file("ml-100k.zip"))])
    with tempfile.TemporaryDirectory() as cache:
        ours = [sys.executable, "-m", "experiments.benchmarks.collab", "--ours", cache]
        cold, _ = process(ours)
        cached, _ = process(ours)
    learn = our_learner()
    fit = lambda: learn.fit_one_cycle(COURSE.epochs, COURSE.lr)
    learn.lr_find(), learn.lr_find()
    search = min(seconds(learn.lr_find) for _ in range(8))
    fit()
    # Searches are part of the process of fastai but not of ours: they are taken off its total.
    their_total -= theirs["searches"]
    return [
        row("fastai_movielens", min(seconds(fit) for _ in range(4)), theirs["fit"]),
        row("fastai_lr_find", search, theirs["lr_find"]),
        row("fastai_movielens_cold", cold, their_total),
        row("fastai_movielens_cached", cached, their_total),
    ]


def _one_process(cache: str) -> None:
    import jax

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    learn = our_learner()
    learn.fit_one_cycle(COURSE.epochs, COURSE.lr)
    print(json.dumps({"mse": learn.history.epochs[-1]["mse"]}))


ROWS = {"collab": against_torch, "fastai_movielens": against_fastai}
"""What measures the rows of the report."""


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.collab",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("names", nargs="*", choices=[[], *ROWS], help="what to measure (default: collab)")
    parser.add_argument("--ours", metavar="CACHE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.ours:
        return _one_process(options.ours)
    rows = [r for name in options.names or ("collab",) for r in ROWS[name]()]
    for r in rows:
        print(f"{r['name']:24} {r['ratio']:6.2f}x   {r['ours']:.4f} beside {r['theirs']:.4f} {r['unit']}", flush=True)
    return rows


if __name__ == "__main__":
    main()
