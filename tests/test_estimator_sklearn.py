"""FlowDensity keeps every rule of scikit-learn, with no list of expected failures."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from rosenblatt.estimators import DataWarning, FlowDensity

SMALL = {"model_options": {"hidden": 8, "blocks": 1, "widths": [4, 1]}, "epochs": 2}


# scikit-learn's own tables are tiny and integer-valued, which DataWarning rightly remarks on.
@pytest.mark.filterwarnings("ignore::rosenblatt.preparation.DataWarning")
@parametrize_with_checks([FlowDensity(**SMALL)])
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(3).normal(size=(120, 2)) * [1.0, 50.0]


def test_grid_search_takes_the_better_model(rows):
    grid = {"max_steps": [1, 60], "batch_size": np.array([32])}
    search = GridSearchCV(FlowDensity(**{**SMALL, "epochs": 40}, random_state=0), grid, cv=2).fit(rows)
    assert search.best_params_["max_steps"] == 60
    assert search.best_score_ == pytest.approx(search.cv_results_["mean_test_score"].max())


def test_pipeline_scores_in_the_units_that_reach_the_density(rows):
    pipeline = make_pipeline(StandardScaler(), FlowDensity(**SMALL, random_state=0)).fit(rows)
    scaled = pipeline[0].transform(rows)
    assert np.array_equal(pipeline.score_samples(rows), pipeline[1].score_samples(scaled))
    assert pipeline.score(rows) == pytest.approx(pipeline[1].score_samples(scaled).mean())


def test_clone_is_unfitted_and_fits_the_same(rows):
    first = FlowDensity(**SMALL, random_state=4).fit(rows)
    second = clone(first)
    assert not hasattr(second, "model_")
    assert np.array_equal(first.score_samples(rows), second.fit(rows).score_samples(rows))


def test_warns_of_a_discrete_column(rows):
    rows = np.column_stack([rows[:, 0], rows[:, 1].round()])
    with pytest.warns(DataWarning, match="column 'x1'.*dequantise"):
        FlowDensity(**SMALL, random_state=0).fit(rows)
