"""What the compiled step of five models costs: operations, all-reduces, memory and the size of its text."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxfast import losses, optim, training
from jaxfast.mesh import data_mesh
from jaxfast.models import ClassifierHead, DynamicUnet, ImageClassifier, resnet
from jaxfast.models.awd_lstm import AWDLSTM, LanguageModel
from jaxfast.models.tabular import TabularNet

from . import tasks
from .learners import TEXT

BATCH = 16
TOLERANCES = {"all_reduces": 0.0, "flops": 1e-3, "stablehlo_bytes": 0.05, "memory_bytes": 0.05}
"""By how much, of what was recorded, each number may differ."""
PIXELS = {"mean": resnet.MEAN, "std": resnet.STD}


class Program(NamedTuple):
    """A function that gives data and a module, the loss, and the groups of batch statistics on eight devices."""

    build: Callable
    loss: losses.Loss
    norm_groups: int = 8
    slow: bool = False


def body():
    return resnet.ResNet((1, 1), resnet.BasicBlock, width=8)


def classifier():
    return tasks.images(batch_size=BATCH, augment=True), ImageClassifier(body(), ClassifierHead(3, ()), **PIXELS)


def language_model():
    data = tasks.streams(BATCH)
    return data, LanguageModel(AWDLSTM(len(data.vocab), **TEXT), BATCH)


def table():
    return tasks.table("rich", batch_size=BATCH), TabularNet(((5, 3),), 2, layers=(16, 8))


def unet():
    return tasks.masks(batch_size=BATCH), DynamicUnet(body(), 2, **PIXELS)


PROGRAMS = {
    "resnet with plain norms": Program(classifier, losses.cross_entropy, norm_groups=1, slow=True),
    "resnet with grouped norms": Program(classifier, losses.cross_entropy),
    "language model": Program(language_model, losses.cross_entropy),
    "table": Program(table, losses.cross_entropy),
    "unet": Program(unet, losses.segmentation_cross_entropy, slow=True),
}


def lowered(program: Program, steps: int = 4):
    """The chunk of `steps` training steps with AdamW on all devices, batches and state given by their shapes."""
    data, module = program.build()
    mesh, groups = data_mesh(), getattr(module, "groups", None)
    batch = data.train.batch(np.arange(BATCH))
    example = {name: value[:1] for name, value in batch.items()}
    if data.prepare is not None:
        example = data.prepare(example)
    state = training.create_state(
        module, [example[name] for name in data.inputs], optim.hyper_adamw, groups=groups, mesh=mesh, abstract=True
    )
    part = training.trainable(state.params, groups)
    step = training.make_step(
        module, program.loss, optim.hyper_adamw, part, inputs=data.inputs, augment=data.augment,
        norm_groups=program.norm_groups,
    )  # fmt: skip
    chunk = training.make_chunk(step, BATCH, mesh, resident=False, capacity=steps)
    rows = training.hyper_rows(steps, [1e-3] * part.n_groups, 0.9, 0.01)
    return chunk.lower(state, batch, np.empty(0, np.int32), np.int32(0), np.int32(steps), rows, np.bool_(False))


def measured(program: Program) -> dict[str, float]:
    """Operations of one step and characters of the program for all devices; collectives and memory of one device."""
    found = lowered(program)
    # Machine code is not looked at: the least of LLVM's levels compiles it soonest.
    compiled = found.compile(compiler_options={"xla_backend_optimization_level": 0})
    memory = compiled.memory_analysis()
    return {
        "all_reduces": len(re.findall(r" all-reduce(?:-start)?\(", compiled.as_text())),
        "flops": float(found.cost_analysis()["flops"]),
        "stablehlo_bytes": len(found.as_text().encode()),
        "memory_bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
    }


def differences(now: dict, then: dict) -> list[str]:
    """One line for every number that is further than its tolerance from what was recorded."""
    return [
        f"{name} is {now[name]}, recorded is {then[name]}"
        for name, tolerance in TOLERANCES.items()
        if not abs(now[name] - then[name]) <= tolerance * then[name]
    ]
