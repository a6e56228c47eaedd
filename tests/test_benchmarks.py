"""The harness of the benchmarks on workloads that only sleep and count, and one real one."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from experiments.benchmarks import report, steps
from experiments.benchmarks.__main__ import chosen, main, run, workloads
from experiments.benchmarks.harness import Unequal, Workload, check_equal, measure, quartile, row, waits
from experiments.benchmarks.process import Process, SideError
from experiments.benchmarks.side import Side, address, serve

# What the sides' own processes run: they import this file.


def busy(folder, seconds=0.01, value=1.0, work=3.0):
    """A side that computes for so many CPU seconds."""

    def compute():
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return [value]

    return Side(compute, work, {"flops": 100.0})


def broken(folder, **options):
    raise ImportError("no compiler here")


def dying(folder, **options):
    return Side(lambda: os.kill(os.getpid(), signal.SIGKILL))


def loud(folder, **options):
    print("this is no JSON", flush=True)
    return busy(folder)


def machine():
    counted = {"peak": {"fp32": 1e4, "copy": 1e9}, "platform": "cpu", "device": "d", "versions": {"v": "1"}}
    return Side(lambda: [], counted=counted)


SLOWER = partial(busy, seconds=0.03)


@pytest.fixture(autouse=True)
def found_by_sides(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def alone(tmp_path):
    core = max(os.sched_getaffinity(0))
    with Process("machine", machine, {}, tmp_path, core=core) as process:
        process.open()
        yield partial(measure, "fake", machine=process, rounds=3, core=core)


def test_the_ratio_is_the_median_of_the_rounds_against_the_fastest_variant():
    run = lambda cpu, memory=1: {"cpu": cpu, "wall": 2 * cpu, "work": 10.0, "memory": memory, "flops": 8.0}
    seen = {
        "jaxfast": [run(1.0), run(2.0, 7), run(4.0)],
        "slow": [run(9.0), run(9.0), run(9.0)],
        "quick": [run(2.0), run(3.0), run(4.0, 5)],
    }
    limits = [{"peak": {"fp32": 16.0}}, {"peak": {"fp32": 8.0}}, {"peak": {"fp32": 8.0}}]
    found = row(seen, limits, clock="cpu", workload=Workload("w", busy, unit="images"))
    ratios = 2.0, 1.5, 1.0
    assert found["variant"] == "quick"
    assert (found["ratio"], found["ratio_min"], found["ratio_max"]) == (1.5, *sorted(ratios)[::2])
    assert (found["ratio_low"], found["ratio_high"]) == (1.25, 1.75)
    assert (found["ours"], found["theirs"], found["unit"]) == (5.0, 10 / 3, "images/CPU s")
    assert (found["memory"], found["memory_theirs"]) == (7, 5)
    # 8 operations in 1, 2 and 4 seconds, of a machine that makes 16, 8 and 8 a second
    assert found["share_of_peak"] == pytest.approx(0.5)
    assert found["variants"] == {"slow": pytest.approx(10 / 9), "quick": pytest.approx(10 / 3)}


def test_without_a_unit_the_row_has_seconds_and_by_the_wall_on_an_accelerator():
    run = lambda wall: {"cpu": 100.0, "wall": wall, "work": 1.0, "memory": 1, "bytes": 6.0}
    seen, limits = {"jaxfast": [run(2.0)], "theirs": [run(3.0)]}, [{"peak": {"copy": 11.0}}, {"peak": {"copy": 13.0}}]
    found = row(seen, limits, clock="wall", workload=Workload("w", busy, precision="bf16"))
    assert (found["ours"], found["theirs"], found["unit"], found["ratio"]) == (2.0, 3.0, "s", 1.5)
    assert found["share_of_bandwidth"] == 0.25 and found["share_of_peak"] is None
    assert found["peaks"] == [{"copy": 11.0}, {"copy": 13.0}]


@pytest.mark.parametrize("needs, limit", [((4.0, 1.0), 2.5), ((4.0, 10.0), 0.4)])
def test_the_limit_is_the_larger_time_of_arithmetic_and_copying(needs, limit):
    # 10 operations and 4 bytes a second, on average before and after
    limits = [{"peak": {"bf16": 8.0, "copy": 3.0}}, {"peak": {"bf16": 12.0, "copy": 5.0}}]
    seen = {"jaxfast": [{"cpu": 9.0, "wall": 2.0, "work": 1.0, "memory": 1}] * 3}
    found = row(seen, limits, clock="wall", workload=Workload("w", busy, unit="images", precision="bf16", needs=needs))
    assert found["limit"] == pytest.approx(limit) and found["share_of_limit"] == pytest.approx(0.5 / limit)


def test_a_row_without_another_side_has_no_ratio():
    run = {"cpu": 1.0, "wall": 1.0, "work": 1.0, "memory": 1}
    found = row({"jaxfast": [run]}, [{"peak": {}}], clock="cpu", workload=Workload("w", busy))
    assert found["ratio"] is None and found["ours"] == 1.0


def test_compilation_is_the_first_run_less_a_warm_one():
    runs = lambda *cpu: [{"cpu": x} for x in cpu]
    firsts = {"jaxfast": {"cpu": 5.0, "process": 9.0}, "torch": {"cpu": 3.0, "process": 4.0}}
    seen = {"jaxfast": runs(1.0, 1.5, 2.0), "torch": runs(3.5)}
    assert waits(firsts, {"cpu": 2.5, "process": 6.0}, seen, "torch", "cpu") == {
        "compile_cold_s": 3.5,
        "compile_cached_s": 1.0,
        "process_cold_s": 9.0,
        "process_cached_s": 6.0,
        "compile_theirs_s": 0.0,
        "process_theirs_s": 4.0,
    }


@pytest.mark.parametrize("part, expected", [(0, 1.0), (0.25, 2.0), (0.5, 3.0), (1, 9.0)])
def test_quartiles(part, expected):
    assert quartile([9.0, 3.0, 1.0, 4.0, 2.0], part) == expected


def test_both_sides_run_in_processes_in_turns(alone):
    found = alone(Workload("w", busy, {"slower": SLOWER, "even": partial(busy, seconds=0.06)}, unit="images"))
    assert found["name"] == "fake" and found["variant"] == "slower" and found["rounds"] == 3
    assert 1.5 < found["ratio"] < 6  # three times the CPU time, whatever the machine does meanwhile
    assert found["variants"].keys() == {"slower", "even"}
    assert found["memory"] > 2**20 and found["share_of_peak"] > 0


def opened(folder, label, seconds, log):
    """Notes when it is opened, with which flags, and when it runs."""

    def note(what):
        with open(log, "a") as file:
            print(label, what, file=file)

    note(f"opens {os.environ['XLA_FLAGS']} {os.environ['XLA_PYTHON_CLIENT_MEM_FRACTION']}")

    def run():
        note("runs")
        time.sleep(seconds)
        return [1.0]

    return Side(run, 6.0)


def test_on_an_accelerator_sides_open_alone_and_the_fastest_of_theirs_takes_part(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--one")
    side = lambda label, seconds: partial(opened, label=label, seconds=seconds, log=str(tmp_path / "log"))
    variants = {"slow": side("slow", 0.3), "quick": side("quick", 0.05)}
    workload = Workload("w", side("ours", 0.1), variants, unit="images", variables={"XLA_FLAGS": "--two"})
    with Process("machine", machine, {}, tmp_path, core=None) as process:
        found = measure("fake", workload, process.open(), rounds=2, core=None)
    assert found["variant"] == "quick" and found["variants"].keys() == {"slow", "quick"}
    assert found["rounds"] == 2 and len(found["peaks"]) == 2 and "compile_cached_s" not in found
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:8] == [
        "ours opens --one --two 0.3", "ours runs", "slow opens --one 0.3", "slow runs", "slow runs",
        "quick opens --one 0.3", "quick runs", "quick runs",
    ]  # fmt: skip
    assert sorted(lines[8:]) == ["ours runs"] * 3 + ["quick runs"] * 3  # each warmed by a run before the first round


def test_unequal_losses_are_refused_with_both_numbers(alone):
    with pytest.raises(Unequal, match="ours gives 1 where other gives 1.1"):
        alone(Workload("w", busy, {"other": partial(busy, value=1.1)}))


def test_a_tolerance_is_relative_and_nan_is_never_equal():
    check_equal("w", [100.0], "other", [100.05], 1e-3)
    with pytest.raises(Unequal):
        check_equal("w", [float("nan")], "other", [float("nan")], 1e-3)
    with pytest.raises(Unequal, match="2 numbers of ours beside 1"):
        check_equal("w", [1.0, 2.0], "other", [1.0], 1e-3)
    with pytest.raises(Unequal, match="0 numbers"):
        check_equal("w", [], "other", [], 1e-3)


def test_a_variant_that_cannot_run_is_noted_and_the_others_count(alone):
    found = alone(Workload("w", busy, {"compiled": broken, "dies": dying, "plain": SLOWER}))
    assert found["variant"] == "plain"
    assert "no compiler here" in found["failed"]["compiled"]
    assert "died with status -9" in found["failed"]["dies"]


def test_without_any_other_side_left_and_without_ours_the_row_fails(alone):
    with pytest.raises(SideError, match="compiled: ImportError: no compiler here"):
        alone(Workload("w", busy, {"compiled": broken}))
    with pytest.raises(SideError, match="jaxfast: the process died with status -9"):
        alone(Workload("w", dying, {"plain": busy}))


def test_what_a_side_prints_does_not_disturb(tmp_path):
    with Process("loud", loud, {"folder": ""}, tmp_path, core=None) as process:
        said = process.open().run()
        assert said["values"] == [1.0] and not said["ahead"]
    assert "this is no JSON" in (tmp_path / "loud.log").read_text()


def test_a_side_says_where_it_is():
    assert address(partial(busy, seconds=1), {"folder": "f"}) == {
        "module": __name__,
        "function": "busy",
        "arguments": {"seconds": 1, "folder": "f"},
    }


def settling(folder):
    return Side(lambda: [1, 2], 4.0, {"bytes": 5}, settle=lambda: time.sleep(0.2), device_memory=lambda: 99)


def test_what_settles_does_not_count_on_the_wall():
    answers = []
    serve(address(settling, {"folder": ""}), ["run\n", "run\n"], answers.append)
    assert answers[0] == {"open": True} and len(answers) == 3
    assert answers[1]["values"] == [1.0, 2.0] and answers[1]["wall"] < 0.2
    assert (answers[1]["memory"], answers[1]["bytes"], answers[1]["work"]) == (99, 5, 4.0)


RESULTS = {
    "device": "a core",
    "versions": {"jax": "1.0"},
    "load": 0.5,
    "date": "today",
    "rounds": 7,
    "rows": [
        {
            "name": "lstm", "ratio": 1.2, "ratio_low": 1.1, "ratio_high": 1.3, "ours": 1234.5, "theirs": 1000.0,
            "unit": "tokens/CPU s", "variant": "nn.LSTM", "share_of_peak": 0.61, "memory": 2**30,
            "memory_theirs": 2**29, "compile_cold_s": 4.04, "compile_cached_s": 0.5, "ratio_wall": 1.15,
            "date": "today", "load": 0.5, "rounds": 7,
        },
        {"name": "unet", "skipped": "it is measured on a GPU"},
        {
            "name": "first_step", "ratio": None, "ours": 12.0, "theirs": None, "unit": "CPU s", "variant": None,
            "share_of_peak": None, "memory": 2**20, "compile_cold_s": 15.0, "compile_cached_s": 0.0,
            "date": "today", "load": 1.5, "rounds": 3, "versions": {"fastai": "2.8"},
        },
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "ratio, sentence", [(1.09, None), (1.07, "lstm fell to 1.07x from 1.20x, by 11%"), (1.4, None), (None, None)]
)
def test_check_names_what_fell_by_more_than_a_tenth(ratio, sentence):
    rows = [{"name": "lstm", "ratio": ratio}, {"name": "new", "ratio": 0.1}, {"name": "unet", "skipped": "no GPU"}]
    assert report.fallen(rows, RESULTS) == ([sentence] if sentence else [])


def test_the_readme_table_is_between_its_markers_and_nowhere_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nrest\n")
    for _ in range(2):  # a second time changes nothing
        report.fill(readme, [RESULTS], {"lstm": "a step"})
    before, _, rest = readme.read_text().partition("<!-- benchmarks -->\n")
    table, _, after = rest.partition("\n<!-- /benchmarks -->\n")
    assert (before, after) == ("# Title\n", "rest\n")
    lines = table.splitlines()
    assert lines[2] == (
        "| a step (`lstm`) | 1,234 tokens/CPU s | 1,000 (nn.LSTM) | **1.20** (1.10–1.30) | 1.15 | 61% "
        "| 1.0 GiB, 512 MiB | 4.0 s, 0.5 s |"
    )
    assert lines[3] == "| first_step (`first_step`) | 12 CPU s | – | – | – | – | 1 MiB | 15.0 s, 0.0 s |"
    assert lines[-1] == "a core; jax 1.0, fastai 2.8; today, load 0.5 to 1.5, 3 to 7 rounds."


@pytest.mark.parametrize("text", ["no markers", "<!-- /benchmarks --> <!-- benchmarks -->", "<!-- benchmarks -->"])
def test_a_readme_without_a_place_is_told(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match="has no place for the table"):
        report.fill(tmp_path / "README.md", [RESULTS], {})


def test_stored_rows_stay_until_they_are_measured_anew(tmp_path):
    path = tmp_path / "results.json"
    report.store(path, RESULTS)
    fresh = [RESULTS["rows"][0] | {"ratio": 2.0}, {"name": "first_step", "skipped": "no"}, {"name": "x", "ours": 1}]
    report.store(path, RESULTS | {"date": "later", "rows": fresh})
    stored = json.loads(path.read_text())
    assert [r["name"] for r in stored["rows"]] == ["lstm", "unet", "first_step", "x"]
    assert stored["rows"][0]["ratio"] == 2.0 and stored["rows"][2] == RESULTS["rows"][2] and stored["date"] == "later"
    for key, value in (("device", "another core"), ("versions", {"jax": "2.0"}), ("small", True)):
        with pytest.raises(ValueError, match="another file"):
            report.store(path, RESULTS | {key: value})


def test_lines_of_the_terminal():
    assert report.line(RESULTS["rows"][0]) == (
        "lstm                       1.20x (1.10-1.30)  1,234 beside 1,000 tokens/CPU s of nn.LSTM, 61% of the peak"
    )
    assert report.line(RESULTS["rows"][1]) == "unet                     skipped: it is measured on a GPU"
    assert report.line({"name": "a", "error": "died"}) == "a                        error: died"


def test_rows_are_named_by_patterns():
    known = workloads()
    assert set(chosen(["lstm"], known)) == {"lstm"}
    assert {"input", "input_packed"} < set(chosen(["input*"], known))
    assert chosen([], known) == known
    with pytest.raises(ValueError, match="no row is called 'lstn'"):
        chosen(["lstn"], known)
    assert {
        "tabular_b64", "tabular_b1024", "collab_b64", "lr_find", "lstm", "lstm_b64", "resnet18", "resnet50", "lite0",
        "gradcam", "fastai_adult", "fastai_movielens", "input",
    } <= {name for name, workload in known.items() if workload.device == "cpu"}  # fmt: skip
    assert {
        "resnet50_224", "lstm_cudnn", "lstm_bf16", "unet", "tabular_scan", "collab_scan", "augment", "sweep",
        "lite0_224", "lr_find_gpu", "first_step_gpu",
    } <= {name for name, workload in known.items() if workload.device == "gpu"}  # fmt: skip


def test_what_is_missing_is_said():
    assert "flax_of_the_fields is not installed" in Workload("w", busy, packages=("flax_of_the_fields",)).lacks()
    assert "nothing.zip is not in" in Workload("w", busy, files=("nothing.zip",), packages=()).lacks()
    theirs = Workload("w", busy, {"other": busy}, their_packages=("flax_of_the_fields",))
    assert "flax_of_the_fields is not installed" in theirs.lacks() and theirs.lacks(alone=True) is None
    environment = Workload("w", busy, packages=(), python=("JAXFAST_NO_SUCH_PYTHON", "make one"))
    assert environment.lacks() == "JAXFAST_NO_SUCH_PYTHON is not set: make one"


def test_a_run_skips_fails_and_goes_on(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("experiments.benchmarks.__main__.limits", lambda small: None)
    monkeypatch.setattr("experiments.benchmarks.__main__.Process", lambda label, *args, **options: FakeMachine())
    monkeypatch.setattr("experiments.benchmarks.__main__.measure", fake_measure)
    rows = {name: Workload(name, busy, packages=()) for name in ("good", "unequal")}
    rows |= {"gpu": Workload("g", busy, packages=(), device="gpu"), "lost": Workload("l", busy, files=("lost.zip",))}
    found = run(rows, gpu=False, rounds=1, small=False)
    assert found["device"] == "d" and [set(r) - {"name"} for r in found["rows"][1:]] == [
        {"error"},
        {"skipped"},
        {"skipped"},
    ]
    assert found["rows"][2]["skipped"] == "it is measured on a GPU"
    assert "unequal                  error: not the same" in capsys.readouterr().out

    monkeypatch.setattr("experiments.benchmarks.__main__.workloads", lambda: rows)
    monkeypatch.setattr("experiments.benchmarks.__main__.has_gpu", lambda: False)
    monkeypatch.setattr(report, "STORED", tmp_path / "results.json")
    file = str(tmp_path / "results.json")
    assert main(["good", "--json", file]) == 0
    assert main(["unequal"]) == 1
    assert main(["good", "--check"]) == 0
    stored = json.loads(Path(file).read_text())
    stored["rows"][0]["ratio"] = 2.0
    Path(file).write_text(json.dumps(stored))
    assert main(["good", "--check"]) == 1
    assert "good fell to 1.20x from 2.00x, by 40%" in capsys.readouterr().out
    # what cannot be stored or compared is refused before it is measured
    monkeypatch.setattr("experiments.benchmarks.__main__.measure", lambda *_, **__: pytest.fail("measured"))
    for wrong, message in (
        (["--small", "--json", file], "of other sizes"),
        (["--small", "--check"], "--check --small"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert message in capsys.readouterr().err
    monkeypatch.setattr("experiments.benchmarks.__main__.measure", fake_measure)
    with pytest.raises(SystemExit):
        main(["--gpu"])
    assert "jax finds no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--rounds", "0"])
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert main(["--list"]) == 0 and "lost.zip" in capsys.readouterr().out


class FakeMachine:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    open = __enter__

    def run(self):
        return {"device": "d", "versions": {}, "peak": {}}


def fake_measure(name, workload, machine, **options):
    if name == "unequal":
        raise Unequal("not the same")
    return RESULTS["rows"][0] | {"name": name}


def test_the_operations_of_a_depthwise_convolution():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Conv2d(4, 4, 3, padding=1, groups=4)
    images, target = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    forward = 2 * (2 * 8 * 8) * 4 * 9  # each of 4 channels has 9 weights
    loss = torch.nn.functional.mse_loss
    # forwards, and the weights' gradient; nobody wants the images'
    assert steps.counted_flops(layer, [images], target, loss) == 2 * forward
    assert steps.counted_flops(torch.nn.Sequential(layer, layer), [images], target, loss) == 5 * forward


@pytest.mark.slow
def test_a_real_workload_on_one_core(capsys, tmp_path):
    file = tmp_path / "real.json"
    assert main(["resnet18", "lstm", "--small", "--rounds", "1", "--json", str(file)]) == 0
    rows = {r["name"]: r for r in json.loads(file.read_text())["rows"]}
    assert rows.keys() == {"resnet18", "lstm"}
    for r in rows.values():
        assert r["ratio"] > 0 and r["share_of_peak"] > 0 and r["compile_cold_s"] > 0 and r["memory"] > 2**20
    assert "torch channels_last" in rows["resnet18"]["variants"]
