"""Every pair of the product and every model against the checks that the library ships."""

import pytest

from rosenblatt.core.registry import names
from rosenblatt.testing.checks_density import MODEL_CHECKS, TRACING_CHECKS
from rosenblatt.testing.checks_transform import FLOW_CHECKS
from rosenblatt.testing.model_table import MODELS
from rosenblatt.testing.sampler_table import SAMPLERS
from rosenblatt.testing.tables import PAIRS

TRACED = {name: row for name, row in MODELS.items() if row.traced}


def name_of(check):
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", FLOW_CHECKS, ids=name_of)
@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_pair(row, check):
    check(row)


@pytest.mark.parametrize("check", [*FLOW_CHECKS, *MODEL_CHECKS], ids=name_of)
@pytest.mark.parametrize("row", MODELS.values(), ids=MODELS)
def test_model(row, check):
    check(row)


@pytest.mark.parametrize("check", TRACING_CHECKS, ids=name_of)
@pytest.mark.parametrize("row", TRACED.values(), ids=TRACED)
def test_traced_model(row, check):
    check(row)


def test_every_registered_model_has_a_row():
    assert {name.split("_")[0] for name in names()} <= {name.split("_")[0] for name in (*MODELS, *SAMPLERS)}
