import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex

from jaxfast import plot
from jaxfast._extras import need

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3)).astype(np.uint8)


def texts(figure):
    """Every text that a figure shows."""
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def line(figure, label):
    return next(entry for ax in figure.axes for entry in ax.lines if entry.get_label() == label)


@pytest.mark.parametrize(("columns", "grid"), [(None, (2, 3)), (5, (1, 5)), (1, (5, 1))])
def test_images_stand_in_a_grid_under_their_titles(columns, grid):
    figure = plot.show_images(IMAGES, list("abcde"), wrong=[False, True, False, False, True], columns=columns)
    gridspec = figure.axes[0].get_gridspec()
    assert (gridspec.nrows, gridspec.ncols) == grid
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == list("abcde")
    assert [to_hex(ax.title.get_color()) == plot.RED for ax in shown] == [False, True, False, False, True]
    for ax, image in zip(shown, IMAGES, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), image)


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1)])
def test_grey_images_keep_their_brightness(shape):
    image = np.full(shape, 100.4, np.float32)  # without fixed limits a flat image would be drawn black
    shown = plot.show_images([image]).axes[0].images[0]
    np.testing.assert_array_equal(shown.get_array(), np.full((8, 6), 100))
    assert shown.get_clim() == (0, 255)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(images=[]), "there are no images"),
        (dict(images=IMAGES, titles=["a"]), "1 titles for 5 images"),
        (dict(images=IMAGES, titles=list("abcde"), wrong=[True]), r"1 marks \(wrong\) for 5 images"),
        (dict(images=[np.zeros((4, 4, 7))]), r"shape \(4, 4, 7\)"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.show_images(**arguments)


def test_top_losses_name_prediction_label_loss_and_probability():
    figure = plot.top_losses(IMAGES[:2], ["cat", "dog"], ["dog", "dog"], [3.456, 0.1], [0.987, 0.5])
    assert [ax.get_title() for ax in figure.axes] == [
        "predicted cat\nactual dog\nloss 3.46, p 0.99",
        "predicted dog\nactual dog\nloss 0.10, p 0.50",
    ]
    assert [to_hex(ax.title.get_color()) == plot.RED for ax in figure.axes] == [True, False]


def test_lr_find_marks_the_suggestions_on_the_smoothed_curve():
    lrs, losses = np.geomspace(1e-4, 1, 5), np.array([3.0, 2.0, 1.0, 4.0, np.nan])
    figure = plot.lr_find(lrs, losses, np.array([3.0, 2.5, 0.9, 90.0, np.inf]), {"valley": 1e-3, "steep": 1e-2})
    ax = figure.axes[0]
    assert ax.get_xscale() == "log"
    marks = [line(figure, "valley 1.0e-03"), line(figure, "steep 1.0e-02")]
    np.testing.assert_allclose([mark.get_xydata()[0] for mark in marks], [(1e-3, 2), (1e-2, 1)])
    low, high = ax.get_ylim()
    assert low < 0.95 and 4 < high < 5  # what counts is in view, though a single step leaves it
    assert {"learning rate", "training loss", "smoothed loss", "loss of each step"} <= set(texts(figure))


@pytest.mark.parametrize(("ratio", "scale"), [(1, "linear"), (10, "linear"), (100, "log")])
def test_schedule_draws_every_group_and_the_momentum(ratio, scale):
    lrs = np.linspace(0.1, 1, 6)[:, None] * [1 / ratio, 1]
    figure = plot.schedule(lrs, np.linspace(0.95, 0.85, 6), groups=["body", "head"])
    top, bottom = figure.axes
    assert top.get_yscale() == scale
    np.testing.assert_allclose(line(figure, "body").get_ydata(), lrs[:, 0])
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), np.linspace(0.95, 0.85, 6))
    assert {"learning rate", "momentum", "step", "body", "head"} <= set(texts(figure))
    assert len(plot.schedule(lrs[:, 1]).axes) == 1
    with pytest.raises(ValueError, match="1 names for 2 groups"):
        plot.schedule(lrs, groups=["body"])


