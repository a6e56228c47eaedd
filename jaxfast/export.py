"""A trained model as one file that predicts without the model's code.

An export is a zip, or the folder that it unpacks to. Reading it runs no Python code. It holds

- `export.json`: versions, the codec (labels, sizes), normalization, activation, shapes, checksums;
- `weights.safetensors`: the variables by path, such as "params/body/stem/conv/kernel";
- `program.jax`: `jax.export`'s StableHLO program (weights, batch) -> predictions, for CPU, CUDA and TPU and any number
  of rows. The weights are its arguments; the data's `prepare` and the loss's activation are inside.

How long a program lives is up to `jax.export`, which promises that a jax up to six months newer than the one that wrote
it, or three weeks older, can read it. Where a jax cannot, `load_export` says so: keep the checkpoint of `Learner.save`
beside an export that has to last, and export it again.
"""

import contextlib
import hashlib
import importlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

import jaxfast
from jaxfast.messages import NoAnswer, check_answer, first

FORMAT, VERSION = "jaxfast-export", 1
PLATFORMS = ("cpu", "cuda", "tpu")
ABOUT, WEIGHTS, PROGRAM = "export.json", "weights.safetensors", "program.jax"

CODECS = {
    "image": ("jaxfast.data.image_codec", "ImageCodec"),
    "table": ("jaxfast.data.table_codec", "TableCodec"),
    "ratings": ("jaxfast.data.ratings", "RatingsCodec"),
    "text": ("jaxfast.data.text.codec", "TextCodec"),
}
"""Where the codec of each kind of data is."""
LENGTHS = "8*eighths"
"""Of texts in one export, as `jax.export` writes free sizes: what `TextCodec` pads to."""


@dataclass(frozen=True, eq=False, repr=False)
class Export:
    """A model from `load_export`: `about` is its JSON, `codec` reads items, `program` takes `weights` and a batch."""

    about: dict[str, Any]
    codec: Any
    program: jax.export.Exported
    weights: dict[str, jax.Array]

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The class names in the order of the probabilities, None where the model predicts numbers."""
        return getattr(self.codec, "classes", None) or getattr(getattr(self.codec, "target", None), "classes", None)

    def predict(self, item: Any):
        """The answer to one item of the kind that the learner was trained on, as `Learner.predict` gives it."""
        return self.predict_batch([item])[0]

    def predict_batch(self, items: Any, *, batch_size: int = 64) -> list:
        """The answers to many items: a sequence of what `predict` takes, or a table where the items are its rows.

        Raises the error of the first item that cannot be read, and ValueError for one item alone.
        """
        answers = []
        for answer in self.predict_each(items, batch_size=batch_size):
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer)
        return answers

    def predict_each(self, items: Any, *, batch_size: int = 64) -> Iterator[Any]:
        """Each item's answer in order, or in its place the ValueError or OSError that reading it raised.

        `NoAnswer` (a ValueError) stands where what the model computes is not finite. `items` as in `predict_batch`.
        """
        if isinstance(items, (str, bytes, os.PathLike)):
            raise ValueError(f"{items!r} is one item: give a list of them, or call predict")
        if hasattr(self.codec, "encode_frame") and not isinstance(items, Sequence):
            columns = self.codec.encode_frame(items)
            items = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

        def encode(i: int) -> dict[str, np.ndarray] | Exception:
            try:
                return self.codec.encode(items[i])
            except (ValueError, OSError) as error:
                return error

        size = min(batch_size, _power(len(items)))
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            for start in range(0, len(items), batch_size):
                examples = list(pool.map(encode, range(start, min(start + batch_size, len(items)))))
                good = [example for example in examples if not isinstance(example, Exception)]
                batch = {name: _stacked([example[name] for example in good]) for name in self.about["inputs"] if good}
                rows = iter(self._padded(batch, size) if good else ())
                for i, example in enumerate(examples, start):
                    answer = example if isinstance(example, Exception) else self._decode(next(rows))
                    yield answer.of(items[i]) if hasattr(answer, "of") else answer  # places, in the item's own pixels

    def __call__(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Predictions (batch, ...) for stacked arrays by name, as `about["inputs"]` says; compiles once per batch size.

        ValueError for missing entries and for shapes and types that the program does not take.
        """
        arrays, inputs = {}, self.about["inputs"]
        for name, spec in inputs.items():
            if name not in batch:
                raise ValueError(
                    f"the batch has no entry {name!r}, only {first(list(batch))}: the model takes {first(list(inputs))}"
                )
            value = np.asarray(batch[name])
            shape = ", ".join(map(str, spec["shape"]))
            fixed = [(n, m) for n, m in zip(spec["shape"], value.shape, strict=False) if isinstance(n, int)]
            if value.ndim != len(spec["shape"]) or any(n != m for n, m in fixed) or not len(value):
                raise ValueError(f"{name!r} has the shape {value.shape}: give ({shape})")
            if not np.can_cast(value.dtype, spec["dtype"], "same_kind"):
                raise ValueError(f"{name!r} holds {value.dtype}: give {spec['dtype']}")
            arrays[name] = value.astype(spec["dtype"])
        return np.asarray(self._call(self.weights, arrays))

    def __repr__(self) -> str:
        about = self.about
        named = f", {len(self.classes)} classes ({first(self.classes, 10)})" if self.classes else ""
        inputs = about["inputs"].items()
        takes = "; ".join(f"{name} ({', '.join(map(str, spec['shape']))}) {spec['dtype']}" for name, spec in inputs)
        return (
            f"Export: {about['module']}, {about['kind']}{named}\n"
            f"  takes {takes}; written by jaxfast {about['jaxfast']} with jax {about['jax']}"
        )

    def _decode(self, outputs: np.ndarray) -> Any:
        try:
            check_answer(outputs)
            return self.codec.decode(outputs)
        except NoAnswer as error:
            return error

    def _padded(self, batch: dict[str, np.ndarray], rows: int) -> np.ndarray:
        """Predictions for at most `rows` rows; the batch is filled up to `rows` so that few sizes are compiled."""
        n = len(next(iter(batch.values())))
        index = np.minimum(np.arange(max(n, rows)), n - 1)
        return self({name: values[index] for name, values in batch.items()})[:n]

    @cached_property
    def _call(self):
        return jax.jit(self.program.call)


