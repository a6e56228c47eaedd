"""`python -m jaxfast.rehearse --model resnet50 --topology v5e:16x16 --batch-size 32768`."""

import argparse
import dataclasses
import json
import os
import resource
import sys

import numpy as np

MODELS = ("tabular", "collab", "awd_lstm")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jaxfast.rehearse", description=__doc__)
    parser.add_argument("--model", required=True, help=f"of vision.ARCHITECTURES, or {', '.join(MODELS)}")
    parser.add_argument("--topology", required=True, help="a TPU slice, such as v5e:4x4 or v6e:16x16")
    parser.add_argument("--batch-size", type=int, required=True, help="global: of all chips together")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels (default 224)")
    parser.add_argument("--classes", type=int, default=1000, help="classes of images (default 1000)")
    parser.add_argument("--precision", default="auto", help="bf16 (auto) or fp32")
    parser.add_argument("--norm-groups", type=int, help="groups of batch statistics (default: the chips)")
    parser.add_argument("--accumulate", type=int, default=1, help="compute a batch in so many parts")
    parser.add_argument("--shard", action="store_true", help="split parameters and optimizer state over the chips")
    parser.add_argument("--largest", action="store_true", help="compile half the batch too: the largest that fits")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)

    from jaxfast.rehearse import DoesNotFit, largest_batch, rehearse

    settings = {"precision": options.precision, "norm_groups": options.norm_groups}
    try:
        learn = learner(options)
        done = rehearse(learn, options.topology, options.batch_size, **settings)
        done = dataclasses.replace(done, model=options.model)
        result = dataclasses.asdict(done)
        if options.largest:
            half = rehearse(learn, options.topology, options.batch_size // 2, **settings)
            result["largest_batch_size"] = largest_batch(half, done)
    except (ValueError, ImportError, DoesNotFit) as error:
        print(f"jaxfast.rehearse: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(result))
    else:
        print(done)
        if options.largest:
            print(f"largest batch     about {result['largest_batch_size']:,} (a line through two compilations)")
    return 0


def learner(options: argparse.Namespace):
    """A learner of the asked model on a few made-up examples: only their shapes matter."""
    from jaxfast import collab, tabular, text, vision

    common = {"accumulate": options.accumulate, "shard": options.shard, "quiet": True, "resident": False}
    rng = np.random.default_rng(0)
    if options.model == "tabular":
        columns = {f"c{i}": rng.integers(0, 20, 512).astype(str) for i in range(8)}
        columns |= {f"n{i}": rng.normal(size=512) for i in range(6)} | {"y": rng.integers(0, 2, 512).astype(str)}
        return tabular.learner(tabular.from_frame(columns, target="y", batch_size=64), **common)
    if options.model == "collab":
        columns = {"user": rng.integers(0, 943, 4096), "item": rng.integers(0, 1682, 4096)}
        columns["rating"] = rng.integers(1, 6, 4096).astype(float)
        return collab.learner(collab.from_frame(columns, batch_size=64), y_range=(0.5, 5.5), **common)
    if options.model == "awd_lstm":
        words = [f"w{i}" for i in range(60_000)]
        data = text.from_texts([" ".join(words[:8000])] * 2, valid=[1], vocab=words, batch_size=64, bptt=72)
        return text.language_learner(data, **common)
    labels = np.arange(max(options.classes, 64) * 2) % options.classes
    images = np.broadcast_to(np.uint8(0), (len(labels), options.size, options.size, 3))
    data = vision.from_arrays(images, labels, valid=0.5, batch_size=8, size=options.size)
    return vision.learner(data, options.model, pretrained=False, **common)


def with_deep_stacks() -> None:
    """Start this program again where threads have little stack: the compiler for v6e overflows the usual 8 MiB."""
    wanted = 2**30
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    enough = soft == resource.RLIM_INFINITY or soft >= wanted
    if enough or "JAXFAST_DEEP_STACKS" in os.environ:
        return
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (limit, hard))  # new threads take their size from it, after exec
    environment = os.environ | {"JAXFAST_DEEP_STACKS": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "jaxfast.rehearse", *sys.argv[1:]], environment)


if __name__ == "__main__":
    with_deep_stacks()
    sys.exit(main())