def test_losses_smooth_by_a_debiased_average_and_place_the_epochs():
    train = np.random.default_rng(0).uniform(size=200)
    figure = plot.losses(train, [0.4, 0.3], [100, 200])
    beta = 1 - 20 / 200
    weights = beta ** np.arange(200)[::-1]  # the newest weighs most
    smoothed = [(weights[-n:] * train[:n]).sum() / weights[-n:].sum() for n in range(1, 201)]
    np.testing.assert_allclose(line(figure, "train, smoothed").get_ydata(), smoothed)
    np.testing.assert_allclose(line(figure, "valid, each epoch").get_xydata(), [(100, 0.4), (200, 0.3)])
    assert {"step", "loss"} <= set(texts(figure))


@pytest.mark.parametrize("train", [[0.5], [0.5, np.nan], [1.0] * 30])
def test_losses_draw_short_flat_and_broken_runs(train):
    texts(plot.losses(train))


def test_metrics_have_axes_of_their_own():
    values = {"accuracy": [0.5, 0.75], "balanced_accuracy": [0.4, 0.7], "f1": [0.1, 0.2], "mse": [2.0, 1.0]}
    figure = plot.metrics(values)
    shown = [ax for ax in figure.axes if ax.lines]
    assert [ax.get_ylabel() for ax in shown] == ["accuracy", "balanced accuracy", "f1", "mse"]
    np.testing.assert_allclose(shown[1].lines[0].get_xydata(), [(1, 0.4), (2, 0.7)])
    assert all(tick == round(tick) for tick in shown[0].get_xticks())
    with pytest.raises(ValueError, match="there are no metrics"):
        plot.metrics({})


def test_confusion_matrix_writes_counts_and_shades_shares():
    counts = np.array([[8, 2, 0], [1, 1, 2], [0, 0, 0]])  # a class without examples divides nothing by zero
    figure = plot.confusion_matrix(counts, ["a", "b", "c"])
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.8, 0.2, 0], [0.25, 0.25, 0.5], [0, 0, 0]])
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {(j, i): str(counts[i, j]) for i in range(3) for j in range(3)}
    assert {"actual", "predicted", "share of the actual class"} <= set(texts(figure))
    with pytest.raises(ValueError, match=r"shape \(3, 3\) for 2 classes: give \(2, 2\)"):
        plot.confusion_matrix(counts, ["a", "b"])


def test_confusion_matrix_of_many_classes_leaves_zeros_out():
    figure = plot.confusion_matrix(np.diag(np.arange(12)), range(12))
    assert [text.get_text() for text in figure.axes[0].texts] == [str(n) for n in range(1, 12)]


@pytest.mark.parametrize("number", [2, 37])
def test_labels_stay_inside_of_the_confusion_matrix_picture(number):
    figure = plot.confusion_matrix(np.eye(number, dtype=int), [f"a long class name {n}" for n in range(number)])
    figure.draw_without_rendering()
    label = figure.axes[0].yaxis.label.get_window_extent()
    assert label.x0 >= 0 and figure.axes[0].xaxis.label.get_window_extent().y0 >= 0


@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 6, 1), (8, 24, 3)])
def test_heatmap_stretches_the_map_over_the_whole_image(shape):
    figure = plot.heatmap(np.zeros(shape, np.uint8), np.eye(2), "a title")
    under, over = figure.axes[1].images
    whole = [-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5]
    assert list(under.get_extent()) == list(over.get_extent()) == whole
    assert over.get_clim() == (0, 1) and 0 < over.get_alpha() < 1
    assert {"a title", "evidence, relative to its peak"} <= set(texts(figure))


def test_figures_show_themselves_in_a_notebook():
    assert plot.show_images(IMAGES)._repr_png_().startswith(b"\x89PNG")


