"""Whole lessons beside the real fastai 2.8, which has an environment of its own: Adult, MovieLens, and its search.

fastai imports its tables and its collaborative filtering without torchvision. JAXFAST_FASTAI_PYTHON names the Python of
an environment that was made like this:

    python -m venv fastai && fastai/bin/pip install --no-deps fastai
    fastai/bin/pip install torch pandas scikit-learn fastcore fastdownload fastprogress fasttransform plum-dispatch \
        matplotlib pyyaml requests packaging scipy pillow cloudpickle

Both sides have the same rows, network, optimizer, schedule, batch size and epochs, but each its own first weights and
order. What must be about the same is the accuracy or the error after the first fit, or the search's first losses.
"""

import zipfile

from experiments.benchmarks import collab, tabular
from experiments.benchmarks.collab import our_search
from experiments.benchmarks.harness import Workload
from experiments.benchmarks.side import Side
from experiments.data import data_file
from experiments.movielens import COURSE


def our_fit(learn, epochs: int, lr: float, metric: str) -> Side:
    def run() -> list[float]:
        learn.fit_one_cycle(epochs, lr)
        return [learn.history.epochs[-1][metric]]

    return Side(run)


def our_adult(folder: str, epochs: int, rows: int | None = None) -> Side:
    return our_fit(tabular.learner(tabular.table(64, rows)), epochs, tabular.LR, "accuracy")


def our_movielens(folder: str, epochs: int, rows: int | None = None) -> Side:
    return our_fit(collab.learner(collab.table(rows)), epochs, COURSE.lr, "mse")


def fastai_side(learn, run) -> Side:
    """A side that runs without progress bars and tables."""
    import importlib.metadata

    import torch

    torch.set_num_threads(1)

    def quietly() -> list[float]:
        with learn.no_bar(), learn.no_logging():
            return run()

    return Side(quietly, counted={"versions": {name: importlib.metadata.version(name) for name in ("fastai", "torch")}})


def their_fit(learn, epochs: int, lr: float, **options) -> Side:
    def run() -> list[float]:
        learn.fit_one_cycle(epochs, lr, **options)
        return [float(learn.recorder.values[-1][-1])]

    return fastai_side(learn, run)


def their_adult(folder: str, epochs: int, rows: int | None = None) -> Side:
    import numpy as np
    import pandas as pd
    from fastai.tabular.all import (
        Categorify,
        FillMissing,
        Normalize,
        TabularPandas,
        accuracy,
        cont_cat_split,
        set_seed,
        tabular_learner,
    )

    df = pd.read_csv(data_file(tabular.FILE), nrows=rows)
    set_seed(0)
    order = np.random.default_rng(0).permutation(len(df)).tolist()
    fifth = len(df) // 5
    continuous, categorical = cont_cat_split(df, max_card=20, dep_var=tabular.TARGET)
    table = TabularPandas(
        df, procs=[Categorify, FillMissing, Normalize], cat_names=categorical, cont_names=continuous,
        y_names=tabular.TARGET, splits=(sorted(order[fifth:]), sorted(order[:fifth])),
    )  # fmt: skip
    learn = tabular_learner(table.dataloaders(bs=64), layers=list(tabular.LAYERS), metrics=accuracy)
    return their_fit(learn, epochs, tabular.LR)


def their_collab_learner(rows: int | None):
    import pandas as pd
    from fastai.basics import set_seed
    from fastai.collab import CollabDataLoaders, collab_learner
    from fastai.metrics import mse

    with zipfile.ZipFile(data_file(collab.FILE)) as archive:
        df = pd.read_csv(archive.open("ml-100k/ml-100k.inter"), sep="\t", nrows=rows)
    df.columns = [name.partition(":")[0] for name in df.columns]
    set_seed(0)
    data = CollabDataLoaders.from_df(df[["user_id", "item_id", "rating"]], valid_pct=0.1, seed=0, bs=COURSE.batch_size)
    return collab_learner(data, n_factors=COURSE.n_factors, y_range=(0, 5.5), metrics=mse)


def their_movielens(folder: str, epochs: int, rows: int | None = None) -> Side:
    return their_fit(their_collab_learner(rows), epochs, COURSE.lr, wd=COURSE.weight_decay)


def their_search(folder: str, rates: int, rows: int | None = None) -> Side:
    learn = their_collab_learner(rows)

    def run() -> list[float]:
        learn.lr_find(num_it=rates, show_plot=False)
        return [float(loss) for loss in learn.recorder.losses[:2]]

    return fastai_side(learn, run)


HOW = "make an environment of its own as `experiments/benchmarks/fastai.py` says, and set it to that Python"
COMMON = {"packages": ("pandas",), "their_packages": (), "python": ("JAXFAST_FASTAI_PYTHON", HOW), "rounds": 2}
WORKLOADS = {
    "fastai_adult": Workload(
        "Adult, 3 epochs, batch 64, beside fastai", our_adult, {"fastai": their_adult}, {"epochs": 3},
        {"epochs": 1, "rows": 2000}, files=(tabular.FILE,), tolerance=0.1, **COMMON,
    ),
    "fastai_movielens": Workload(
        "MovieLens, 5 epochs, batch 64, beside fastai", our_movielens, {"fastai": their_movielens}, {"epochs": 5},
        {"epochs": 1, "rows": 2000}, files=(collab.FILE,), tolerance=0.1, **COMMON,
    ),
    "fastai_lr_find": Workload(
        "MovieLens, a search of the learning rate, beside fastai", our_search, {"fastai": their_search},
        {"rates": 100}, {"rates": 20, "rows": 2000}, files=(collab.FILE,), tolerance=0.5, **COMMON | {"rounds": 100},
    ),
}  # fmt: skip
