"""Weight files as NumPy arrays: torch's .pth / .pt without torch, and .safetensors."""

import collections
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

# the numbers that open torch's format from before 1.6, each pickled on its own
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

_STORAGES = {
    "BFloat16Storage": ml_dtypes.bfloat16,
    "BoolStorage": np.bool_,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "ComplexDoubleStorage": np.complex128,
    "ComplexFloatStorage": np.complex64,
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "ShortStorage": np.int16,
}


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Return the tensors of a weight file by name: torch's two formats or safetensors, told by content.

    A checkpoint that holds its weights under "state_dict" or "model" is unwrapped, and only these tensors are
    read. A torch file is a pickle; the unpickler here knows tensors and ordered dictionaries and refuses any
    other class, so that no file can run code. The arrays may be read-only and share memory, as the tensors
    did. Raises FileNotFoundError, and ValueError for a damaged file, another kind of file or a refused class.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {str(path)!r}: expected a .pth, .pt or .safetensors file")
    with path.open("rb") as file:
        head = file.read(9)
        file.seek(0)
        if head[8:] == b"{":  # after the length of its header; neither of torch's formats has it there
            read = _read_safetensors
        elif head[:2] == b"PK":
            read = _read_zip
        elif head[:1] == b"\x80":
            read = _read_legacy
        else:
            raise ValueError(
                f"{str(path)!r} is not a weight file: expected torch's format or safetensors, found {head!r}"
            )
        try:
            return read(file)
        except _Refused as error:
            raise ValueError(f"{str(path)!r} {error}") from None
        except Exception as error:  # a damaged pickle can fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{str(path)!r} is damaged or cut short ({reason}): fetch it again") from None


class _Refused(ValueError):
    """The file is whole but not taken; the message says why, after the file's name."""


class _Storage(NamedTuple):
    key: str
    dtype: Any
    length: int

    @property
    def nbytes(self) -> int:
        return self.length * np.dtype(self.dtype).itemsize


class _Tensor(NamedTuple):
    """A tensor as a pickle describes it; its numbers are read later, and only if it is one of the weights."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle._Unpickler):
    """Knows what a state dict is made of, and what it gives to a pickle cannot be changed by it.

    The unpickler is the one in Python: the one in C makes its memo as long as the largest index, so that one wrong
    bit can ask for all memory.
    """

    def __init__(self, file: BinaryIO):
        def readline() -> bytes:  # half the name of a class is no class to refuse but a file cut short
            line = file.readline()
            if not line.endswith(b"\n"):
                raise EOFError("it ends within a line")
            return line

        super().__init__(SimpleNamespace(read=file.read, readline=readline))
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._parameter
        if module == "torch" and name in _STORAGES:
            return name
        raise _Refused(
            f"asks for {module}.{name}, which no weights need and which could run code: "
            "save the weights alone, torch.save(model.state_dict(), path)"
        )

    def _tensor(self, storage, offset, shape, strides, *_grad_and_hooks) -> _Tensor:
        return _Tensor(self.storages[storage.key], offset, shape, strides)

    def _parameter(self, tensor, *_grad_and_hooks) -> _Tensor:
        return tensor

    def persistent_load(self, pid: Any) -> _Storage:
        kind, name, key, _location, length, *view = pid
        if kind != "storage" or any(view):
            raise _Refused(f"refers to a {kind} within another: save it again with torch 1.6 or later")
        return self.storages.setdefault(key, _Storage(key, _STORAGES[name], length))


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    """torch >= 1.6: a zip archive with one pickle and one entry for each storage."""
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Refused("is a zip archive that torch.save did not write: expected a state dict")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            _check_byte_order(archive.read(f"{folder}byteorder") == b"little")

        def content(storage: _Storage) -> bytes:
            with archive.open(f"{folder}data/{storage.key}") as entry:
                return entry.read(storage.nbytes)

        with archive.open(pickles[0]) as pickled:
            return _arrays(_weights(_Unpickler(pickled).load()), content)


def _read_legacy(file: BinaryIO) -> dict[str, np.ndarray]:
    """torch < 1.6: pickles in a row (magic, version, system, object, storages' keys), then the storages."""
    if _Unpickler(file).load() != _LEGACY_MAGIC or _Unpickler(file).load() != _LEGACY_VERSION:
        raise _Refused("is a pickle that torch.save did not write: expected a state dict")
    _check_byte_order(_Unpickler(file).load()["little_endian"])
    unpickler = _Unpickler(file)
    weights = _weights(unpickler.load())
    positions = {}
    for key in _Unpickler(file).load():
        (length,) = struct.unpack("<q", file.read(8))
        if length != unpickler.storages[key].length:
            raise ValueError(f"storage {key} has {length} elements, not {unpickler.storages[key].length}")
        positions[key] = file.tell()
        file.seek(unpickler.storages[key].nbytes, 1)

    def content(storage: _Storage) -> bytes:
        file.seek(positions[storage.key])
        return file.read(storage.nbytes)

    return _arrays(weights, content)


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(file.name)


def _check_byte_order(little: bool) -> None:
    if not little:
        raise _Refused("holds numbers in big-endian order: save it again on a little-endian machine")


def _weights(loaded: Any) -> dict[str, _Tensor]:
    """The tensors of a state dict, or of the one that a checkpoint holds."""
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise _Refused(f"holds a {type(loaded).__name__}: expected a state dict, tensors by name")
    weights = {name: value for name, value in loaded.items() if isinstance(value, _Tensor)}
    if not weights:
        names = ", ".join(str(name) for name in list(loaded)[:8]) or "nothing"
        raise _Refused(f"holds no tensors but {names}: expected a state dict or one at 'state_dict' or 'model'")
    return weights


def _arrays(weights: dict[str, _Tensor], content: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    """Views of the storages, each read once and found whole."""
    storages = {}
    for storage in {tensor.storage: None for tensor in weights.values()}:
        storages[storage] = content(storage)
        if len(storages[storage]) != storage.nbytes:
            raise ValueError(f"storage {storage.key} has {len(storages[storage])} bytes, not {storage.nbytes}")
    arrays = {}
    for name, (storage, offset, shape, strides) in weights.items():
        _check_inside(storage.length, offset, shape, strides)
        itemsize = np.dtype(storage.dtype).itemsize
        steps = [stride * itemsize for stride in strides]
        arrays[name] = np.ndarray(shape, storage.dtype, storages[storage], offset * itemsize, steps)
    return arrays


def _check_inside(length: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Raise unless all elements lie in the storage; numpy's own check overflows, and passes an empty buffer."""
    numbers = (offset, *shape, *strides)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"a tensor of shape {shape}, strides {strides} and offset {offset}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= length:
        raise ValueError(f"a tensor that reaches to element {last} of a storage of {length}")
