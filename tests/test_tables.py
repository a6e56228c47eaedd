"""Tables on the host: columns found, fitted on training rows alone, encoded, dated, shrunk; bad input."""

import datetime
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxfast import tabular
from jaxfast.data import frames
from jaxfast.data.table_codec import TableCodec

N = 60


def table(**changes):
    rng = np.random.default_rng(0)
    columns = {
        "age": rng.integers(18, 80, N),
        "hours": np.where(np.arange(N) % 7 == 0, np.nan, rng.normal(40, 5, N)),
        "job": np.array(["cook", "judge", None, "nurse"], object)[rng.integers(0, 4, N)],
        "grade": rng.integers(1, 4, N),
        "vip": rng.integers(0, 2, N) == 1,
        "pay": rng.normal(100, 10, N),
        "class": np.array(["low", "high"], object)[rng.integers(0, 2, N)],
    }
    return pd.DataFrame(columns | changes)


def make(df=None, **options):
    options = {"target": "class", "batch_size": 8, "valid": np.arange(45, 60)} | options
    return tabular.from_frame(table() if df is None else df, **options)


def test_columns_are_found_by_dtype_and_cardinality():
    df = table()
    assert tabular.cont_cat_split(df, exclude=["class"]) == (["age", "hours", "pay"], ["job", "grade", "vip"])
    assert tabular.cont_cat_split(df, exclude=["class"], max_card=60)[1][0] == "age"
    assert tabular.cont_cat_split(df[["age"]].astype("category")) == ([], ["age"])
    data = make(categorical=["job"])
    assert [c.name for c in data.codec.categories] == ["job"]
    assert [c.name for c in data.codec.numbers] == ["age", "hours", "pay"]


def test_rows_become_codes_and_normalised_numbers():
    df, data = table(), make()
    train = df.iloc[:45]
    job, hours = data.codec.categories[0], data.codec.numbers[1]
    assert job.values == ("cook", "judge", "nurse")
    assert [c.name for c in data.codec.embedded] == ["job", "grade", "vip", "hours_na"]
    assert hours.median == train["hours"].median() and hours.flag and not data.codec.numbers[0].flag
    filled = train["hours"].fillna(train["hours"].median())
    np.testing.assert_allclose(data.train.numbers[:, 1], (filled - filled.mean()) / filled.std(ddof=0), rtol=1e-5)
    codes = train["job"].map({"cook": 1, "judge": 2, "nurse": 3}).fillna(0)
    np.testing.assert_array_equal(data.train.categories[:, 0], codes)
    np.testing.assert_array_equal(data.train.categories[:, 3], train["hours"].isna() + 1)
    assert data.train.categories.dtype == np.int32 and data.train.numbers.dtype == np.float32
    example = data.train.batch(np.array([3, 5]))
    assert example["target"].tolist() == [data.classes.index(c) for c in df["class"].iloc[[3, 5]]]


def test_changing_validation_rows_changes_no_fitted_statistic():
    df, changed = table(), table()
    changed.loc[45:, "age"] = 1000
    changed.loc[45:, ["hours", "pay"]] = np.nan
    changed.loc[45:, "job"] = "astronaut"
    changed.loc[45:, "grade"] = 77
    before, after = make(df), make(changed)
    assert before.codec == after.codec
    for name in ("categories", "numbers", "target"):
        np.testing.assert_array_equal(getattr(before.train, name), getattr(after.train, name))
    assert (after.valid.categories[:, :2] == 0).all()  # seen in validation only: unknown
    # and how a column is treated does not depend on validation rows either
    changed["grade"] = np.where(np.arange(N) < 45, df["grade"], np.arange(N))
    assert [c.name for c in make(changed).codec.categories] == [c.name for c in before.codec.categories]
    standard = make(df, target="pay", standardize=True).codec.target
    assert standard.mean == (df["pay"][:45].mean(),)


