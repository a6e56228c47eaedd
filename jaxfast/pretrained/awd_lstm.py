"""Weights of AWD-LSTM with the vocabulary that they belong to: fastai's WikiText-103 files, and this library's own."""

import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfast.messages import first
from jaxfast.pretrained.read import read_weights

_OURS = "jaxfast-encoder"


class TextWeights(NamedTuple):
    """`params`: {"encoder": ..., "bias": the decoder's} of a `LanguageModel`, NumPy, without "bias" where there is no
    decoder; `words`: the token of each row of the embedding."""

    params: dict[str, Any]
    words: tuple[str, ...]

    def fitted(self, words: Sequence[str]) -> "TextWeights":
        """The same for another vocabulary: words that are new get the mean of all rows (fastai's match_embeds)."""
        place = {word: i for i, word in enumerate(self.words)}
        rows = np.array([place.get(word, -1) for word in words])

        def fit(table: np.ndarray) -> np.ndarray:
            known = table[rows]
            known[rows < 0] = table.mean(0)
            return known

        encoder = {**self.params["encoder"], "embedding": fit(self.params["encoder"]["embedding"])}
        bias = {"bias": fit(self.params["bias"])} if "bias" in self.params else {}
        return TextWeights({"encoder": encoder, **bias}, tuple(words))

    @property
    def sizes(self) -> dict[str, int]:
        """emb_size, hidden_size and n_layers of the encoder."""
        encoder = self.params["encoder"]
        return {
            "emb_size": encoder["embedding"].shape[1],
            "hidden_size": len(encoder["rnn0"]["hidden_kernel"]),
            "n_layers": len(encoder) - 1,
        }


def to_text_weights(tensors: Mapping[str, np.ndarray], words: Sequence[str]) -> TextWeights:
    """The tensors of fastai's AWD_LSTM language model ("0.encoder.weight", "0.rnns.0.weight_hh_l0_raw", ...).

    Names of an encoder alone, without "0.", are read too. torch's two biases are added. ValueError that lists what is
    missing, unknown or misshapen.
    """
    tensors = {re.sub(r"^(module\.)?(0\.(module\.)?)?", "", name): array for name, array in tensors.items()}
    n_layers = 1 + max((int(found[1]) for name in tensors if (found := re.match(r"rnns\.(\d+)\.", name))), default=-1)
    taken = {"encoder.weight", "encoder_dp.emb.weight", "1.decoder.weight", "1.decoder.bias"}
    missing = [] if n_layers and "encoder.weight" in tensors else ["0.encoder.weight or 0.rnns"]

    def take(*names: str) -> np.ndarray | None:
        taken.update(names)
        array = next((tensors[name] for name in names if name in tensors), None)
        if array is None:
            missing.append(f"0.{names[0]}")
        return array

    layers = {}
    for i in range(n_layers):
        at, module = f"rnns.{i}.", f"rnns.{i}.module."
        # What weight drop wraps is kept raw; the other one holds what dropout left of it in the last training step.
        hidden = take(f"{at}weight_hh_l0_raw", f"{module}weight_hh_l0")
        inputs, *biases = (take(f"{module}{name}_l0") for name in ("weight_ih", "bias_ih", "bias_hh"))
        layers[f"rnn{i}"] = (inputs, hidden, biases)
    extra = [name for name in tensors if name not in taken]
    if missing or extra:
        faults = [f"{what} {first(names, 20)}" for what, names in (("missing", missing), ("extra", extra)) if names]
        raise ValueError(f"not the tensors of fastai's AWD_LSTM: {'; '.join(faults)}")
    embedding = np.array(tensors["encoder.weight"], np.float32)
    if len(words) != len(embedding):
        raise ValueError(
            f"there are {len(words)} words for {len(embedding)} embeddings: give the weights' own vocabulary"
        )
    encoder = {"embedding": embedding}
    width = embedding.shape[1]
    for name, (inputs, hidden, biases) in layers.items():
        new = hidden.shape[1]
        if inputs.shape != (4 * new, width) or hidden.shape != (4 * new, new):
            raise ValueError(f"{name} has weights {inputs.shape} and {hidden.shape} after a layer of {width}")
        kernels = {"input_kernel": inputs.T, "hidden_kernel": hidden.T, "bias": biases[0] + biases[1]}
        encoder[name] = {key: np.array(value, np.float32, order="C") for key, value in kernels.items()}
        width = new
    bias = {"bias": np.array(tensors["1.decoder.bias"], np.float32)} if "1.decoder.bias" in tensors else {}
    return TextWeights({"encoder": encoder, **bias}, tuple(words))


def read_text_weights(path: str | os.PathLike) -> TextWeights:
    """The weights in a file of `save_text_weights`, or in a folder with fastai's pair, such as `lstm_fwd.pth` and
    `itos_wt103.pkl`.

    FileNotFoundError where there is nothing, ValueError for other files and for folders that do not hold one .pth and
    one .pkl.
    """
    path = Path(path)
    if path.is_dir():
        weights, words = (sorted(path.glob(pattern)) for pattern in ("*.pth", "*.pkl"))
        if len(weights) != 1 or len(words) != 1:
            raise ValueError(
                f"{path} holds {len(weights)} .pth and {len(words)} .pkl files: give a folder with one of each, the "
                "weights and their vocabulary, or a file of save_encoder"
            )
        return to_text_weights(read_weights(weights[0]), read_words(words[0]))
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}: give a file of save_encoder or a folder of fastai's")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError:
        about = {}
    if about.get("format") != _OURS:
        raise ValueError(
            f"{path} is no file of save_encoder: give one, or the folder that holds fastai's .pth and .pkl files"
        )
    from flax.traverse_util import unflatten_dict

    return TextWeights(unflatten_dict(tensors, sep="/"), tuple(json.loads(about["words"])))


def save_text_weights(path: str | os.PathLike, weights: TextWeights) -> None:
    """Write a safetensors file with the vocabulary beside the parameters."""
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.array(array, order="C") for name, array in flatten_dict(weights.params, sep="/").items()}
    save_file(tensors, path, {"format": _OURS, "words": json.dumps(weights.words)})


def read_words(path: str | os.PathLike) -> tuple[str, ...]:
    """A vocabulary as fastai pickles it, a list of strings; the file cannot run code. ValueError for anything else."""

    class Plain(pickle.Unpickler):
        def find_class(self, module, name):
            raise pickle.UnpicklingError(f"it names {module}.{name}")

    try:
        with open(path, "rb") as file:
            words = Plain(file).load()
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{path} is not a pickled list of words ({' '.join(str(error).split())})") from None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{path} is not a pickled list of words: it holds {type(words).__name__}")
    return tuple(words)


def named(sizes: Mapping[str, Any]) -> str:
    """Sizes in a sentence: "emb_size 400, n_layers 3"."""
    return ", ".join(f"{name} {value}" for name, value in sizes.items())
