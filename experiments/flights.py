"""Flights: how late will it arrive? Dates, categories, a join with the weather, and a split in time.

    python -m experiments.flights

The shape of the course's Rossmann lesson on nycflights13 (`nycflights_flights.parquet`, `nycflights_weather.parquet`;
`--data DIR` or JAXFAST_DATA): the flights from New York in 2013 that arrived, with the hourly weather at the airport
at the scheduled hour. January to October train, November and December test. Only what is known before departure:
schedule, route, aircraft, calendar, holidays, weather. The target is the arrival delay in minutes, standardised. The
trees see the same columns, encoded by the same codec. The settings were chosen on September and October, trained on
January to August (`--choose`).

RESULTS
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from experiments.data import data_file

TARGET = "arr_delay"
CATEGORICAL = ["carrier", "origin", "dest", "tailnum", "hour", "schedDayofweek"]
CONTINUOUS = [
    "sched_dep_time", "sched_arr_time", "distance", "schedDayofyear", "after_holiday", "before_holiday",
    "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
]  # fmt: skip
HOLIDAYS = (
    "2013-01-01", "2013-01-21", "2013-02-18", "2013-05-27", "2013-07-04", "2013-09-02", "2013-10-14", "2013-11-11",
    "2013-11-28", "2013-12-25", "2014-01-01",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of."""

    epochs: int = 5
    lr: float = 1e-3
    batch_size: int = 1024
    dropout: float = 0.5
    embed_p: float = 0.5
    weight_decay: float = 0.1
    tailnum_width: int = 8


def table(folder: Path | None):
    """The flights that arrived, one row each, with their month and every column that a model may see."""
    import pandas

    from jaxfast.tabular import add_datepart, add_elapsed

    flights = pandas.read_parquet(data_file("nycflights_flights.parquet", folder))
    weather = pandas.read_parquet(data_file("nycflights_weather.parquet", folder))
    flights = flights[flights[TARGET].notna()]
    joined = flights.merge(
        weather.drop(columns=["rownames", "year", "month", "day", "hour"]), on=["origin", "time_hour"], how="left"
    )
    joined["sched"] = pandas.to_datetime(joined[["year", "month", "day"]])
    days = pandas.DataFrame({"sched": pandas.date_range("2012-12-25", "2014-01-01")})
    days["holiday"] = days["sched"].isin(pandas.to_datetime(list(HOLIDAYS)))
    days = add_elapsed(days, "holiday", "sched")[["sched", "after_holiday", "before_holiday"]]
    return add_datepart(joined.merge(days, on="sched", how="left"), "sched")


def data_of(config: Config, df, first_month: int):
    """Rows before `first_month` train, the rest validate."""
    from jaxfast import tabular

    return tabular.from_frame(
        df, target=TARGET, categorical=CATEGORICAL, continuous=CONTINUOUS, standardize=True,
        valid=(df["month"] >= first_month).to_numpy(), batch_size=config.batch_size,
    )  # fmt: skip


def network(config: Config, seed: int, data) -> float:
    """The root mean squared error of a trained network, in minutes."""
    from jaxfast import tabular

    learn = tabular.learner(
        data, ps=config.dropout, embed_p=config.embed_p, emb_szs={"tailnum": config.tailnum_width},
        weight_decay=config.weight_decay, metrics=["rmse"], seed=seed, quiet=True,
    )  # fmt: skip
    learn.fit_one_cycle(config.epochs, config.lr)
    return learn.validate()["rmse"]


def arrays(part) -> tuple[np.ndarray, np.ndarray]:
    """What a tree sees of a data set: codes of the categories, then the numbers; and the target."""
    return np.concatenate([part.categories.astype(np.float32), part.numbers], 1), part.target


def trees(model, data) -> float:
    """The root mean squared error of a scikit-learn regressor, in minutes."""
    model.fit(*arrays(data.train))
    features, target = arrays(data.valid)
    return float(np.sqrt(np.mean((model.predict(features) - target) ** 2)) * data.codec.target.std[0])


def boosting(seed: int, data) -> float:
    """HistGradientBoosting with its defaults; columns of up to 255 categories are categories to it."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    few = [i for i, column in enumerate(data.codec.embedded) if len(column.values) < 255]
    return trees(HistGradientBoostingRegressor(categorical_features=few, random_state=seed), data)


def forest(seed: int, data) -> float:
    """A random forest of 40 trees, each over a third of the rows, with at least 25 rows in a leaf."""
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(40, min_samples_leaf=25, max_features=0.5, max_samples=0.33, random_state=seed)
    return trees(model, data)


def constant(seed: int, data) -> float:
    """The training rows' mean for every flight."""
    return float(np.sqrt(np.mean((data.valid.target - data.train.target.mean()) ** 2)) * data.codec.target.std[0])


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.flights", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder that holds the two parquet files")
    parser.add_argument("--seeds", type=int, default=3, help="how many runs (%(default)s)")
    parser.add_argument("--choose", action="store_true", help="train on January to August, score September and October")
    parser.add_argument("--no-trees", action="store_true", help="the network alone")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    for field in dataclasses.fields(Config):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, help="(%(default)s)")
    options = parser.parse_args(arguments)

    config = Config(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Config)})
    df = table(options.data)
    df = df[df["month"] < 11] if options.choose else df
    data = data_of(config, df, 9 if options.choose else 11)
    print(data, flush=True)
    models = {"network": lambda seed, data: network(config, seed, data)}
    if not options.no_trees:
        models |= {"boosting": boosting, "forest": forest, "constant": constant}
    results = {}
    for name, model in models.items():
        runs = [model(seed, data) for seed in range(1 if name == "constant" else options.seeds)]
        results[name] = {"rmse": float(np.mean(runs)), "runs": runs}
        print(f"{name:10} {np.mean(runs):.2f} minutes   {'  '.join(f'{run:.2f}' for run in runs)}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(dataclasses.asdict(config) | {"results": results}, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
