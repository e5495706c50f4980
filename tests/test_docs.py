"""What the documents show must run and be true."""

import re
from pathlib import Path

import pytest

from rosenblatt.testing.checks_elementwise import ELEMENTWISE_CHECKS
from rosenblatt.testing.checks_transform import FLOW_CHECKS
from rosenblatt.testing.tables import CONDITIONERS, PairRow

DOCS = Path(__file__).resolve().parent.parent / "docs"
EXAMPLE = re.search(
    r"### An elementwise map, complete.*?```python\n(.*?)```", (DOCS / "design.md").read_text(), re.DOTALL
)
NAMES: dict[str, object] = {}
exec(compile(EXAMPLE.group(1), "docs/design.md", "exec"), NAMES)  # noqa: S102
ROW = NAMES["ROW"]


def name_of(check):
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", ELEMENTWISE_CHECKS, ids=name_of)
def test_worked_example_as_a_map(check):
    check(ROW)


@pytest.mark.parametrize("check", FLOW_CHECKS, ids=name_of)
def test_worked_example_in_the_product(check):
    check(PairRow(ROW, CONDITIONERS["masked_context"]))


def test_worked_example_is_short():
    assert len(EXAMPLE.group(1).splitlines()) < 60
