"""All checks by kind, and one call that runs every check of a kind on a row."""

from __future__ import annotations

from rosenblatt.testing.checks_conditioner import CONDITIONER_CHECKS
from rosenblatt.testing.checks_density import MODEL_CHECKS, TRACING_CHECKS
from rosenblatt.testing.checks_elementwise import ELEMENTWISE_CHECKS
from rosenblatt.testing.checks_sampler import SAMPLER_CHECKS
from rosenblatt.testing.checks_transform import FLOW_CHECKS, FlowRow
from rosenblatt.testing.checks_unit import UNIT_CHECKS, is_cdf
from rosenblatt.testing.sampler_table import SamplerRow
from rosenblatt.testing.tables import ConditionerRow, ElementwiseRow, ModelRow, PairRow


def check_elementwise(row: ElementwiseRow) -> None:
    """Run every check of an elementwise map; raises `AssertionError` at the first that fails.

    >>> from rosenblatt.testing.tables import ELEMENTWISE
    >>> check_elementwise(ELEMENTWISE["affine"])
    """
    for check in (*ELEMENTWISE_CHECKS, *(UNIT_CHECKS if is_cdf(row) else ())):
        check(row)


def check_conditioner(row: ConditionerRow) -> None:
    """Run every check of a conditioner; raises `AssertionError` at the first that fails."""
    for check in CONDITIONER_CHECKS:
        check(row)


def check_transform(row: FlowRow) -> None:
    """Run every check of a flow's transform; raises `AssertionError` at the first that fails."""
    for check in FLOW_CHECKS:
        check(row)


def check_pair(elementwise: ElementwiseRow, conditioner: ConditionerRow) -> None:
    """Run every check of a transform on one cell of the product."""
    check_transform(PairRow(elementwise, conditioner))


def check_density(row: ModelRow) -> None:
    """Run every check of a model; raises `AssertionError` at the first that fails."""
    check_transform(row)
    for check in (*MODEL_CHECKS, *(TRACING_CHECKS if row.traced else ())):
        check(row)


def check_sampler(row: SamplerRow) -> None:
    """Run every check of a sampler without an exact density; raises `AssertionError` at the first that fails."""
    for check in SAMPLER_CHECKS:
        check(row)