def _stacked(values: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays in one, the shorter ones, of texts, with zeros up to the longest."""
    longest = max(len(value) if value.ndim else 0 for value in values)
    return np.stack([np.pad(value, (0, longest - len(value))) if value.ndim == 1 else value for value in values])


def _power(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def save_export(path: str | os.PathLike, module, variables: dict, data, loss) -> None:
    """Write the trained `module` as one file at `path`, replacing a file that is there; atomic.

    `variables` are the module's (`state.variables`); of `data`, which it was trained on, `inputs`, `prepare`, `valid`,
    `encode` and `codec` are used; `loss` says the activation. ValueError for data without a codec that `CODECS` knows,
    and where `path` is a folder.
    """
    from safetensors.numpy import save

    # Here and not above, so that load_export needs neither flax nor optax.
    from jaxfast.losses import activation_of
    from jaxfast.training.evaluate import make_forward

    if "://" in os.fspath(path):
        raise ValueError(f"cannot export to {path}: give a path on this machine, and copy the file")
    if Path(path).is_dir():
        raise ValueError(f"cannot export to {path}, it is a folder: give a file such as {Path(path, 'model.jaxfast')}")
    codec = getattr(data, "codec", None)
    kind = getattr(codec, "kind", None)
    if kind not in CODECS:
        what = type(data).__name__
        raise ValueError(f"{what} cannot be exported: its codec is of kind {kind!r}, known are {first(list(CODECS))}")
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
    names = [jax.tree_util.keystr(key, simple=True, separator="/") for key, _ in leaves]
    weights = {name: np.asarray(leaf, order="C") for name, (_, leaf) in zip(names, leaves, strict=True)}
    forward, activation = make_forward(module, data.inputs), activation_of(loss, getattr(data, "task", None))

    def predict(weights, batch):
        batch = batch if data.prepare is None else data.prepare(batch)
        return activation(forward(tree.unflatten([weights[name] for name in names]), batch)[0])

    batch, padded = jax.export.symbolic_shape(f"batch, {LENGTHS}")
    example = {name: jax.numpy.asarray(value) for name, value in data.encode(data.valid[0]).items()}
    row = lambda value: (padded,) if kind == "text" and value.ndim else value.shape
    inputs = {name: jax.ShapeDtypeStruct((batch, *row(value)), value.dtype) for name, value in example.items()}
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in weights.items()}
    with _without_folders():
        exported = jax.export.export(jax.jit(predict), platforms=PLATFORMS)(shapes, inputs)

    entries = {WEIGHTS: save(weights), PROGRAM: bytes(exported.serialize())}
    about = {
        "format": FORMAT, "version": VERSION, "jaxfast": jaxfast.__version__, "jax": jax.__version__,
        "platforms": list(exported.platforms), "module": type(module).__name__, "kind": kind, "codec": codec.to_json(),
        "inputs": {name: _spec(value) for name, value in inputs.items()}, "outputs": _spec(exported.out_avals[0]),
        "activation": getattr(activation, "func", activation).__name__.replace("<lambda>", "identity"),
        "normalization": {name: list(map(float, getattr(module, name, ()))) for name in ("mean", "std")},
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in entries.items()},
    }  # fmt: skip
    _write(Path(path), {ABOUT: json.dumps(about, indent=1, ensure_ascii=False).encode()} | entries)


def load_export(path: str | os.PathLike) -> Export:
    """Read what `Learner.export` wrote, a file or the folder that it unpacks to, without flax and the model's code.

    FileNotFoundError where there is nothing; ValueError for a file that is cut off, changed, no export, or too new.
    """
    from safetensors.numpy import load

    path = Path(path)
    entries = _entries(path)
    about = _about(path, entries)
    for name in (WEIGHTS, PROGRAM):
        if hashlib.sha256(entries.get(name, b"")).hexdigest() != about.get("sha256", {}).get(name):
            raise ValueError(f"{path} is damaged, {name} does not have its checksum: copy it again, or export again")
    kind = about.get("kind")
    if kind not in CODECS:
        raise ValueError(
            f"{path} reads items of the kind {kind!r}, this jaxfast {jaxfast.__version__} knows {first(list(CODECS))}: "
            "upgrade it with pip install --upgrade jaxfast"
        )
    module, name = CODECS[kind]
    try:
        codec = getattr(importlib.import_module(module), name).from_json(about["codec"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, its codec cannot be read ({_line(error)}): export again") from error
    try:
        program = jax.export.deserialize(bytearray(entries[PROGRAM]))
        if program.calling_convention_version > jax.export.maximum_supported_calling_convention_version:
            raise ValueError(f"calling convention {program.calling_convention_version}")
        program.mlir_module()  # parses the StableHLO, which says now whether it is too new
    except Exception as error:  # nearly anything, where jax does not know a field
        raise ValueError(
            f"the program in {path} was written by jax {about.get('jax')}, which jax {jax.__version__} cannot read "
            f"({_line(error)}): install that jax, or export again from a checkpoint"
        ) from error
    return Export(about, codec, program, jax.device_put(load(entries[WEIGHTS])))


@contextlib.contextmanager
def _without_folders():
    """A program's debug information names source files without the folders that they lie in."""
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    jax.config.update(name, r"^.*[\\/]")
    try:
        yield
    finally:
        jax.config.update(name, before)


def _spec(value) -> dict[str, Any]:
    """Shape and type as JSON; the free size by its name."""
    return {"shape": [n if isinstance(n, int) else str(n) for n in value.shape], "dtype": np.dtype(value.dtype).name}


def _line(error: Exception, length: int = 200) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def _write(path: Path, entries: dict[str, bytes]) -> None:
    """A zip that appears at `path` whole or not at all; equal entries give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        part = Path(folder, "part")
        with open(part, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, content in entries.items():
                    info = zipfile.ZipInfo(name)  # dated 1980
                    info.compress_type = zipfile.ZIP_STORED if name == WEIGHTS else zipfile.ZIP_DEFLATED
                    archive.writestr(info, content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


def _entries(path: Path) -> dict[str, bytes]:
    """The contents of an export's entries, as far as they are there."""
    names = (ABOUT, WEIGHTS, PROGRAM)
    if not path.exists():
        raise FileNotFoundError(f"there is no export at {path}")
    if path.is_dir():
        return {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return {}
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in names if name in archive.namelist()}
    except Exception as error:  # a broken zip raises nearly anything
        raise ValueError(f"{path} is cut off or damaged ({_line(error)}): copy it again, or export again") from error


def _about(path: Path, entries: dict[str, bytes]) -> dict[str, Any]:
    try:
        about = json.loads(entries.get(ABOUT, b"{}"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, {ABOUT} is no JSON: copy it again, or export again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{path} is not a jaxfast export: give what learn.export wrote (learn.load reads checkpoints)")
    if about.get("version") != VERSION:
        raise ValueError(
            f"{path} is an export of format {about.get('version')}, written by jaxfast {about.get('jaxfast')}: jaxfast "
            f"{jaxfast.__version__} reads format {VERSION}; upgrade it with pip install --upgrade jaxfast"
        )
    return about
