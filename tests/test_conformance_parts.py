"""Every elementwise map and every conditioner against the checks that the library ships."""

import pytest

from rosenblatt.testing.checks_conditioner import CONDITIONER_CHECKS
from rosenblatt.testing.checks_elementwise import ELEMENTWISE_CHECKS
from rosenblatt.testing.checks_unit import UNIT_CHECKS, is_cdf
from rosenblatt.testing.tables import CONDITIONERS, ELEMENTWISE

CDFS = {name: row for name, row in ELEMENTWISE.items() if is_cdf(row)}


def name_of(check):
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", ELEMENTWISE_CHECKS, ids=name_of)
@pytest.mark.parametrize("row", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_elementwise(row, check):
    check(row)


@pytest.mark.parametrize("check", UNIT_CHECKS, ids=name_of)
@pytest.mark.parametrize("row", CDFS.values(), ids=CDFS)
def test_cdf(row, check):
    check(row)


@pytest.mark.parametrize("check", CONDITIONER_CHECKS, ids=name_of)
@pytest.mark.parametrize("row", CONDITIONERS.values(), ids=CONDITIONERS)
def test_conditioner(row, check):
    check(row)
