"""AWD-LSTM beside torch's nn.LSTM: the kernel, the language model in training, the classifier, each kind of dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from jaxfast import losses, optim, training
from jaxfast.kernels import lstm as lstm_kernel
from jaxfast.kernels.lstm import lstm
from jaxfast.models.awd_lstm import AWDLSTM, LanguageModel
from jaxfast.models.text_classifier import TextClassifier

NONE = {"hidden_drop": 0.0, "input_drop": 0.0, "embed_drop": 0.0, "weight_drop": 0.0}
ENCODER = AWDLSTM(30, 6, 10, 3, **NONE)
CPU = jax.default_backend() == "cpu"


def ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 30, shape).astype(np.int32)


def torch_lstms(params):
    """One nn.LSTM for each layer of an encoder's parameters."""
    layers = []
    for i in range(len(params) - 1):
        weights = {name: torch.tensor(np.array(value)) for name, value in params[f"rnn{i}"].items()}
        layer = torch.nn.LSTM(len(weights["input_kernel"]), len(weights["hidden_kernel"]))
        with torch.no_grad():
            layer.weight_ih_l0.copy_(weights["input_kernel"].T)
            layer.weight_hh_l0.copy_(weights["hidden_kernel"].T)
            layer.bias_ih_l0.copy_(weights["bias"])
            layer.bias_hh_l0.zero_()
        layers.append(layer)
    return layers


