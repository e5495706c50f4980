"""ConditionalFlow keeps every rule of scikit-learn, with no list of expected failures."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from rosenblatt import ConditionalFlow

# Every step sees all rows, none are held out, and arithmetic is double: then a weight of 2 is the same as two copies,
# which scikit-learn asks of regressors.
EXACT = {"validation_fraction": 0.0, "batch_size": 1024, "dtype": "float64"}
SMALL = {"model_options": {"hidden": 8, "widths": [4, 1]}, "epochs": 40, "learning_rate": 0.03, **EXACT}


# scikit-learn's own tables are tiny and integer-valued, which DataWarning rightly remarks on.
@pytest.mark.filterwarnings("ignore::rosenblatt.preparation.DataWarning")
@parametrize_with_checks([ConditionalFlow(**SMALL), ConditionalFlow("gaussian", **EXACT)])
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def rows():
    return make_regression(n_samples=120, n_features=3, noise=5.0, random_state=0)


def test_grid_search_takes_the_better_model(rows):
    grid = {"max_steps": [1, 60], "batch_size": np.array([128])}
    search = GridSearchCV(ConditionalFlow(**{**SMALL, "epochs": 80}, random_state=0), grid, cv=2).fit(*rows)
    assert search.best_params_["max_steps"] == 60
    assert search.best_score_ == pytest.approx(search.cv_results_["mean_test_score"].max())


def test_pipeline_and_cross_validation(rows):
    X, y = rows
    pipeline = make_pipeline(StandardScaler(), ConditionalFlow("gaussian")).fit(X, y)
    assert np.array_equal(pipeline.predict(X), pipeline[1].predict(pipeline[0].transform(X)))
    assert pipeline.score(X, y) == pytest.approx(r2_score(y, pipeline.predict(X)))
    assert cross_val_score(pipeline, X, y, cv=3).min() > 0.9


def test_clone_is_unfitted_and_fits_the_same(rows):
    first = ConditionalFlow(**SMALL, random_state=4).fit(*rows)
    second = clone(first)
    assert not hasattr(second, "model_")
    assert np.array_equal(first.predict(rows[0]), second.fit(*rows).predict(rows[0]))


def test_names_of_columns_are_kept_and_checked(rows):
    X = pd.DataFrame(rows[0], columns=["a", "b", "c"])
    flow = ConditionalFlow("gaussian").fit(X, rows[1])
    assert flow.feature_names_in_.tolist() == ["a", "b", "c"]
    for wrong in (X[["b", "a", "c"]], X.rename(columns={"c": "d"}), X[["a", "b"]]):
        with pytest.raises(ValueError, match="feature names"):
            flow.predict(wrong)
