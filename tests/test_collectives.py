"""What the devices of a compiled training step say to each other."""

import re

import numpy as np
import pytest
import small

from jaxfast import losses, optim, training
from jaxfast.data.loader import Resident
from jaxfast.mesh import data_mesh
from jaxfast.models import ClassifierHead, ImageClassifier, resnet

OPERATIONS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")


def collectives(body, groups, *, accumulate=1, shard=False):
    """How many of each operation the chunk of a classifier with this body holds, on 8 devices."""
    mesh, task = data_mesh(), small.data(batch_size=64)
    module = ImageClassifier(body, ClassifierHead(3, hidden=()), mean=(127.0,) * 3, std=(64.0,) * 3)
    example = task.train.batch(np.arange(1))
    state = training.create_state(
        module, [example["image"]], optim.hyper_adamw, groups=module.groups, mesh=mesh, shard=shard, abstract=True
    )
    step = training.make_step(
        module,
        losses.cross_entropy,
        optim.hyper_adamw,
        training.trainable(state.params, module.groups),
        augment=task.augment,
        norm_groups=groups,
        accumulate=accumulate,
        shard=mesh if shard else None,
    )
    chunk = training.make_chunk(step, task.batch_size, mesh, resident=True, shard=shard, capacity=8)
    feed = Resident.put(task.train, task.batch_size, mesh)
    rows = training.hyper_rows(8, [1e-3] * 3, 0.9, 0.01)
    order = feed.place(np.arange(len(task.train), dtype=np.int32))
    lowered = chunk.lower(state, feed.data, order, np.int32(0), np.int32(1), rows, np.bool_(False))
    # Machine code is not looked at: the least of LLVM's levels compiles it soonest.
    text = lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()
    return {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in OPERATIONS}


@pytest.mark.slow
def test_a_resnet50_step_holds_few_collectives():
    counts = collectives(resnet.resnet50(), groups=8)
    assert 1 <= counts["all-reduce"] <= 5
    assert sum(counts.values()) == counts["all-reduce"]


@pytest.mark.parametrize("groups, most", [(8, 5), (16, 5)])
def test_grouped_norms_need_no_collectives(groups, most):
    counts = collectives(resnet.ResNet((1, 1), resnet.BasicBlock, width=8), groups)
    assert 1 <= counts["all-reduce"] <= most
    assert sum(counts.values()) == counts["all-reduce"]


def test_plain_norms_need_two_each():
    assert collectives(resnet.ResNet((1, 1), resnet.BasicBlock, width=8), groups=1)["all-reduce"] > 8


def test_accumulation_moves_no_rows():
    counts = collectives(resnet.ResNet((1, 1), resnet.BasicBlock, width=8), groups=8, accumulate=2)
    assert counts["all-gather"] == counts["all-to-all"] == counts["collective-permute"] == 0