def randomized(tree, seed=0):
    """Parameters of which none is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.array(x + rng.normal(size=x.shape) * 0.1, jnp.float32), tree)


# The kernel


@pytest.mark.parametrize("batch, inputs, width", [(3, 5, 4), (1, 2, 7)])
def test_kernel_is_torchs_lstm(batch, inputs, width):
    rng = np.random.default_rng(0)
    layer = torch.nn.LSTM(inputs, width)
    x, h, c = rng.normal(size=(6, batch, inputs)), rng.normal(size=(batch, width)), rng.normal(size=(batch, width))
    given = [torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in (x, h[None], c[None])]
    outputs, (last_h, last_c) = layer(*given[:1], tuple(given[1:]))
    weigh = [rng.normal(size=part.shape).astype(np.float32) for part in (outputs, last_h, last_c)]
    sum((part * torch.tensor(w)).sum() for part, w in zip((outputs, last_h, last_c), weigh, strict=True)).backward()
    weights = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0

    def value(x, h, c, w_ih, w_hh, b):
        outputs, (last_h, last_c) = lstm(x, (h, c), w_ih, w_hh, b)
        return sum((p * w).sum() for p, w in zip((outputs, last_h[None], last_c[None]), weigh, strict=True)), outputs

    ours = [jnp.array(a, jnp.float32) for a in (x, h, c, *(w.detach().numpy().T for w in weights))]
    (_, found), grads = jax.value_and_grad(value, argnums=range(6), has_aux=True)(*ours)
    np.testing.assert_allclose(found, outputs.detach(), atol=1e-6)
    theirs = [part.grad for part in given] + [
        layer.weight_ih_l0.grad.T,
        layer.weight_hh_l0.grad.T,
        layer.bias_ih_l0.grad,
    ]
    for ours, wanted in zip(grads, theirs, strict=True):
        np.testing.assert_allclose(ours, wanted.numpy().reshape(ours.shape), rtol=1e-5, atol=1e-5)


def test_kernel_keeps_the_state_wide_and_has_its_numerical_gradient():
    key = iter(jax.random.split(jax.random.key(0), 6))
    draw = lambda *shape: jax.random.normal(next(key), shape)
    x, h, c, w_ih, w_hh, b = draw(4, 2, 3), draw(2, 5), draw(2, 5), draw(3, 20), draw(5, 20), draw(20)
    check_grads(lambda *a: lstm(a[0], a[1:3], *a[3:]), (x, h, c, w_ih, w_hh, b), order=1, modes=["rev"], rtol=2e-2)
    outputs, state = lstm(x.astype(jnp.bfloat16), (h, c), w_ih, w_hh, b)
    assert outputs.dtype == jnp.bfloat16 and {part.dtype for part in state} == {jnp.dtype("float32")}
    np.testing.assert_allclose(outputs.astype(jnp.float32), lstm(x, (h, c), w_ih, w_hh, b)[0], atol=0.05)


def test_the_scan_holds_one_matmul_each_way():
    x, h, w_ih, w_hh, b = (jnp.ones(s) for s in [(4, 2, 3), (2, 5), (3, 20), (5, 20), (20,)])
    grads = jax.grad(lambda *a: lstm(a[0], (a[1], a[1]), *a[2:])[0].sum(), argnums=range(5))

    def scans(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "scan":
                yield eqn
            for branch in eqn.params.get("branches", ()):
                yield from scans(branch.jaxpr)

    found = list(scans(jax.make_jaxpr(grads)(x, h, w_ih, w_hh, b).jaxpr))
    products = [[e.primitive.name for e in eqn.params["jaxpr"].eqns].count("dot_general") for eqn in found]
    assert products == [1, 1, 1, 1]  # forwards and backwards, of the plain form and of the CPU's


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_two_forms_agree_in_values_and_gradients(dtype):
    key = iter(jax.random.split(jax.random.key(0), 9))
    draw = lambda *shape: jax.random.normal(next(key), shape)
    x, w_ih, w_hh, b = (a.astype(dtype) for a in (draw(4, 2, 3), draw(3, 20), draw(5, 20), draw(20)))
    state, cotangents = (draw(2, 5), draw(2, 5)), (draw(4, 2, 5).astype(dtype), draw(2, 5), draw(2, 5))
    results = []
    for name in ("rows", "columns"):
        values, kept = getattr(lstm_kernel, f"_forward_{name}")(x, *state, w_ih, w_hh, b)
        results.append((values, getattr(lstm_kernel, f"_backward_{name}")(kept, cotangents)))
    plain, on_cpu = (jax.tree.leaves(result) for result in results)
    assert [(a.shape, a.dtype) for a in plain] == [(a.shape, a.dtype) for a in on_cpu]
    tolerance = 1e-5 if dtype == jnp.float32 else 0.1
    for a, b in zip(plain, on_cpu, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=tolerance, atol=tolerance)


def test_kernels_that_cannot_run_are_named():
    x, h, w_ih, w_hh, b = (jnp.ones(s) for s in [(4, 2, 3), (2, 5), (3, 20), (5, 20), (20,)])
    with pytest.raises(ValueError, match="kernel='fast': give one of auto, scan, cudnn"):
        lstm(x, (h, h), w_ih, w_hh, b, kernel="fast")
    with pytest.raises(ValueError, match="kernel='cudnn' with bfloat16"):
        lstm(x.astype(jnp.bfloat16), (h, h), w_ih, w_hh, b, kernel="cudnn")


@pytest.mark.skipif(CPU, reason="cuDNN needs a CUDA GPU")
def test_cudnn_is_the_scan():
    key = iter(jax.random.split(jax.random.key(0), 6))
    draw = lambda *shape: jax.random.normal(next(key), shape) * 0.3
    args = draw(7, 4, 3), draw(4, 5), draw(4, 5), draw(3, 20), draw(5, 20), draw(20)

    def value(kernel, *a):
        outputs, state = lstm(a[0], a[1:3], *a[3:], kernel=kernel)
        return jnp.square(outputs).sum() + sum(part.sum() for part in state)

    with jax.default_matmul_precision("highest"):
        found = [jax.value_and_grad(value, argnums=range(1, 7))(kernel, *args) for kernel in ("scan", "cudnn")]
    for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# The language model


def test_a_training_step_is_torchs_with_both_penalties_and_the_carried_state():
    module = LanguageModel(ENCODER, 4, output_drop=0.0)
    text = ids(3, 4, 8)  # three batches of four streams
    batches = [
        {"text": t[:, :-1], "target": t[:, 1:], "reset": np.full(4, i == 0)} for i, t in enumerate(text)
    ]  # fmt: skip
    state = training.create_state(module, (text[0, :1], np.ones(1, bool)), optim.hyper_sgd, groups=module.groups)
    state = state.replace(params=randomized(state.params))
    part = training.trainable(state.params, module.groups)
    step = jax.jit(training.make_step(module, losses.cross_entropy, optim.hyper_sgd, part, inputs=("text", "reset")))
    params = jax.device_get(state.params)
    layers = torch_lstms(params["encoder"])
    embedding = torch.tensor(params["encoder"]["embedding"], requires_grad=True)
    bias = torch.tensor(params["bias"], requires_grad=True)
    trained = [embedding, bias, *(p for layer in layers for n, p in layer.named_parameters() if n != "bias_hh_l0")]
    optimizer, lr = torch.optim.SGD(trained, 5.0), np.full(4, 5.0, np.float32)
    hypers = {"lr": lr, "momentum": np.float32(0), "weight_decay": np.float32(0)}
    hidden = [None] * 3
    for batch in batches:
        state, metrics = step(state, batch, hypers)
        x = embedding[torch.tensor(batch["text"].T).long()]
        for i, layer in enumerate(layers):
            x, after = layer(x, hidden[i])
            hidden[i] = tuple(part.detach() for part in after)
        logits = x @ embedding.T + bias
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 30), torch.tensor(batch["target"].T).long().ravel())
        assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-5)  # without the penalties
        optimizer.zero_grad()
        (loss + 2 * x.pow(2).mean() + (x[1:] - x[:-1]).pow(2).mean()).backward()
        optimizer.step()
    for i in range(3):
        np.testing.assert_allclose(state.model_state["carry"][f"rnn{i}"][0], hidden[i][0][0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(state.model_state["carry"][f"rnn{i}"][1], hidden[i][1][0], rtol=1e-5, atol=1e-5)
    ours = jax.device_get(state.params)
    np.testing.assert_allclose(ours["encoder"]["embedding"], embedding.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours["bias"], bias.detach(), rtol=1e-5, atol=1e-5)
    kernel = ours["encoder"]["rnn0"]["hidden_kernel"]
    np.testing.assert_allclose(kernel, layers[0].weight_hh_l0.detach().T, rtol=1e-5, atol=1e-5)
    assert np.abs(kernel - params["encoder"]["rnn0"]["hidden_kernel"]).max() > 1e-3


def test_reset_begins_a_stream_anew_and_only_that_one():
    module = LanguageModel(ENCODER, 2)
    variables = module.init(jax.random.key(0), ids(1, 5), np.ones(1, bool))
    _, carry = module.apply(variables, ids(2, 5), np.ones(2, bool), mutable=["carry"])
    fresh = module.apply(variables, ids(2, 5, seed=1), np.ones(2, bool))
    mixed = module.apply(variables | carry, ids(2, 5, seed=1), np.array([True, False]))
    np.testing.assert_array_equal(mixed[0], fresh[0])
    assert np.abs(mixed[1] - fresh[1]).max() > 1e-4
    with pytest.raises(ValueError, match="a batch of 3 for a language model of 2 streams"):
        module.apply(variables, ids(3, 5), np.ones(3, bool))


def test_one_step_at_a_time_gives_the_same_logits():
    module = LanguageModel(ENCODER, 2)
    variables = module.init(jax.random.key(0), ids(1, 5), np.ones(1, bool))
    whole, state = module.apply(variables, ids(2, 5), np.ones(2, bool)), ENCODER.initial_state(2)
    for i in range(5):
        logits, state = module.apply(variables, ids(2, 5)[:, i], state, method="advance")
        np.testing.assert_allclose(logits, whole[:, i], atol=1e-5)


# Dropout


def test_each_dropout_hits_what_it_is_named_for():
    encoder = AWDLSTM(400, 20, 30, 3, hidden_drop=0.5, input_drop=0.4, embed_drop=0.25, weight_drop=0.2)
    variables = encoder.init(jax.random.key(0), 64, False, method="draw")
    draw = lambda seed, train: encoder.apply(
        variables, 64, train, rngs={"dropout": jax.random.key(seed)}, method="draw"
    )
    drawn, plain = draw(0, True), draw(0, False)
    assert plain.words is None and plain.inputs is None and plain.hidden == (None, None)

    def rate(mask):
        kept = np.unique(mask)
        assert kept[0] == 0 and len(kept) == 2
        share = (mask == 0).mean()
        assert kept[1] == pytest.approx(1 / (1 - round(share * 20) / 20), rel=1e-3)
        return share

    assert drawn.words.shape == (400,) and rate(np.asarray(drawn.words)) == pytest.approx(0.25, abs=0.06)
    assert drawn.inputs.shape == (64, 20) and rate(np.asarray(drawn.inputs)) == pytest.approx(0.4, abs=0.04)
    assert [mask.shape for mask in drawn.hidden] == [(64, 30), (64, 30)]
    assert rate(np.asarray(drawn.hidden[0])) == pytest.approx(0.5, abs=0.04)
    for (inputs, hidden, bias), before in zip(drawn.layers, plain.layers, strict=True):
        np.testing.assert_array_equal(inputs, before[0])
        np.testing.assert_array_equal(bias, before[2])
        assert rate(np.asarray(hidden / before[1]).round(4)) == pytest.approx(0.2, abs=0.04)
    assert np.any(draw(1, True).words != drawn.words)
    # a word that fell out is silent wherever it stands
    state, text = encoder.initial_state(1), jnp.array([[3, 4, 3]])
    plain = plain._replace(words=jnp.ones(400).at[3].set(0.0))
    silent = plain._replace(words=None, embedding=plain.embedding.at[3].set(0.0))
    np.testing.assert_array_equal(encoder.run(plain, text, state)[0], encoder.run(silent, text, state)[0])


def test_output_dropout_is_the_same_at_every_step():
    module = LanguageModel(ENCODER, 2, output_drop=0.5)
    variables = module.init(jax.random.key(0), ids(1, 5), np.ones(1, bool))
    embedding = jnp.eye(30, 6)  # the first six logits are the outputs themselves
    variables["params"]["encoder"]["embedding"] = embedding
    plain = module.apply(variables, ids(2, 5), np.ones(2, bool))
    logits, _ = module.apply(
        variables,
        ids(2, 5),
        np.ones(2, bool),
        True,
        rngs={"dropout": jax.random.key(1)},
        mutable=["carry", "penalties"],
    )
    ratio = np.asarray(logits / plain)[..., :6]
    assert set(np.unique(ratio.round(4))) == {0.0, 2.0}
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), atol=1e-4)


# The classifier


def by_torch(params, head, text, lengths):
    """Pooled outputs of the whole text, one text at a time, then the head; its batch norms by batch statistics."""
    layers, embedding = torch_lstms(params), torch.tensor(np.array(params["embedding"]))
    pooled = []
    for row, n in zip(text, lengths, strict=True):
        x = embedding[torch.tensor(row[:n]).long()][:, None]
        for layer in layers:
            x = layer(x)[0]
        pooled.append(torch.cat([x[-1, 0], x[:, 0].max(0)[0], x[:, 0].mean(0)]))
    x = torch.stack(pooled)
    for i in range(2):
        x = torch.nn.functional.batch_norm(x, None, None, training=True)
        x = x @ torch.tensor(np.array(head[f"dense{i}"]["kernel"]))
        x = torch.relu(x) if i == 0 else x
    return x.detach().numpy()


@pytest.mark.parametrize("bptt", [5, 8, 40])
def test_the_classifier_pools_over_the_whole_text_and_sees_no_padding(bptt):
    module = TextClassifier(ENCODER, 3, drops=(0.0, 0.0), bptt=bptt, max_len=10)
    text, lengths = ids(4, 24), np.array([24, 17, 9, 1])
    variables = module.init(jax.random.key(0), text, lengths)
    variables["params"]["encoder"] = randomized(variables["params"]["encoder"])
    run = lambda text, **kw: module.apply(
        variables, text, lengths, True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats", "penalties"]
    )
    logits, changed = run(text)
    params = variables["params"]
    np.testing.assert_allclose(logits, by_torch(params["encoder"], params["head"], text, lengths), rtol=1e-3, atol=1e-4)
    padded = text.copy()
    padded[np.arange(24) >= lengths[:, None]] = 1
    again, unchanged = run(padded)
    np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(changed["penalties"]), jax.tree.leaves(unchanged["penalties"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_gradients_come_from_the_last_tokens_alone():
    module = TextClassifier(ENCODER, 3, drops=(0.0, 0.0), bptt=4, max_len=8)
    text, lengths = ids(4, 24, seed=1), np.array([24, 23, 22, 21])
    early, late = text.copy(), text.copy()
    early[:, :8], late[:, -8:] = 29, 29  # a word that stands in the first or in the last tokens only
    variables = module.init(jax.random.key(0), text, lengths)
    variables["params"]["encoder"] = randomized(variables["params"]["encoder"])

    def loss(params, text):
        variables_ = variables | {"params": params}
        logits, _ = module.apply(
            variables_, text, lengths, True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats", "penalties"]
        )
        return (logits * jnp.arange(12.0).reshape(4, 3)).sum()

    others = np.where(text == 29, 0, text)
    early, late = np.where(early == 29, early, others), np.where(late == 29, late, others)
    grads = [jax.grad(loss)(variables["params"], text)["encoder"]["embedding"][29] for text in (early, late)]
    assert np.abs(grads[0]).max() == 0 and np.abs(grads[1]).max() > 1e-4


def test_parameter_groups_are_fastais():
    language, classifier = LanguageModel(ENCODER, 2), TextClassifier(ENCODER, 3)
    assert language.groups == (("encoder/rnn0",), ("encoder/rnn1",), ("encoder/rnn2",), ("encoder/embedding", "bias"))
    assert classifier.groups == (
        ("encoder/embedding",), ("encoder/rnn0",), ("encoder/rnn1",), ("encoder/rnn2",), ("head",),
    )  # fmt: skip
