"""The front door for texts: learners, encoders that change vocabulary, generation, fastai's files, what is refused."""

import itertools
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch

import jaxfast
from jaxfast import text, training
from jaxfast.data.text import SPECIAL
from jaxfast.models.awd_lstm import AWDLSTM, LanguageModel
from jaxfast.models.generate import beam_search, nucleus, sample
from jaxfast.pretrained.awd_lstm import TextWeights, read_text_weights, read_words, to_text_weights

NAMES = "alba bruno clara dario elena fabio gina hugo".split()
SMALL = {"emb_size": 12, "hidden_size": 16, "n_layers": 2}
OPTIONS = {"quiet": True, "devices": jax.devices()[:1]}


def texts(n=200, seed=0):
    """Texts in which names follow on each other by the alphabet, four at a time, and the half that they begin in."""
    rng = np.random.default_rng(seed)
    halves = rng.integers(0, 2, n)
    rows = [" ".join(NAMES[(i + j) % 8] for i in rng.integers(0, 4, 4) + 4 * half for j in range(4)) for half in halves]
    return rows, ["late" if half else "early" for half in halves]


@pytest.fixture(scope="module")
def language():
    data = text.from_texts(texts()[0], batch_size=8, bptt=10, min_freq=1)
    learn = text.language_learner(data, config=SMALL, drop_mult=0.1, **OPTIONS)
    learn.fit_one_cycle(6, 3e-2)
    return learn


@pytest.fixture(scope="module")
def classifier(language):
    rows, labels = texts()
    frame = pd.DataFrame({"text": rows, "label": labels, "held": np.arange(len(rows)) % 4 == 0})
    data = text.from_frame(
        frame, label="label", valid="held", batch_size=8, vocab=language.data.codec.tokenizer, buckets=1
    )
    learn = text.classifier_learner(data, encoder=language, drop_mult=0.1, bptt=8, max_len=16, **OPTIONS)
    assert learn.frozen_to == len(learn.groups) - 1  # as fastai's load_encoder
    learn.unfreeze()
    return learn


# The language model


def test_a_language_model_learns_and_validates_with_its_state_carried(language):
    found = language.validate()
    assert found["perplexity"] < 4 and found["accuracy"] > 0.6
    assert language.history.epochs[-1]["valid_loss"] == pytest.approx(found["loss"], rel=1e-5)
    module, variables, valid = language.module, language.state.variables, language.data.valid
    # the whole of every stream at once, without batches that follow on each other
    rows = [valid.batch(np.arange(s, len(valid), 8)) for s in range(8)]
    losses = []
    for stream in rows:
        state, logits = module.encoder.initial_state(1), []
        advance = jax.jit(lambda token, state: module.apply(variables, token, state, method="advance"))
        for token in stream["text"].ravel():
            out, state = advance(jnp.array([token]), state)
            logits.append(out[0])
        chances = jax.nn.log_softmax(jnp.stack(logits))
        losses.append(-np.take_along_axis(np.asarray(chances), stream["target"].reshape(-1, 1), 1))
    assert found["loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-4)
    before = jax.tree.map(np.asarray, language.state.model_state)
    language.validate()
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, language.state.model_state))


def test_predictions_are_those_of_validation(language):
    predictions, targets = language.get_preds()
    chances = np.take_along_axis(predictions, targets[..., None], -1)
    assert language.validate()["loss"] == pytest.approx(-np.log(chances).mean(), rel=1e-4)


@pytest.mark.slow
def test_streamed_resident_and_distributed_training_agree(language):
    found = []
    for options in ({"resident": True}, {"resident": False}, {"devices": jax.devices()}):
        learn = text.language_learner(language.data, config=SMALL, seed=3, **(OPTIONS | options))
        learn.fit(1, 1e-2)
        outputs, targets, _ = learn.evaluator.outputs(learn.state.variables, learn.task.held_out)  # as host metrics do
        scores = np.take_along_axis(np.asarray(jax.nn.log_softmax(outputs)), targets[..., None], -1)
        assert learn.validate()["loss"] == pytest.approx(-scores.mean(), rel=1e-4)
        found.append((learn.history.losses, learn.validate()["loss"]))
    for losses, valid in found[1:]:
        np.testing.assert_allclose(losses, found[0][0], rtol=1e-4)
        assert valid == pytest.approx(found[0][1], rel=1e-4)


