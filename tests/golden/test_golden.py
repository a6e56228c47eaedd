"""Training computes the numbers that were recorded, its programs cost as much, and its files are still read."""

import copy
import json
import os

import jax
import pytest

from . import files, learners, measure, programs, record

SAME, OTHER = 1e-6, 1e-3
"""Relative differences on the machine that recorded, and on others, whose sums are rounded in another order.

Narrower vector units (`--xla_cpu_max_isa=AVX2` on a processor with AVX-512) moved "tags by rmsprop" by 6e-6.
"""


def slow(name, marked):
    return pytest.param(name, marks=pytest.mark.slow) if marked else name


@pytest.fixture(scope="module")
def golden():
    return record.recorded(record.LEARNERS)


@pytest.mark.parametrize("name", [slow(name, road.slow) for name, road in learners.LEARNERS.items()])
def test_learners(name, golden, record_property):
    same = golden["machine"] == measure.machine()
    then, now = golden["measured"][name], measure.measured(learners.LEARNERS[name])
    assert len(now["losses"]) == learners.STEPS
    assert not measure.differences(now, then, SAME if same else OTHER)
    bits = now["sha256"] == then["sha256"]
    record_property("bits", "equal" if bits else "other")
    print(f"{name}: {'equal' if bits else 'other'} bits, at most {measure.distance(now, then):.1e} off")
    if same and os.environ.get(measure.BITWISE) == "bitwise":
        assert now["sha256"] == then["sha256"]
        assert measure.distance(now, then) == 0


@pytest.mark.parametrize("name", [slow(name, program.slow) for name, program in programs.PROGRAMS.items()])
def test_programs(name):
    then = record.recorded(record.PROGRAMS)["measured"][name]
    assert not programs.differences(programs.measured(programs.PROGRAMS[name]), then)


def test_everything_is_recorded(golden):
    assert list(golden["measured"]) == list(learners.LEARNERS)
    assert list(record.recorded(record.PROGRAMS)["measured"]) == list(programs.PROGRAMS)
    for entry in golden["measured"].values():
        assert len(entry["losses"]) == learners.STEPS and entry["sha256"]["initial"] != entry["sha256"]["trained"]


@pytest.mark.parametrize("kind", measure.KINDS)
def test_one_changed_number_is_found(kind, golden):
    then = golden["measured"]["net by sgd"]
    now = copy.deepcopy(then)
    name = len(now[kind]) - 1 if isinstance(now[kind], list) else list(now[kind])[-1]
    now[kind][name] *= 1 + 3e-6
    (line,) = measure.differences(now, then, SAME)
    assert line.startswith(f"{kind}[{name}]") and not measure.differences(now, then, 1e-5)
    now[kind][name] = float("nan")
    assert measure.differences(now, then, OTHER)


@pytest.mark.parametrize("name", programs.TOLERANCES)
def test_one_changed_cost_is_found(name):
    then = record.recorded(record.PROGRAMS)["measured"]["resnet with grouped norms"]
    assert not programs.differences(then, then)
    assert programs.differences(then | {name: then[name] * 1.06}, then)


def test_a_digest_is_of_bits_names_and_keys():
    tree = {"a": jax.numpy.zeros(2), "key": jax.random.key(0)}
    others = [tree | {"a": -tree["a"]}, tree | {"key": jax.random.key(1)}, {"b": tree["a"], "key": tree["key"]}]
    assert len({measure.digest(other) for other in [tree, dict(tree), *others]}) == 4


def test_the_export_predicts_as_it_did():
    then = json.loads(files.ABOUT.read_text())
    try:
        found = files.read_export()
    except ValueError as error:
        assert files.refusal(error), error
    else:
        assert found == [pytest.approx(row, rel=1e-5) for row in then["predictions"]]


@pytest.mark.parametrize("path", files.CHECKPOINTS, ids=lambda path: path.name)
def test_a_checkpoint_is_what_it_was(path):
    then = json.loads(files.ABOUT.read_text())
    try:
        learn = files.read_checkpoint(path)
    except ValueError as error:
        assert files.refusal(error) and path != files.CHECKPOINTS[-1], error
    else:
        assert int(learn.state.step) == then["step"]
        assert measure.sums(learn.state.variables) == pytest.approx(then["sums"], rel=1e-12)
        found = [files.probabilities(learn.predict(row)) for row in files.ROWS]
        assert found == [pytest.approx(row, rel=1e-5) for row in then["predictions"]]


@pytest.mark.parametrize(
    "message, names",
    [
        ("m.jaxfast is an export of format 1, written by jaxfast 0.1.0: jaxfast 0.2.0 reads format 2", True),
        ("the checkpoint has version 1, this jaxfast reads version 2: load it with jaxfast 0.1", True),
        ("the checkpoint is damaged: its numbers are not those that were saved", False),
        ("it has format 1\nand more", False),
    ],
)
def test_what_counts_as_a_refusal(message, names):
    assert files.refusal(ValueError(message)) == names
