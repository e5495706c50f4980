"""Every model of whole numbers against the checks that the library ships."""

import pytest

from rosenblatt.testing.checks_discrete import DISCRETE, DISCRETE_CHECKS


@pytest.mark.parametrize("check", DISCRETE_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("row", DISCRETE.values(), ids=DISCRETE)
def test_discrete_model(row, check):
    check(row)