def test_codec_round_trips_through_json():
    for data in (make(), make(target=["pay", "age"], standardize=True), make(target="vip")):
        codec = TableCodec.from_json(json.loads(json.dumps(data.codec.to_json())))
        assert codec == data.codec
        for one, other in zip(
            codec.encode_frame(table()).values(), data.codec.encode_frame(table()).values(), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_one_row_is_encoded_as_many_are():
    df, codec = table(), make().codec
    many = codec.encode_frame(df)
    for i in (0, 7, 59):
        row = df.iloc[i]
        for item in (row, row.to_dict(), df.iloc[[i]], {name: many[name][i] for name in many}):
            one = codec.encode(item)
            assert all(np.array_equal(one[name], many[name][i]) for name in many)
    with pytest.raises(ValueError, match="60: use predict_frame"):
        codec.encode(df)


@pytest.mark.parametrize("kind", ["arrow", "dict", "capsule", "interchange", "nullable"])
def test_tables_of_other_libraries_give_the_same(kind):
    df = table().assign(job=lambda d: d["job"].fillna("none"))
    arrow = pa.Table.from_pandas(df, preserve_index=False)

    class Capsule:
        def __arrow_c_stream__(self, requested_schema=None):
            return arrow.__arrow_c_stream__(requested_schema)

    class Interchange:
        def __dataframe__(self, *args, **options):
            return arrow.__dataframe__(*args, **options)

    same = {
        "arrow": arrow,
        "dict": {name: df[name].tolist() for name in df},
        "capsule": Capsule(),
        "interchange": Interchange(),
        "nullable": df.convert_dtypes(),
    }[kind]
    want, got = make(df), make(same)
    np.testing.assert_array_equal(got.train.categories, want.train.categories)
    np.testing.assert_allclose(got.valid.numbers, want.valid.numbers, rtol=1e-6)
    np.testing.assert_array_equal(got.valid.target, want.valid.target)


def test_files(tmp_path):
    df = table()
    df.to_csv(tmp_path / "t.csv.gz", index=False)
    df.to_parquet(tmp_path / "t.parquet")
    options = {"target": "class", "batch_size": 8, "valid": 0.25}
    read = [tabular.from_file(tmp_path / name, **options) for name in ("t.csv.gz", "t.parquet")]
    np.testing.assert_array_equal(read[0].train.categories, read[1].train.categories)
    np.testing.assert_allclose(read[0].train.numbers, read[1].train.numbers)
    with pytest.raises(FileNotFoundError, match="no file"):
        tabular.from_file(tmp_path / "u.csv", target="class")
    (tmp_path / "t.txt").touch()
    with pytest.raises(ValueError, match="neither .csv"):
        tabular.from_file(tmp_path / "t.txt", target="class")


@pytest.mark.parametrize(
    ("options", "task", "n_out", "classes"),
    [
        ({"target": "class"}, "single_label", 2, ("high", "low")),
        ({"target": "vip"}, "single_label", 2, ("False", "True")),
        ({"target": "grade"}, "regression", 1, None),
        ({"target": "grade", "task": "single_label"}, "single_label", 3, ("1", "2", "3")),
        ({"target": ["pay", "age"]}, "regression", 2, None),
        ({"target": ["vip", "flag"]}, "multi_label", 2, ("vip", "flag")),
        ({"target": "flag"}, "single_label", 2, ("0", "1")),
    ],
)
def test_the_task_follows_the_target(options, task, n_out, classes):
    data = make(table(flag=np.arange(N) % 2), **options)
    assert (data.task, data.n_out, data.classes) == (task, n_out, classes)
    assert data.train.target.dtype == (np.int32 if task == "single_label" else np.float32)
    assert not set(data.codec.columns) & set(np.atleast_1d(options["target"]))


def test_a_logarithm_and_a_standardised_target_come_back():
    df = table()
    for options in ({"log": True}, {"standardize": True}, {"log": True, "standardize": True}):
        data = make(df, target="pay", **options)
        assert abs(data.train.target.mean()) < 1e-5 or not options.get("standardize")
        np.testing.assert_allclose(data.codec.target.to_units(data.valid.target), df["pay"][45:], rtol=1e-5)
        assert data.decode(data.valid.target[:1]).value == pytest.approx(df["pay"][45], rel=1e-5)


def test_a_mask_column_splits():
    df = table(held_out=np.arange(N) % 5 == 0)
    data = make(df, valid="held_out")
    assert data.valid.index.tolist() == list(range(0, N, 5)) and "held_out" not in data.codec.columns


BAD = {
    "empty frame": (lambda: make(table().iloc[:0]), "no rows"),
    "not a table": (lambda: make(np.zeros((3, 2))), "ndarray is not a table"),
    "no such target": (lambda: make(target="clas"), "did you mean 'class'"),
    "target with NaN": (
        lambda: make(table(pay=np.nan), target="pay"),
        "target 'pay' is empty in 60 rows, such as row 0",
    ),
    "target with None": (lambda: make(table(**{"class": [None] + ["a", "b"] * 29 + ["a"]})), "empty in 1 rows"),
    "infinite target": (lambda: make(table(pay=np.inf), target="pay"), "infinite in 60 rows"),
    "one class": (lambda: make(table(**{"class": "low"})), "training needs two classes"),
    "class in validation only": (lambda: make(table(**{"class": ["a", "b"] * 29 + ["a", "z"]})), "of class 'z'"),
    "log of zero": (lambda: make(table(pay=0.0), target="pay", log=True), "above zero"),
    "log of classes": (lambda: make(log=True), "log= and standardize= are for"),
    "unknown task": (lambda: make(task="single"), "did you mean 'single_label'"),
    "all-missing number": (lambda: make(table(pay=np.nan)), "column 'pay' is empty in all 45"),
    "all-missing text": (lambda: make(table(job=None)), "column 'job' is empty in all 45"),
    "missing in all training rows": (
        lambda: make(table(pay=[np.nan] * 45 + [1.0] * 15), continuous=["pay"], categorical=["job"]),
        "column 'pay' is empty in all 45 training rows",
    ),
    "infinite values": (lambda: make(table(pay=[np.inf] + [1.0] * 59)), "column 'pay' is infinite in 1 rows"),
    "dates": (lambda: make(table(when=pd.Timestamp("2020-01-01"))), "add_datepart"),
    "mixed": (lambda: make(table(job=["a", 1] * 30)), "mixes kinds"),
    "text as numbers": (lambda: make(continuous=["job"], categorical=["vip"]), "where numbers are expected"),
    "no such column": (lambda: make(categorical=["jobs"]), "did you mean 'job'"),
    "target as input": (lambda: make(categorical=["class"]), "must not see what it predicts"),
    "named twice": (lambda: make(categorical=["age"], continuous=["age"]), "in categorical= and in continuous="),
    "nothing to see": (lambda: make(categorical=[], continuous=[]), "no column to predict from"),
    "two of a name": (lambda: make(pd.concat([table(), table()], axis=1)), "more than one column has the same name"),
    "numbered columns": (lambda: make(table().rename(columns={"age": 3})), "not text"),
    "a taken name": (lambda: make(table(hours_na=[1, 2] * 30)), "hours_na would be made"),
    "large batch": (lambda: make(batch_size=64), "more than the 45 training rows"),
    "mask column": (lambda: make(valid="job"), "column of booleans"),
    "no mask column": (lambda: make(valid="agee"), "did you mean 'age'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


PREDICTION = {
    "missing column": (lambda df: df.drop(columns="job"), "trained with 'job' not in the table"),
    "text for numbers": (lambda df: df.assign(pay="much"), "column 'pay' holds text, such as 'much'"),
    "numbers for text": (lambda df: df.assign(job=3), "column 'job' held text in training, such as 'cook', and now"),
    "text for whole numbers": (lambda df: df.assign(grade="2"), "column 'grade' held numbers in training"),
    "infinite": (lambda df: df.assign(pay=-np.inf), "column 'pay' is infinite"),
    "dates for numbers": (lambda df: df.assign(pay=pd.Timestamp("2020-01-01")), "column 'pay' holds dates"),
}


@pytest.mark.parametrize("case", PREDICTION)
def test_bad_rows_are_refused_at_prediction(case):
    change, message = PREDICTION[case]
    with pytest.raises(ValueError, match=message):
        make().codec.encode_frame(change(table()))


def test_harmless_changes_of_type_are_taken():
    codec, df = make().codec, table()
    want = codec.encode_frame(df)
    same = df.astype({"age": "float32", "grade": "float64", "vip": "int8"}).assign(job=df["job"].astype("category"))
    for name, values in codec.encode_frame(same).items():
        np.testing.assert_array_equal(values, want[name])
    gaps = codec.encode_frame(df.assign(age=np.nan, job=None, grade=[None] * N))
    assert (gaps["categories"][:, :2] == 0).all()
    median = (codec.numbers[0].median - codec.numbers[0].mean) / codec.numbers[0].std
    np.testing.assert_allclose(gaps["numbers"][:, 0], median, rtol=1e-6)


def test_a_constant_column_stays_finite():
    data = make(table(pay=5.0))
    assert (data.train.numbers[:, 2] == 0).all()


def test_dateparts_equal_those_of_pandas():
    dates = pd.Series(pd.date_range("1999-12-28", periods=800, freq="37h"), index=range(5, 805))
    df = pd.DataFrame({"saleDate": dates, "x": np.arange(800)}, index=dates.index)
    parts = tabular.add_datepart(df, "saleDate", time=True)
    for name in ("Year", "Month", "Day", "Hour", "Minute", "Second"):
        np.testing.assert_array_equal(parts["sale" + name], getattr(dates.dt, name.lower()))
    np.testing.assert_array_equal(parts["saleDayofweek"], dates.dt.isocalendar().day - 1)
    np.testing.assert_array_equal(parts["saleDayofyear"], dates.dt.day_of_year)
    for name in ("month_end", "month_start", "quarter_end", "quarter_start", "year_end", "year_start"):
        np.testing.assert_array_equal(parts[f"saleIs_{name}"], getattr(dates.dt, f"is_{name}"))
    np.testing.assert_array_equal(parts["saleWeek"], dates.dt.isocalendar().week)
    np.testing.assert_array_equal(parts["saleElapsed"], dates.astype("datetime64[s]").astype("int64"))
    assert "saleDate" not in parts and parts.index.tolist() == df.index.tolist()
    text = df.assign(saleDate=dates.dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    pd.testing.assert_frame_equal(tabular.add_datepart(text, "saleDate", time=True), parts)
    zoned = df.assign(saleDate=dates.dt.tz_localize("UTC"))
    pd.testing.assert_frame_equal(tabular.add_datepart(zoned, "saleDate", time=True), parts)
    objects = pd.DataFrame({"d": [datetime.date(2020, 2, 29), None]})
    made = tabular.add_datepart(objects, "d", prefix="", drop=False)
    assert made["Dayofyear"].tolist()[0] == 60 and made["Month"].isna().tolist() == [False, True]
    for bad, message in ((df.assign(saleDate=3), "not dates"), (df.assign(saleDate="soon"), "no ISO date")):
        with pytest.raises(ValueError, match=message):
            tabular.add_datepart(bad, "saleDate")
    with pytest.raises(ValueError, match="the date column"):
        tabular.add_datepart(df, "saledate")


def test_elapsed_days_by_hand():
    rows = [("a", 1, 0), ("a", 3, 1), ("a", 4, 0), ("a", 9, 1), ("b", 2, 0), ("b", 5, 0), ("a", 11, 0), ("a", 4, 0)]
    df = pd.DataFrame(rows, columns=["store", "day", "sale"]).sample(frac=1, random_state=0)
    df["date"] = pd.to_datetime("2020-01-01") + pd.to_timedelta(df["day"], unit="D")
    made = tabular.add_elapsed(df, "sale", "date", by="store").sort_values(["store", "day"])
    assert made.index.equals(df.sort_values(["store", "day"]).index)
    nan = np.nan
    np.testing.assert_array_equal(made["after_sale"], [nan, 0, 1, 1, 0, 2, nan, nan])
    np.testing.assert_array_equal(made["before_sale"], [-2, 0, -5, -5, 0, nan, nan, nan])
    with pytest.raises(ValueError, match="must tell where the event is"):
        tabular.add_elapsed(df, "day", "date")


def test_shrinking_changes_no_value():
    df = table(big=np.arange(N) * 2**33, half=np.arange(N) / 2, third=np.arange(N) / 3, flag=np.arange(N) % 2)
    small = tabular.shrink(df)
    assert small["age"].dtype == np.int8 and small["big"].dtype == np.int64 and small["flag"].dtype == np.int8
    assert small["half"].dtype == np.float32 and small["third"].dtype == np.float64
    assert isinstance(small["class"].dtype, pd.CategoricalDtype)
    assert small.memory_usage(deep=True).sum() < df.memory_usage(deep=True).sum() / 1.5
    for name in df:
        np.testing.assert_array_equal(frames.to_frame(small)[name].is_null(), frames.to_frame(df)[name].is_null())
        kept = df[name].notna()
        assert (small[name][kept].astype(df[name].dtype) == df[name][kept]).all()
    before, after = make(df), make(small)
    np.testing.assert_array_equal(before.train.categories, after.train.categories)
