"""The conformance suite that ships with the library, and the audit of a trained model."""

from rosenblatt.testing.audit import audit
from rosenblatt.testing.audit_levels import audit_levels
from rosenblatt.testing.checks import (
    check_conditioner,
    check_density,
    check_elementwise,
    check_pair,
    check_sampler,
    check_transform,
)
from rosenblatt.testing.model_table import MODELS
from rosenblatt.testing.report import AuditReport, AuditRow
from rosenblatt.testing.sampler_table import SAMPLERS, SamplerRow
from rosenblatt.testing.tables import (
    CONDITIONERS,
    ELEMENTWISE,
    PAIRS,
    ConditionerRow,
    ElementwiseRow,
    ModelRow,
    PairRow,
)

__all__ = [
    "CONDITIONERS",
    "ELEMENTWISE",
    "MODELS",
    "PAIRS",
    "SAMPLERS",
    "AuditReport",
    "AuditRow",
    "ConditionerRow",
    "ElementwiseRow",
    "ModelRow",
    "PairRow",
    "SamplerRow",
    "audit",
    "audit_levels",
    "check_conditioner",
    "check_density",
    "check_elementwise",
    "check_pair",
    "check_sampler",
    "check_transform",
]