def test_groups_moms_and_defaults_are_fastais(language):
    assert language.moms == (0.8, 0.7, 0.8) and len(language.groups) == 3
    config = {"n_layers": 1, "hidden_size": 8}
    module = text.language_learner(language.data, config=config, drop_mult=0.5, **OPTIONS).module
    encoder = module.encoder
    assert (encoder.emb_size, encoder.hidden_size, encoder.n_layers) == (400, 8, 1)
    drops = encoder.input_drop, encoder.hidden_drop, encoder.embed_drop, encoder.weight_drop, module.output_drop
    assert drops == pytest.approx((0.125, 0.075, 0.01, 0.1, 0.05)) and (module.ar, module.tar) == (2, 1)
    assert text.CLASSIFIER == {
        "emb_size": 400, "hidden_size": 1152, "n_layers": 3, "output_drop": 0.4, "hidden_drop": 0.3, "input_drop": 0.4,
        "embed_drop": 0.05, "weight_drop": 0.5,
    }  # fmt: skip


# Generation


def test_a_language_model_writes_on(language):
    found = language.predict("alba bruno", 6, temperature=0.1)
    assert found.startswith("alba bruno clara dario") or found.startswith("alba bruno")
    assert len(found.split()) <= 8
    assert language.predict("Alba", 9) == language.predict("Alba", 9)
    assert language.predict("Alba", 9, seed=1, temperature=2.0) != language.predict("Alba", 9, temperature=2.0)
    unknown = [language.predict("zoë alba", 20, seed=i, temperature=5.0) for i in range(3)]
    assert all(row.split().count("xxunk") == 1 for row in unknown)  # the one that was given
    assert language.predict("alba bruno", 4, beams=3) == language.predict("alba bruno", 4, beams=3, seed=9)
    assert language._advance._cache_size() == 2  # one row, three rows: nothing more was compiled


def chain(table):
    """A language model whose next token depends on the last one alone, by a table of probabilities."""
    scores = np.log(np.asarray(table) + 1e-30)
    return lambda tokens, state: (scores[tokens], np.column_stack([state, tokens]))


def test_beam_search_finds_the_likeliest_text_where_a_greedy_one_does_not():
    # From 0 the likelier first step (1) leads on to a choice among three, the other (2) to a certain one.
    table = np.zeros((6, 6))
    table[0, [1, 2]] = 0.6, 0.4
    table[1, [3, 4, 5]] = 0.34, 0.33, 0.33
    table[2, 5], table[3:, 0] = 1.0, 1.0
    advance, take = chain(table), lambda state, rows: state[rows]
    find = lambda beams: beam_search(advance, take, np.zeros((beams, 0), int), [3, 0], 2, beams)
    assert find(1) == [1, 3] and find(2) == [2, 5]
    dense = np.random.default_rng(0).dirichlet(np.ones(4), 4)
    chance = lambda t: np.prod([dense[a, b] for a, b in itertools.pairwise((1, *t))])
    best = max(itertools.product(range(4), repeat=4), key=chance)
    assert beam_search(chain(dense), take, np.zeros((64, 0), int), [1], 4, 64) == list(best)


