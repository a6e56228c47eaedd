"""One interrupt of each kind of fit by `attacks.interrupts`, and that the attack sees what is lost."""

import os
import signal

import jobs
import pytest
from attacks import interrupts, victim

# Starting decode workers again and again takes longer than the ordinary suite should wait for.
KINDS = [pytest.param(kind, marks=pytest.mark.slow if kind == "workers" else ()) for kind in interrupts.SHARES]


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupt_loses_nothing(kind):
    results = interrupts.attack(kind, interrupts.plans(6, seed=0)[kind], seconds=1.0)
    found = interrupts.summary({kind: results})
    assert found["failures"] == []
    assert found["survived"] == found["attempts"] == 1


class Run:
    """An uninterrupted run of five steps, as a reference."""

    marks = [{"params": f"p{k}", "step": f"s{k}"} for k in range(6)]
    losses = [0.5, 0.4, 0.3, 0.2, 0.1]

    def reach(self, k):
        assert k < len(self.marks)


def held(k, **changes):
    return {"k": k, "marks": Run.marks[k], "losses": Run.losses[:k]} | changes


@pytest.mark.parametrize(
    "found, wrong",
    [
        (held(3), []),
        (held(0), ["0 steps where 2 had been seen"]),
        (held(2, marks=Run.marks[3]), ["params differs", "step differs"]),
        (held(3, losses=[0.5, 0.4]), ["2 losses for 3 steps"]),
        (held(3, losses=[0.5, 0.4, 0.3, 0.2]), ["4 losses for 3 steps"]),
        (held(3, losses=[0.5, 0.4, 0.30001]), ["the loss of step 2 differs"]),
        ({"error": "RuntimeError: Array has been deleted"}, ["RuntimeError: Array has been deleted"]),
    ],
)
def test_the_attack_sees_what_is_lost(found, wrong):
    assert victim.differences(found, Run(), least=2) == wrong


def test_a_process_that_dies_fails_every_attempt_left():
    plan = [{"chance": 0.5, "group": False, "cold": False}] * 2
    results = interrupts.attack("no such kind", plan)
    assert [result["wrong"] for result in results] == [["the process ended with 1: KeyError: 'no such kind'"]] * 2
    found = interrupts.summary({"table": results})
    assert (found["survived"], found["attempts"], len(found["failures"])) == (0, 2, 2)


@pytest.mark.parametrize("n, counts", [(6, [1] * 6), (30, [10, 4, 4, 4, 4, 4]), (200, [50, 30, 30, 30, 30, 30])])
def test_attempts_by_kind(n, counts):
    plans = interrupts.plans(n, seed=3)
    assert [len(plan) for plan in plans.values()] == counts
    assert plans == interrupts.plans(n, seed=3) != interrupts.plans(n, seed=4)
    assert plans["workers"][0]["group"]  # the workers are interrupted too
    assert [plan[0]["cold"] for plan in plans.values()] == [n > 6] * 6


def test_too_few_attempts():
    with pytest.raises(ValueError, match="n=5: give at least 6, an attempt for each kind"):
        interrupts.plans(5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupt_of_one_process_stops_all_at_one_step(processes):
    """As a terminal's Ctrl-C, or `kill -INT` of one of them; the fit after it works."""
    run = jobs.start("interrupted", processes=processes, devices=8 // processes)
    for line in run[-1].stdout:
        if line.startswith("epoch 1"):
            break
    os.kill(run[-1].pid, signal.SIGINT)
    found = []
    for text in jobs.finish(run):
        lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
        (step, losses, _), (after, all_losses, _) = lines["interrupted"], lines["after"]
        assert 16 <= int(step) == int(losses) < 320, text
        assert int(after) == int(all_losses) == int(step) + 8
        found.append((lines["interrupted"], lines["after"]))
    assert found == found[:1] * processes
