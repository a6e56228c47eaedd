"""The Adult fit in fastai 2.8, run by its own environment's python with adult.csv.gz: prints CPU seconds as JSON."""

import json
import sys
import time

import numpy as np
import pandas as pd
import torch
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

torch.set_num_threads(1)
df = pd.read_csv(sys.argv[1])
set_seed(0)
order = np.random.default_rng(0).permutation(len(df)).tolist()
fifth = len(df) // 5
continuous, categorical = cont_cat_split(df, max_card=20, dep_var="income-per-year")
rows = TabularPandas(
    df,
    procs=[Categorify, FillMissing, Normalize],
    cat_names=categorical,
    cont_names=continuous,
    y_names="income-per-year",
    splits=(sorted(order[fifth:]), sorted(order[:fifth])),
)
learn = tabular_learner(rows.dataloaders(bs=64), layers=[200, 100], metrics=accuracy)
start = time.process_time()
with learn.no_bar(), learn.no_logging():
    learn.fit_one_cycle(3, 1e-2)
seconds = time.process_time() - start
print(json.dumps({"fit": seconds, "accuracy": float(learn.recorder.values[-1][-1])}))
