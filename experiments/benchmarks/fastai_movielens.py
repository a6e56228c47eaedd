"""The MovieLens fit in fastai 2.8, for its own environment; prints CPU seconds as JSON.

python fastai_movielens.py ml-100k.zip
"""

import json
import sys
import time
import zipfile

import pandas as pd
import torch
from fastai.basics import set_seed
from fastai.collab import CollabDataLoaders, collab_learner

torch.set_num_threads(1)
with zipfile.ZipFile(sys.argv[1]) as archive:
    df = pd.read_csv(archive.open("ml-100k/ml-100k.inter"), sep="\t")
df.columns = [name.partition(":")[0] for name in df.columns]
set_seed(0)
data = CollabDataLoaders.from_df(df[["user_id", "item_id", "rating"]], valid_pct=0.1, seed=0, bs=64)
learn = collab_learner(data, n_factors=40, y_range=(0, 5.5))
with learn.no_bar(), learn.no_logging():
    times = []
    for _ in range(3):
        start = time.process_time()
        learn.lr_find(show_plot=False)
        times.append(time.process_time() - start)
    start = time.process_time()
    learn.fit_one_cycle(5, 5e-3, wd=0.1)
seconds = time.process_time() - start
print(
    json.dumps(
        {"fit": seconds, "lr_find": min(times), "searches": sum(times), "mse": float(learn.recorder.values[-1][-1])}
    )
)