def test_drawing_touches_no_pyplot():
    code = "import sys, numpy as np; from jaxfast import plot; assert 'matplotlib' not in sys.modules; "
    code += "plot.losses(np.ones(3))._repr_png_(); assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plot.figures._figure_class.cache_clear()
    with pytest.raises(ImportError, match=r"^plots need matplotlib: pip install 'jaxfast\[plot\]'$"):
        plot.losses([1.0])


def test_need_lets_other_import_errors_through(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        need("broken_module", extra="plot", purpose="plots")
    assert need("json.decoder", extra="plot", purpose="plots").JSONDecoder


MASKS = [np.zeros((8, 6), np.uint8), np.full((8, 6), 255, np.uint8), np.eye(8, 6, dtype=np.uint8)]


def test_masks_are_painted_over_images_and_void_is_clear():
    figure = plot.show_masks(IMAGES[:3], MASKS, ["sky", "road", "car"])
    assert texts(figure).count("car") == 0  # which does not occur
    sky, void, both = (ax.images[1].get_array() for ax in figure.axes[:3])
    assert (sky[..., 3] == 0.55).all() and (void[..., 3] == 0).all() and (both[..., 3] > 0).all()
    assert (sky[0, 0] == both[0, 1]).all() and not (sky[0, 0] == both[0, 0]).all()
    patches = figure.legends[0].get_patches()
    assert [to_hex(patch.get_facecolor()) for patch in patches] == [to_hex(sky[0, 0]), to_hex(both[0, 0])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sky", "road"]


def test_image_truth_and_prediction_stand_side_by_side():
    truth = [np.where(MASKS[2] == 1, 255, 0)]
    figure = plot.show_segmentation(IMAGES[:1], truth, [np.ones((8, 6), np.uint8)], ["sky", "road"])
    assert [ax.get_title() for ax in figure.axes] == ["image", "truth", "prediction"]
    assert [len(ax.images) for ax in figure.axes] == [1, 2, 2]
    for ax in figure.axes[1:]:  # void in the truth is clear in the prediction
        np.testing.assert_array_equal(ax.images[1].get_array()[..., 3] == 0, MASKS[2] == 1)


def test_forty_classes_have_forty_colours():
    mask = np.arange(40, dtype=np.uint8).reshape(5, 8)
    painted = plot.show_masks([np.zeros((5, 8))], [mask], [str(i) for i in range(40)]).axes[0].images[1].get_array()
    assert len({tuple(colour) for colour in painted.reshape(-1, 4).round(3).tolist()}) == 40


def test_points_are_drawn_where_their_pixels_are():
    points = [np.array([[0.5, 0.5], [6, 8]])]
    figure = plot.show_points(IMAGES[:1], points, ["nose", "ear"], predictions=[points[0] + 1])
    truth, prediction = figure.axes[0].collections
    np.testing.assert_allclose(truth.get_offsets(), [[0, 0], [5.5, 7.5]])
    np.testing.assert_allclose(prediction.get_offsets(), [[1, 1], [6.5, 8.5]])
    assert figure.axes[0].get_xlim() == (-0.5, 5.5) and figure.axes[0].get_ylim() == (7.5, -0.5)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["nose", "ear", "truth", "prediction"]
    assert not plot.show_points(IMAGES[:1], [[[1, 1]]], ["nose"]).legends


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.show_masks([], [], ["a"]), "there are no images"),
        (lambda: plot.show_masks(IMAGES[:2], MASKS, ["a"]), "3 masks for 2 images"),
        (
            lambda: plot.show_masks(IMAGES[:1], [MASKS[0].T], ["a"]),
            r"mask of shape \(6, 8\) for an image of \(8, 6, 3\)",
        ),
        (lambda: plot.show_segmentation(IMAGES[:1], MASKS[:1], MASKS[:2], ["a"]), "2 masks for 1 images"),
        (lambda: plot.show_points(IMAGES[:2], [[[1, 1]]], ["a"]), "1 points for 2 images"),
        (lambda: plot.show_points([], [], ["a"]), "there are no images"),
    ],
)
def test_masks_and_points_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
