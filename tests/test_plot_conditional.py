"""Pictures of conditional densities and forecasts draw the numbers that were measured, at any size of data."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text
from scipy import stats

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval import Estimate, reliability, reliability_band, sharpness
from rosenblatt.eval import coverage_by_group as measured_groups
from rosenblatt.plot import (
    coverage_by_group,
    fan_chart,
    pit_reliability,
    quantile_curves,
    save_conditional_plots,
    score_table,
    sharpness_calibration,
)
from rosenblatt.plot.style import DATA, MODEL, OFF, SERIES, shortened

LONG = "an exceedingly long name of a model that nobody would ever shorten by hand"
LEVELS = [0.05, 0.25, 0.5, 0.75, 0.95]


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outline(collection):
    """x, lower and upper edge of a `fill_between`."""
    corners = collection.get_paths()[0].vertices
    ends = {}
    for x, y in corners:
        low, high = ends.get(x, (np.inf, -np.inf))
        ends[x] = (min(low, y), max(high, y))
    xs = np.array(sorted(ends))
    return xs, *np.array([ends[x] for x in xs]).T


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def check_texts(figure):
    """No text leaves the picture, and no two texts lie on each other."""
    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = canvas.get_width_height()
    boxes = []
    for text in figure.findobj(Text):
        box = text.get_window_extent(renderer)
        if text.get_text() and text.get_visible() and shows(text, figure):
            assert box.x0 >= -1, text
            assert box.y0 >= -1, text
            assert box.x1 <= width + 1, text
            assert box.y1 <= height + 1, text
            boxes.append((text.get_text(), box.shrunk(0.98, 0.9)))
    for (one, box), (other, second) in itertools.combinations(boxes, 2):
        assert not box.overlaps(second), f"{one!r} lies on {other!r}"


def shows(text, figure):
    """Tick labels beyond the ends of an axis are kept by matplotlib, but not drawn."""
    for axes in figure.axes:
        for axis, place in ((axes.xaxis, 0), (axes.yaxis, 1)):
            for tick in axis.get_major_ticks():
                if text in (tick.label1, tick.label2):
                    low, high = sorted(axis.get_view_interval())
                    known = text is tick.label1 and tick.label1.get_visible()
                    return known and low <= text.get_position()[place] <= high
    return True


@pytest.mark.parametrize("rows", [10, 100_000])
def test_no_text_is_cut_or_covered(rows):
    u = uniform(rows, 3)
    y = torch.from_numpy(stats.norm.ppf(u[:, 0].numpy()))
    quantiles = torch.from_numpy(stats.norm.ppf(LEVELS)).expand(rows, 5)
    found = sharpness(y, quantiles, LEVELS)
    names = np.array([f"{LONG} {number}" for number in range(40)])[np.arange(rows) % 40]
    days = np.datetime64("2024-01-01") + np.arange(rows + 12) * np.timedelta64(1, "h")
    samples = uniform(50, 12)
    figures = [
        pit_reliability(u, names=["load", "price", LONG]),
        pit_reliability({f"{LONG} {number}": u[:, 0] for number in range(7)}),
        coverage_by_group(u, names, names=["load", "price", LONG], label=LONG),
        coverage_by_group(u[:, 0], u[:, 1], bins=5),
        sharpness_calibration(found),
        sharpness_calibration({"flow": found, LONG: found, "other": found}, unit="thousand kilowatt hours"),
        fan_chart(days, y, samples=samples, truth=samples[0], name=LONG),
        fan_chart(np.arange(rows + 12) + 100_000, y, samples=samples, name="load, MW"),
        quantile_curves(y, quantiles, LEVELS, X=y, y=y, names=(LONG, LONG)),
        score_table({LONG: {"CRPS": (0.3, 1e-4), LONG: (-300.0, 20.0)}, "b": {"CRPS": (0.2, 1e-6), LONG: (5.0, 0.0)}}),
    ]
    for figure in figures:
        check_texts(figure)
    assert pyplot.get_fignums() == []


def test_reliability_draws_what_is_measured():
    u = uniform(500, 2)
    u[:, 1] = u[:, 1] ** 2
    figure = pit_reliability(u, names=["right", "wrong"])
    found = reliability(u)
    for axes, base in zip(figure.axes, (0, found.levels.numpy()), strict=True):
        at, low, high = outline(axes.collections[0])
        np.testing.assert_allclose(at, found.levels)
        np.testing.assert_allclose(low, found.low.numpy() - base)
        np.testing.assert_allclose(high, found.high.numpy() - base)
        for target, line in enumerate(axes.lines[1:]):
            np.testing.assert_allclose(line.get_ydata(), found.share[:, target].numpy() - base)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0] == "right: in the band"
    assert texts[1] == f"wrong: off at {int(found.outside[:, 1].sum())} of 99 levels"
    assert "99.9 %" in figure.get_suptitle()


def test_models_by_name_and_more_curves_than_can_be_told_apart():
    columns = uniform(50, 8)
    figure = pit_reliability({f"model {k}": columns[:, k].numpy() for k in range(8)})
    assert len(figure.axes[0].lines) == 1 + len(SERIES)
    assert "first 6 of 8 curves" in figure.get_suptitle()
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines[1:]}
    assert len({colour for colour, _ in looks}) == len(SERIES)
    np.testing.assert_allclose(figure.axes[0].lines[2].get_ydata(), reliability(columns[:, :6]).share[:, 1])


def test_groups_draw_what_is_measured_and_mark_those_off():
    u = uniform(900)
    u[300:600] = 0.5 + 0.6 * (u[300:600] - 0.5)
    groups = np.repeat(["a", "b", "c"], 300)
    axes = coverage_by_group(u, groups).axes[0]
    found = measured_groups(u, groups)
    drawn = {}
    for container in axes.containers:
        line, _, (bars,) = container
        for x, place, segment in zip(line.get_xdata(), line.get_ydata(), bars.get_segments(), strict=True):
            drawn[int(place)] = (x, *segment[:, 0], to_hex(line.get_color()))
    expected = torch.cat([found.share, found.low, found.high], dim=1)
    for place, colour in enumerate((MODEL, OFF, MODEL)):
        assert drawn[place][:3] == pytest.approx(expected[place].tolist())
        assert drawn[place][3] == colour
    assert axes.lines[0].get_xdata() == pytest.approx([0.8, 0.8])
    assert axes.yaxis_inverted()


def test_the_worst_of_many_groups_are_shown():
    u = uniform(4000)
    groups = np.arange(4000) % 40
    u[groups == 39] = 0.99
    figure = coverage_by_group(u, groups)
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(shown) == 30
    assert "39 (100 rows)" in shown
    assert "30 of 40" in figure.get_suptitle()
    assert "1 group off" in figure.get_suptitle()


def test_sharpness_draws_what_is_measured():
    y = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    stated = torch.from_numpy(stats.norm.ppf(LEVELS)) * (1 + uniform(400, 1))
    models = {"one": sharpness(y, stated, LEVELS), "two": sharpness(y, stated / 2, LEVELS)}
    away, width = sharpness_calibration(models, unit="kW").axes
    low, high = reliability_band(400, models["one"].level, false_alarm=1e-3 / 2)
    level, bottom, top = outline(away.collections[0])
    np.testing.assert_allclose(level, [0.5, 0.9])
    np.testing.assert_allclose(bottom, low.numpy() / 400 - models["one"].level.numpy())
    np.testing.assert_allclose(top, high.numpy() / 400 - models["one"].level.numpy())
    for line, container, found in zip(away.lines[1:], width.containers, models.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), found.deviation)
        np.testing.assert_allclose(container[0].get_xdata(), found.share)
        np.testing.assert_allclose(container[0].get_ydata(), found.width)
        bars = np.array(container[2][0].get_segments())
        np.testing.assert_allclose(np.diff(bars[:, :, 1])[:, 0], 2 * found.width_error)
    assert width.get_ylabel() == "mean width, kW"


def test_a_single_level_has_a_band_too():
    found = sharpness(np.zeros(100), np.broadcast_to([-1.0, 1.0], (100, 2)), [0.1, 0.9])
    level, low, high = outline(sharpness_calibration(found).axes[0].collections[0])
    assert level[0] < 0.8 < level[-1]
    assert (low < 0).all()
    assert (high > 0).all()


def test_targets_of_groups_share_their_axis():
    u = uniform(60, 2)
    u[:, 1] = 0.5
    first, second = coverage_by_group(u, [0] * 30 + [1] * 30).axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_xlim()[1] > 1


def test_a_fan_is_made_of_the_quantiles_and_opens_from_the_last_value():
    history, truth = np.arange(5.0), np.array([4.0, np.nan, 7.0])
    samples = uniform(200, 3).numpy() * 10
    axes = fan_chart(np.arange(8), history, samples=samples, levels=LEVELS, truth=truth).axes[0]
    assert labels(axes) == ["history", "median", "central 90 %", "central 50 %", "truth"]
    quantiles = np.quantile(samples, LEVELS, axis=0).T
    for collection, (first, last) in zip(axes.collections, ((0, 4), (1, 3)), strict=True):
        time, low, high = outline(collection)
        np.testing.assert_allclose(time, [4, 5, 6, 7])
        np.testing.assert_allclose(low, [4.0, *quantiles[:, first]])
        np.testing.assert_allclose(high, [4.0, *quantiles[:, last]])
    seen, median, came = axes.lines
    np.testing.assert_allclose(seen.get_ydata(), history)
    np.testing.assert_allclose(median.get_ydata(), [4.0, *quantiles[:, 2]])
    np.testing.assert_allclose(came.get_ydata(), truth)
    same = fan_chart(np.arange(8), history, quantiles=quantiles, levels=LEVELS).axes[0]
    np.testing.assert_allclose(outline(same.collections[0]), outline(axes.collections[0]))


def test_a_fan_after_a_gap_starts_with_the_first_step_and_shows_the_late_past():
    history = np.append(np.zeros(99), np.nan)
    axes = fan_chart(np.arange(102), history, quantiles=np.ones((2, 3)), levels=[0.1, 0.5, 0.9], past=10).axes[0]
    assert axes.lines[1].get_xdata().tolist() == [100, 101]
    assert axes.lines[0].get_xdata().tolist() == list(range(90, 100))


def test_quantile_curves_are_drawn_in_the_order_of_the_input():
    x = np.array([2.0, 0.0, 1.0])
    quantiles = np.stack([x - 2, x, x + 2, x + 5], axis=1)
    figure = quantile_curves(x, quantiles, [0.1, 0.5, 0.9, 0.95], X=[[1.0], [1.5]], y=[0.5, 0.0])
    axes = figure.axes[0]
    assert labels(axes) == ["median", "central 80 %", "level 0.95", "data"]
    median, alone, dots = axes.lines
    assert median.get_xdata().tolist() == median.get_ydata().tolist() == [0, 1, 2]
    assert alone.get_ydata().tolist() == [5, 6, 7]
    assert dots.get_xydata().tolist() == [[1.0, 0.5], [1.5, 0.0]]
    at, low, high = outline(axes.collections[0])
    assert (at.tolist(), low.tolist(), high.tolist()) == ([0, 1, 2], [-2, -1, 0], [2, 3, 4])


def test_many_rows_are_thinned_and_said():
    x = np.linspace(0, 1, 20_001)
    axes = quantile_curves(x[:2], np.ones((2, 1)), [0.5], X=x, y=x).axes[0]
    dots = axes.lines[-1].get_xdata()
    assert len(dots) == 5000
    assert (dots[0], dots[-1]) == (0, 1)
    assert "5,000 of 20,001 rows" in axes.get_title()


def test_scores_are_drawn_in_order_with_their_errors():
    scores = {
        "bad": {"CRPS": Estimate(0.5, 0.02), "log score": Estimate(-3.0, 0.5)},
        "good": {"CRPS": Estimate(0.31, 0.01), "log score": Estimate(-1.0, 0.0)},
    }
    crps, log_score = score_table(scores, higher_is_better=("log score",)).axes
    assert [text.get_text() for text in crps.get_yticklabels()] == ["good", "bad"]
    for axes, measure in ((crps, "CRPS"), (log_score, "log score")):
        for container, model, colour in zip(axes.containers, ("good", "bad"), (MODEL, DATA), strict=True):
            value, error = scores[model][measure]
            assert container[0].get_xdata() == pytest.approx([value])
            ends = container[2][0].get_segments()[0][:, 0]
            assert ends == pytest.approx([value - 1.96 * error, value + 1.96 * error])
            assert to_hex(container[0].get_color()) == colour
    assert [text.get_text() for text in crps.texts] == ["0.310 ± 0.010", "0.500 ± 0.020"]
    assert log_score.get_title() == "log score (higher is better)"


def test_long_labels_keep_both_ends():
    assert shortened("short") == "short"
    assert len(shortened(LONG)) <= 33
    assert shortened(LONG + " 7").endswith("hand 7")
    assert shortened("two\nlines") == "two lines"


NAN = float("nan")
FAN = {"quantiles": [[1.0, 2.0]], "levels": [0.1, 0.9]}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pit_reliability([]), DataError, "pit: shape"),
        (lambda: pit_reliability([0.1, NAN]), DataError, "NaN"),
        (lambda: pit_reliability([0.1, 0.2], names=["a", "b"]), DataError, "one per target"),
        (lambda: pit_reliability([[0.1, 0.2]], names="ab"), DataError, "one per target"),
        (lambda: pit_reliability({"a": [0.1], "b": [0.1, 0.2]}), DataError, "same rows"),
        (lambda: pit_reliability({}), DataError, "same rows"),
        (lambda: coverage_by_group([0.1, 0.2], ["a"]), DataError, "one label a row"),
        (lambda: coverage_by_group([0.1], ["a"], names=["a", "b"]), DataError, "names"),
        (lambda: sharpness_calibration({}), DataError, "models: none"),
        (
            lambda: sharpness_calibration(
                {str(rows): sharpness(np.zeros(rows), np.ones((rows, 2)), [0.1, 0.9]) for rows in (5, 6)}
            ),
            DataError,
            "different rows",
        ),
        (lambda: fan_chart([0, 1], [1.0]), OptionError, "exactly one"),
        (lambda: fan_chart([0, 1], [1.0], samples=[[1.0]], **FAN), OptionError, "exactly one"),
        (lambda: fan_chart([0, 1, 2], [1.0], **FAN), DataError, "time: shape"),
        (lambda: fan_chart([1, 1], [1.0], **FAN), DataError, "increase"),
        (lambda: fan_chart([1.0, NAN], [1.0], **FAN), DataError, "increase"),
        (lambda: fan_chart([0, 1], [1.0], truth=[1.0, 2.0], **FAN), DataError, "truth: shape"),
        (lambda: fan_chart([0], [], **FAN), DataError, "history"),
        (lambda: fan_chart([0, 1], [1.0], samples=[[NAN]]), DataError, "samples: NaN"),
        (lambda: fan_chart([0, 1], [1.0], quantiles=[[1.0, 2.0]]), DataError, "one per level"),
        (lambda: fan_chart([0, 1], [1.0], quantiles=[[1.0, 2.0]], levels=[0.9, 0.1]), OptionError, "levels"),
        (lambda: quantile_curves([0.0], [[1.0]], [0.5, 0.6]), DataError, "points, levels"),
        (lambda: quantile_curves([NAN], [[1.0]], [0.5]), DataError, "x: NaN"),
        (lambda: quantile_curves([0.0], [[1.0]], [1.0]), OptionError, "levels"),
        (lambda: quantile_curves([0.0], [[1.0]], [0.5], X=[1.0]), DataError, "one came without"),
        (lambda: quantile_curves([0.0], [[1.0]], [0.5], X=[1.0], y=[1.0, 2.0]), DataError, "equal numbers"),
        (lambda: quantile_curves([0.0], [[1.0]], [0.5], X=[[1.0, 2.0]], y=[1.0]), DataError, "X: shape"),
        (lambda: score_table({}), DataError, "same scores"),
        (lambda: score_table({"a": {"c": (1.0, 0.1)}, "b": {"d": (1.0, 0.1)}}), DataError, "same scores"),
        (lambda: score_table({"a": {"c": (NAN, 0.1)}}), DataError, "finite"),
        (lambda: score_table({"a": {"c": (1.0, 0.1)}}, higher_is_better=("d",)), DataError, "higher_is_better"),
    ],
)
def test_bad_requests_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


class HeteroscedasticLaw:
    """The true law of y given x, as an estimator would state it: N(2 x, (1 + |x|)^2), each target with its own unit."""

    def __init__(self, targets=1, inputs=1, named=False):
        self.columns_ = ("load", "price", "rain", "wind")[:targets]
        self.n_features_in_ = inputs
        self.units = np.array([1.0, 10.0, 100.0, 1000.0])[:targets]
        if named:
            self.feature_names_in_ = np.array(["speed"], dtype=object)

    def place(self, X):
        x = np.asarray(X["speed"] if isinstance(X, dict) else np.asarray(X)[:, 0], dtype=float)[:, np.newaxis]
        return 2 * x * self.units, (1 + np.abs(x)) * self.units

    def pit(self, X, y):
        centre, width = self.place(X)
        u = stats.norm.cdf((np.asarray(y).reshape(len(centre), -1) - centre) / width)
        return u[:, 0] if len(self.columns_) == 1 else u

    def predict_quantiles(self, X, levels):
        centre, width = (part[..., np.newaxis] for part in self.place(X))
        q = centre + width * stats.norm.ppf(levels)
        return q[:, 0] if len(self.columns_) == 1 else q

    def draw(self, X, seed=0):
        centre, width = self.place(X)
        y = centre + width * np.random.default_rng(seed).normal(size=centre.shape)
        return y[:, 0] if len(self.columns_) == 1 else y


@pytest.mark.parametrize("named", [False, True])
def test_all_pictures_of_a_regression_of_one_on_one(tmp_path, named):
    law = HeteroscedasticLaw(named=named)
    x = np.random.default_rng(1).uniform(-3, 3, 400)
    X = {"speed": x} if named else x[:, np.newaxis]
    written = save_conditional_plots(law, X, law.draw(X), tmp_path, metrics=[{"step": 1, "train": -1.0}])
    assert [path.name for path in written] == [
        f"{name}.png" for name in ("reliability", "intervals", "groups", "curves", "training")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    with pytest.raises(DataError, match="cannot be written"):
        save_conditional_plots(law, X, law.draw(X), tmp_path / "nowhere")


def test_pictures_of_several_targets_or_inputs_or_few_rows(tmp_path):
    law = HeteroscedasticLaw(targets=4, inputs=2)
    X = np.random.default_rng(1).uniform(-3, 3, (120, 2))
    names = [path.name for path in save_conditional_plots(law, X, law.draw(X), tmp_path)]
    assert names == [f"{name}.png" for name in ("reliability", "intervals_1", "intervals_2", "intervals_3", "groups")]
    few = HeteroscedasticLaw(inputs=2)
    names = [path.name for path in save_conditional_plots(few, X[:10], few.draw(X[:10]), tmp_path)]
    assert names == ["reliability.png", "intervals.png"]
    with pytest.raises(DataError, match="1 columns came, 4 were expected"):
        save_conditional_plots(law, X, X[:, 0], tmp_path)


def test_a_column_of_text_has_no_curves(tmp_path):
    class Labelled(HeteroscedasticLaw):
        def place(self, X):
            return super().place(np.where(np.asarray(X["site"]) == "a", 0.0, 1.0)[:, np.newaxis])

    law = Labelled()
    X = {"site": ["a", "b"] * 30}
    names = [path.name for path in save_conditional_plots(law, X, law.draw(X), tmp_path)]
    assert names == ["reliability.png", "intervals.png"]