def test_nucleus_and_temperature():
    chances = np.array([0.5, 0.25, 0.15, 0.1])
    np.testing.assert_allclose(nucleus(np.log(chances)), chances)
    np.testing.assert_allclose(nucleus(np.log(chances), 0.5), chances**2 / (chances**2).sum())
    np.testing.assert_allclose(nucleus(np.log(chances), top_p=0.75), [2 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(nucleus(np.log(chances), top_p=0.76), chances * [1, 1, 1, 0] / 0.9)
    np.testing.assert_allclose(nucleus(np.log(chances), top_p=1e-9), [1, 0, 0, 0])
    advance = chain(np.tile(chances, (4, 1)))
    drawn = sample(advance, np.zeros((1, 0), int), [0], 4000, temperature=1.0)
    np.testing.assert_allclose(np.bincount(drawn) / 4000, chances, atol=0.03)
    assert set(sample(advance, np.zeros((1, 0), int), [0], 200, top_p=0.7)) == {0, 1}


# The classifier, and encoders


def test_ulmfit_ends_with_a_classifier(classifier, tmp_path):
    assert len(classifier.groups) == 4
    lr, frozen = 3e-2, np.asarray(classifier.state.params["encoder"]["rnn0"]["bias"]).copy()
    classifier.freeze_to(-2)
    classifier.fit_one_cycle(4, slice(lr / 2.6**4, lr))
    np.testing.assert_array_equal(classifier.state.params["encoder"]["rnn0"]["bias"], frozen)
    assert classifier.validate()["accuracy"] >= 0.9
    answer = classifier.predict("elena fabio gina hugo " * 4)
    assert answer.label == "late" and answer.probabilities.sum() == pytest.approx(1, abs=1e-5)
    predictions, targets = classifier.get_preds()
    row = classifier.data.valid.documents[3]
    alone = classifier.predict({"text": np.asarray(row, np.int32), "length": np.int32(len(row))})
    np.testing.assert_allclose(alone.probabilities, predictions[3], atol=1e-5)
    assert (predictions.argmax(1) == targets).mean() == pytest.approx(classifier.validate()["accuracy"])


def test_an_encoder_is_taken_over_word_by_word(language, tmp_path):
    path = tmp_path / "deep" / "encoder.safetensors"
    language.save_encoder(path)
    data = text.from_texts(texts()[0], batch_size=8, bptt=10, vocab=["gina", "new", "alba"])
    learn = text.language_learner(data, encoder=path, **OPTIONS)
    there, ours = language.weights, learn.weights
    assert ours.words == (*SPECIAL, "gina", "new", "alba")
    old, new = there.params["encoder"]["embedding"], ours.params["encoder"]["embedding"]
    np.testing.assert_array_equal(new[9], old[there.words.index("gina")])
    np.testing.assert_array_equal(new[11], old[there.words.index("alba")])
    np.testing.assert_allclose(new[10], old.mean(0), rtol=1e-5)
    np.testing.assert_allclose(ours.params["bias"][10], there.params["bias"].mean(), rtol=1e-5)
    np.testing.assert_array_equal(ours.params["encoder"]["rnn1"]["bias"], there.params["encoder"]["rnn1"]["bias"])
    other = text.language_learner(language.data, config=SMALL, seed=5, **OPTIONS)
    assert learn.frozen_to == len(learn.groups) - 1 and other.frozen_to == 0
    other.load_encoder(language)
    assert other.frozen_to == len(other.groups) - 1
    assert training.fingerprint(other.state.params) == training.fingerprint(language.state.params)
    with pytest.raises(ValueError, match="the encoder has emb_size 12, hidden_size 16, n_layers 2, the model"):
        text.language_learner(language.data, config=SMALL | {"n_layers": 3}, **OPTIONS).load_encoder(path)
    with pytest.raises(ValueError, match="config has emb_size 13, the encoder emb_size 12"):
        text.language_learner(language.data, encoder=path, config={"emb_size": 13})


def test_fastais_files_are_read(tmp_path):
    """A state dict as fastai 1 and 2 save it (`0.rnns.0.weight_hh_l0_raw` ...), with random weights, beside torch."""
    words = ["xxunk", "xxpad", "xxbos", "the", "film", "xxfake", "xxfake"]
    sizes = [(5, 8), (8, 8), (8, 5)]
    layers = [torch.nn.LSTM(*size) for size in sizes]
    embedding, decoder = torch.nn.Embedding(7, 5), torch.nn.Linear(5, 7)
    decoder.weight = embedding.weight
    tensors = {"0.encoder.weight": embedding.weight, "0.encoder_dp.emb.weight": embedding.weight}
    for i, layer in enumerate(layers):
        tensors[f"0.rnns.{i}.weight_hh_l0_raw"] = layer.weight_hh_l0
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            tensors[f"0.rnns.{i}.module.{name}"] = getattr(layer, name)
        tensors[f"0.rnns.{i}.module.weight_hh_l0"] = layer.weight_hh_l0 * 0  # what dropout left in the last step
    tensors |= {"1.decoder.weight": decoder.weight, "1.decoder.bias": decoder.bias}
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    torch.save({"model": tensors}, tmp_path / "lstm_fwd.pth")
    (tmp_path / "itos_wt103.pkl").write_bytes(pickle.dumps(words))

    found = read_text_weights(tmp_path)
    assert found.words == tuple(words) and found.sizes == {"emb_size": 5, "hidden_size": 8, "n_layers": 3}
    ids = np.random.default_rng(0).integers(0, 7, (2, 6)).astype(np.int32)
    x = embedding(torch.tensor(ids.T).long())
    for layer in layers:
        x = layer(x)[0]
    module = LanguageModel(AWDLSTM(7, 5, 8, 3), 2)
    variables = module.init(jax.random.key(0), ids, np.ones(2, bool))
    logits = module.apply(variables | {"params": found.params}, ids, np.ones(2, bool))
    np.testing.assert_allclose(logits, decoder(x).detach().swapaxes(0, 1), rtol=1e-5, atol=1e-5)

    fitted = found.fitted(["new", "film"]).params["encoder"]["embedding"]
    np.testing.assert_allclose(fitted, [embedding.weight.mean(0).tolist(), embedding.weight[4].tolist()], rtol=1e-5)
    alone = {name.removeprefix("0."): array.numpy() for name, array in tensors.items() if name.startswith("0.")}
    assert "bias" not in to_text_weights(alone, words).params
    del alone["rnns.1.module.bias_ih_l0"]
    with pytest.raises(ValueError, match="missing 0.rnns.1.module.bias_ih_l0; extra rnns.9"):
        to_text_weights(alone | {"rnns.9": np.zeros(3)}, words)
    with pytest.raises(ValueError, match="there are 6 words for 7 embeddings"):
        to_text_weights({name: tensor.numpy() for name, tensor in tensors.items()}, words[:6])


def test_a_vocabulary_file_cannot_run_code(tmp_path):
    path = tmp_path / "itos.pkl"
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match="not a pickled list of words .*builtins.print"):
        read_words(path)
    path.write_bytes(pickle.dumps(["a", 3]))
    with pytest.raises(ValueError, match="it holds list"):
        read_words(path)
    with pytest.raises(ValueError, match="holds 0 .pth and 1 .pkl files"):
        read_text_weights(tmp_path)
    with pytest.raises(ValueError, match="is no file of save_encoder"):
        read_text_weights(path)
    with pytest.raises(FileNotFoundError, match="there are no weights at"):
        read_text_weights(tmp_path / "none")


def test_new_words_get_the_mean():
    params = {"encoder": {"embedding": np.array([[1.0, 2.0], [3.0, 6.0]])}, "bias": np.array([1.0, 2.0])}
    fitted = TextWeights(params, ("a", "b")).fitted(["b", "c"])
    np.testing.assert_array_equal(fitted.params["encoder"]["embedding"], [[3, 6], [2, 4]])
    np.testing.assert_array_equal(fitted.params["bias"], [2, 1.5])


# Export


def test_an_exported_classifier_reads_texts_of_any_length(classifier, tmp_path):
    path = tmp_path / "texts.jaxfast"
    classifier.export(path)
    exported = jaxfast.load_export(path)
    items = ["gina hugo", "alba bruno " * 30, "dario elena fabio gina hugo"]
    answers = exported.predict_batch(items)
    for item, answer in zip(items, answers, strict=True):
        wanted = classifier.predict(item)
        assert answer.label == wanted.label
        np.testing.assert_allclose(answer.probabilities, wanted.probabilities, atol=1e-5)


def test_a_language_model_shows_how_it_would_go_on(language):
    table = language.show_results(3, n_words=4)
    documents = [language.data.decode(ids.tolist()) for ids in language.data.valid.documents]
    assert table.columns == ("text", "goes on", "the model goes on") and len(table.rows) == 3
    for begins, goes_on, written in table.rows:
        assert any(whole.startswith(begins) and goes_on in whole for whole in documents)
        assert len(written.split()) == 4
    assert table == language.show_results(3, n_words=4) != language.show_results(3, 1, n_words=4)


# What is refused


@pytest.mark.parametrize(
    "options, message",
    [
        ({"text": "txt"}, "'txt' not in the table"),
        ({"label": "lable"}, "did you mean 'label'"),
        ({"valid": "label"}, "must be a column of booleans"),
        ({"label": "label", "batch_size": 600}, "batch_size=600 is more than"),
    ],
)
def test_frames_that_do_not_fit(options, message):
    rows, labels = texts()
    with pytest.raises(ValueError, match=message):
        text.from_frame(pd.DataFrame({"text": rows, "label": labels}), **options)


def test_several_columns_are_fields_of_one_text():
    frame = {"title": ["alba"] * 40, "body": ["bruno clara"] * 40}
    data = text.from_frame(frame, text=["title", "body"], batch_size=2, bptt=4, min_freq=1)
    words = [data.vocab[i] for i in data.train.documents[0]]
    assert words == "xxbos xxfld 1 alba xxfld 2 bruno clara".split()


def test_settings_that_do_not_fit(language, classifier):
    with pytest.raises(ValueError, match="data is a TextData"):
        text.language_learner(classifier.data)
    with pytest.raises(ValueError, match="data is a LanguageData"):
        text.classifier_learner(language.data)
    with pytest.raises(ValueError, match="config has 'embsize'.*did you mean 'emb_size'"):
        text.language_learner(language.data, config={"embsize": 3})
    with pytest.raises(ValueError, match="input_drop is 1 with drop_mult=4"):
        text.language_learner(language.data, drop_mult=4.0)
    with pytest.raises(ValueError, match="do not lie on the device"):
        text.classifier_learner(classifier.data, config=SMALL, resident=True, **OPTIONS).fit(1, 1e-3)
    with pytest.raises(ValueError, match="a language model of 8 streams"):
        text.language_learner(language.data, config=SMALL, accumulate=2, **OPTIONS).fit(1, 1e-3)
    with pytest.raises(ValueError, match="encoder is int"):
        text.classifier_learner(classifier.data, encoder=3)
    for options in ({"n_words": 0}, {"temperature": 0}, {"top_p": 2.0}, {"beams": 2, "top_p": 0.5}):
        with pytest.raises(ValueError):
            language.predict("alba", **options)
    with pytest.raises(ValueError, match="cannot be exported"):
        language.export("model.jaxfast")


@pytest.mark.slow
def test_a_run_goes_on_in_the_middle_of_a_stream(language, tmp_path):
    folder, ends = tmp_path / "run", []
    for _ in range(2):
        checkpoints = training.Checkpoints(folder, every=5, keep_last=100)
        learn = text.language_learner(language.data, config=SMALL, checkpoints=checkpoints, **OPTIONS)
        learn.fit_one_cycle(1, 1e-2)
        checkpoints.close()
        ends.append(training.fingerprint((learn.state.params, learn.state.model_state)))
        assert checkpoints.steps[:2] == [5, 10]
        for step in checkpoints.steps[1:]:  # as if the process had ended after step 5
            shutil.rmtree(folder / str(step))
    assert len(learn.history.losses) > 10 and ends[0] == ends[1]
