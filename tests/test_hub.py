"""`pretrained="owner/name"`: repositories of the Hugging Face hub, from a loopback server, its cache and a folder."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from small import arrays, data
from transformers import ResNetConfig, ResNetForImageClassification

from jaxfast import models, pretrained, vision
from jaxfast.models import resnet
from jaxfast.pretrained import hub, sources
from jaxfast.pretrained.config import Config, read_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TIMM = {
    "architecture": "resnet18",
    "num_classes": 3,
    "label_names": ["red", "green", "blue"],
    "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0.5, 0.25, 0.75], "std": [0.2, 0.1, 0.3]},
}
TRANSFORMERS = {
    "model_type": "resnet",
    "layer_type": "bottleneck",
    "depths": [3, 4, 6, 3],
    "hidden_sizes": [256, 512, 1024, 2048],
    "downsample_in_first_stage": False,
    "id2label": {"10": "rose", "9": "tulip"},
}
PREPROCESSOR = {"image_mean": [0.5, 0.25, 0.75], "image_std": [0.2, 0.1, 0.3], "do_normalize": True}


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A folder of repositories, as they lie on the hub: whole ones of timm and transformers, and faulty ones."""
    root = tmp_path_factory.mktemp("hub")
    model = models.ImageClassifier(models.resnet18(), models.LinearHead(3), resnet.MEAN, resnet.STD)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)
    tensors = pretrained.to_torch_names(variables, "resnet18")
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    safetensors.numpy.save_file(tensors, write(root / "timm/resnet18.a1_in1k", config=TIMM) / "model.safetensors")

    torch.manual_seed(0)
    config = ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512])
    config.id2label = {0: "tulip", 1: "rose"}
    ResNetForImageClassification(config).save_pretrained(root / "microsoft/resnet-18")
    (root / "microsoft/resnet-18/preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))

    torch.save({"fc.bias": torch.ones(3)}, write(root / "some/bin", config=TIMM) / "pytorch_model.bin")
    (write(root / "some/one-without-config") / "model.safetensors").touch()
    write(root / "some/one-without-weights", config=TIMM)
    write(root / "some/page", config="<html>")
    write(root / "some/cut", config=TIMM)
    write(root / "some/bert", config={"model_type": "bert"})
    write(root / "some/strided", config=TRANSFORMERS | {"downsample_in_bottleneck": True})
    return root


# --- what a config says


@pytest.mark.parametrize(
    "config, preprocessor, expected",
    [
        (TIMM, {}, Config("resnet18", (127.5, 63.75, 191.25), (51.0, 25.5, 76.5), ("red", "green", "blue"))),
        ({"architecture": "resnet34", "mean": [0.5], "std": [0.2]}, {}, Config("resnet34", (127.5,), (51.0,), None)),
        ({"architecture": "resnet50d", "pretrained_cfg": {}}, {}, Config("xresnet50", None, None, None)),
        (
            TRANSFORMERS,
            PREPROCESSOR | {"do_rescale": True, "rescale_factor": 0.00392156862745098},
            Config("resnet50", (127.5, 63.75, 191.25), (51.0, 25.5, 76.5), ("tulip", "rose")),
        ),
        (
            {"model_type": "resnet"},
            {"image_mean": [127.0], "image_std": [128.0], "do_rescale": False},
            Config("resnet50", (127.0,), (128.0,), None),
        ),
        ({"model_type": "resnet"}, PREPROCESSOR | {"do_normalize": False}, Config("resnet50", (0.0,), (255.0,), None)),
        ({"model_type": "resnet"}, {}, Config("resnet50", None, None, None)),
    ],
)
def test_configs(config, preprocessor, expected):
    found = read_config(config, lambda: preprocessor)
    assert (found.arch, found.classes) == (expected.arch, expected.classes)
    for ours, theirs in ((found.mean, expected.mean), (found.std, expected.std)):
        assert ours == (theirs if theirs is None else pytest.approx(theirs))


@pytest.mark.parametrize(
    "config, arch",
    [
        *(
            ({"layer_type": layer, "depths": depths}, arch)
            for arch, layer, depths in [
                ("resnet18", "basic", [2, 2, 2, 2]),
                ("resnet34", "basic", [3, 4, 6, 3]),
                ("resnet50", "bottleneck", [3, 4, 6, 3]),
                ("resnet101", "bottleneck", [3, 4, 23, 3]),
                ("resnet152", "bottleneck", [3, 8, 36, 3]),
            ]
        ),
        ({"layer_type": "basic", "depths": [1, 1, 1, 1]}, "resnet of basic layers (1, 1, 1, 1)"),
        ({"downsample_in_first_stage": True}, "resnet50 with downsample_in_first_stage=True"),
        ({"hidden_act": "gelu"}, "resnet50 with hidden_act='gelu'"),
    ],
)
def test_transformers_configs_name_an_architecture(config, arch):
    assert read_config({"model_type": "resnet", **config}, dict).arch == arch


# --- on disk


def test_a_repository_in_a_folder(repositories):
    timm = pretrained.find_weights("resnet18", repositories / "timm/resnet18.a1_in1k")
    assert timm.path == repositories / "timm/resnet18.a1_in1k/model.safetensors"
    assert timm.classes == ("red", "green", "blue")
    theirs = pretrained.find_weights("resnet18", str(repositories / "microsoft/resnet-18"))
    assert theirs.mean == timm.mean == pytest.approx((127.5, 63.75, 191.25))
    assert theirs.classes == ("tulip", "rose")
    assert pretrained.find_weights("resnet18", timm.path) == pretrained.Weights(timm.path)


def test_the_whole_classifier_of_a_repository_names_its_classes(repositories):
    """Head, statistics and class names included: the same answer as transformers gives."""
    folder = repositories / "microsoft/resnet-18"
    weights = pretrained.find_weights("resnet18", folder)
    model = models.ImageClassifier(
        models.resnet18(), models.LinearHead(len(weights.classes)), weights.mean, weights.std
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = pretrained.to_variables(pretrained.read_weights(weights.path), "resnet18", shapes)
    ours = np.asarray(jax.jit(model.apply)(variables, images))

    reference = ResNetForImageClassification.from_pretrained(folder).eval()
    mean, std = (np.array(PREPROCESSOR[name]) for name in ("image_mean", "image_std"))
    pixels = torch.from_numpy(((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        theirs = reference(pixels).logits.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert [weights.classes[i] for i in ours.argmax(-1)] == [
        reference.config.id2label[i] for i in theirs.argmax(-1).tolist()
    ]


@pytest.mark.parametrize(
    "repository, arch, error, message",
    [
        ("timm/resnet18.a1_in1k", "resnet50", ValueError, "holds weights of resnet18, not of resnet50"),
        ("some/strided", "resnet50", ValueError, "of resnet50 with downsample_in_bottleneck=True, not of resnet50"),
        ("some/one-without-config", "resnet18", FileNotFoundError, "has no config.json: give pretrained=PATH"),
        ("some/one-without-weights", "resnet18", FileNotFoundError, "neither model.safetensors nor pytorch_model.bin"),
        ("some/page", "resnet18", ValueError, r"page' is no JSON \(config.json\)"),
        ("some/bert", "resnet18", ValueError, r"bert' names no architecture that is known here \(model_type 'bert'\)"),
    ],
)  # fmt: skip
def test_faulty_repositories(repositories, repository, arch, error, message):
    with pytest.raises(error, match=message) as raised:
        pretrained.find_weights(arch, repositories / repository)
    assert "\n" not in str(raised.value)


def test_what_is_on_disk_is_not_asked_of_the_hub(repositories, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("asked the hub"))
    monkeypatch.chdir(repositories)
    folder = pretrained.find_weights("resnet18", "timm/resnet18.a1_in1k")
    assert folder.path.as_posix() == "timm/resnet18.a1_in1k/model.safetensors"
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "timm/resnet18.a1_in1k"
    file.parent.mkdir()
    file.touch()
    found = pretrained.find_weights("resnet18", "timm/resnet18.a1_in1k")
    assert found.path.samefile(file) and found.mean is None


@pytest.mark.parametrize("name", ["imagenet", "weights/resnet18.pth", "./timm/resnet18", "a/b/c", "hf-hub:timm/x"])
def test_neither_a_file_nor_a_repository(name, monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(
        FileNotFoundError, match=r"\.safetensors file, a repository .*'timm/.*, True .*, or False"
    ) as error:
        pretrained.find_weights("resnet18", name)
    assert "\n" not in str(error.value)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"hub need huggingface_hub: pip install 'jaxfast\[hub\]'"):
        pretrained.find_weights("resnet18", "timm/resnet18.a1_in1k")


# --- over the network


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers to a request for a file: its headers, 404 with the reason's code, or the file."""

    def do_HEAD(self):
        self.server.log.append(f"{self.command} {self.path}")
        if not (asked := re.fullmatch("/(.+)/(.+)/resolve/main/(.+)", self.path)):
            return self.answer(404, {})
        owner, name, file = asked.groups()
        repository = self.server.root / owner / name
        path = repository / file
        if name == "gated":
            return self.answer(403, {"X-Error-Code": "GatedRepo"})
        if name == "broken" or (name == "cut" and self.command == "GET"):
            return self.answer(501, {})
        if not repository.is_dir():
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        headers = {"X-Repo-Commit": COMMIT}
        if not path.is_file():
            return self.answer(404, headers | {"X-Error-Code": "EntryNotFound"})
        etag = f"{owner}-{name}-{file}"
        self.answer(200, headers | {"ETag": f'"{etag}"', "Content-Length": str(path.stat().st_size)})
        return path

    def do_GET(self):
        if path := self.do_HEAD():
            with path.open("rb") as file:
                shutil.copyfileobj(file, self.wfile)

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(repositories):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.root, server.log = repositories, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


PROGRAM = """
import json, sys, time
from jaxfast import pretrained
time.sleep = lambda seconds: None  # huggingface_hub waits before it tries again
for arch, name in json.loads(sys.argv[1]):
    try:
        found = pretrained.find_weights(arch, name)
        print(json.dumps([str(found.path), found.mean, found.std, found.classes]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def find_in_a_process(home, asked, **environment):
    """What `find_weights` gives for (arch, name) in a process of its own: huggingface_hub reads its settings once."""
    cache = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "0"}
    direct = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "JAX_PLATFORMS": "cpu"}
    environment = os.environ | cache | direct | environment
    command = [sys.executable, "-c", PROGRAM, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_repository_is_fetched_once_and_then_found_without_a_network(server, tmp_path):
    good = [["resnet18", name] for name in ("timm/resnet18.a1_in1k", "microsoft/resnet-18", "some/bin")]
    bad = [
        ["resnet34", "timm/resnet18.a1_in1k"],
        ["resnet18", "some/one-without-weights"],
        ["resnet18", "timm/unknown"],
        ["resnet18", "some/gated"],
        ["resnet18", "some/broken"],
        ["resnet18", "some/cut"],
    ]
    endpoint = f"http://127.0.0.1:{server.server_port}"
    found = find_in_a_process(tmp_path, good + bad, HF_ENDPOINT=endpoint)
    timm, theirs, binary = found[:3]
    for path, *_ in (timm, theirs, binary):
        assert path.startswith(str(tmp_path)) and COMMIT in path
    assert timm[1:] == [[127.5, 63.75, 191.25], pytest.approx([51.0, 25.5, 76.5]), ["red", "green", "blue"]]
    assert theirs[1:] == [pytest.approx(timm[1]), pytest.approx(timm[2]), ["tulip", "rose"]]
    assert binary[0].endswith("pytorch_model.bin")
    for path, repository in ((timm[0], "timm/resnet18.a1_in1k"), (theirs[0], "microsoft/resnet-18")):
        original = pretrained.read_weights(server.root / repository / "model.safetensors")
        for name, array in pretrained.read_weights(path).items():
            np.testing.assert_array_equal(array, original[name])
    messages = [
        ("ValueError", "'timm/resnet18.a1_in1k' holds weights of resnet18, not of resnet34"),
        ("FileNotFoundError", "'some/one-without-weights' has neither model.safetensors nor pytorch_model.bin"),
        ("FileNotFoundError", "no repository 'timm/unknown' on the Hugging Face hub"),
        ("FileNotFoundError", "no repository 'some/gated' on the Hugging Face hub, and no such file here: "),
        ("ConnectionError", "the Hugging Face hub cannot be reached, and config.json of 'some/broken' is not in its "),
        ("ConnectionError", "the Hugging Face hub did not give config.json of 'some/cut': "),
    ]  # fmt: skip
    for (kind, text), (expected_kind, expected) in zip(found[3:], messages, strict=True):
        assert kind == expected_kind and text.startswith(expected) and "\n" not in text
    fetched = [line for line in server.log if line.startswith("GET")]
    assert sorted(fetched) == sorted(set(fetched))  # nothing twice
    assert not any("preprocessor" in line and "timm" in line for line in server.log)

    # without a network, by choice and by accident: what was fetched is found, what was not is one line
    requests = len(server.log)
    asked = [*good, ["resnet18", "timm/resnet18.tv_in1k"], bad[1]]
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        again = find_in_a_process(tmp_path, asked, **{"HF_ENDPOINT": endpoint} | environment)
        assert again[:3] == found[:3]
        assert again[3] == [
            "ConnectionError",
            "the Hugging Face hub cannot be reached, and config.json of 'timm/resnet18.tv_in1k' is not in its cache: "
            "fetch it once with a connection, or give pretrained=PATH of a .safetensors or .pth file",
        ]
        assert again[4] == found[4]
    assert len(server.log) == requests


# --- in a learner


def test_a_learner_takes_the_repositorys_weights_and_statistics(repositories):
    learn = vision.learner(data(), "resnet18", pretrained=repositories / "timm/resnet18.a1_in1k", quiet=True)
    assert learn.module.mean == pytest.approx((127.5, 63.75, 191.25))
    assert learn.module.std == pytest.approx((51.0, 25.5, 76.5))
    tensors = pretrained.read_weights(repositories / "timm/resnet18.a1_in1k/model.safetensors")
    kernel = learn.state.params["body"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize("arch", ["resnet18", "efficientnet_lite0"])
def test_a_learner_of_grey_images_sums_the_first_kernel(repositories, arch):
    source = repositories / "microsoft/resnet-18/model.safetensors" if arch == "resnet18" else True
    images, labels = arrays(64)
    grey = vision.from_arrays(images[..., 0], labels, batch_size=32, channels=1)
    learn = vision.learner(grey, arch, pretrained=source, quiet=True)
    mean, std = vision.ARCHITECTURES[arch].mean, vision.ARCHITECTURES[arch].std
    assert learn.module.mean == (pytest.approx(np.mean(mean)),) and learn.module.std == (pytest.approx(np.mean(std)),)
    tensors = pretrained.read_weights(sources.weights_path(arch, source))
    names = "transformers" if arch == "resnet18" else None
    theirs = tensors[pretrained.torch_name(arch, "body/stem/conv/kernel", names)]
    kernel = learn.state.params["body"]["stem"]["conv"]["kernel"]
    np.testing.assert_allclose(kernel[:, :, 0], theirs.sum(1).transpose(1, 2, 0), rtol=1e-5, atol=1e-6)
    assert learn.predict(grey.valid[0]).probabilities.shape == (3,)
