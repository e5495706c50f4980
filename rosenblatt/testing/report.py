"""The table that an audit prints: its rows, and how errors are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rosenblatt.core.errors import RosenblattError

Subject = TypeVar("Subject")


class AuditRow(NamedTuple):
    """One line of the report; `passed` is None where the check could not decide."""

    check: str
    what: str
    measured: str
    threshold: str
    passed: bool | None
    meaning: str = ""


@dataclass(frozen=True)
class AuditReport:
    """The rows of an audit; `print(report)` shows them as one table."""

    rows: list[AuditRow] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(row.passed is not False for row in self.rows)

    def __str__(self) -> str:
        verdict = {True: "pass", False: "FAIL", None: "open"}
        cells = [("check", "what", "measured", "threshold", "verdict")]
        cells += [(r.check, r.what, r.measured, r.threshold, verdict[r.passed]) for r in self.rows]
        widths = [max(len(line[column]) for line in cells) for column in range(5)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        lines.insert(1, "  ".join("-" * w for w in widths))
        lines += [f"{r.check}: {r.meaning}" for r in self.rows if r.passed is not True and r.meaning]
        failed = sum(row.passed is False for row in self.rows)
        lines.append("All checks passed." if self.passed else f"{failed} of {len(self.rows)} checks failed.")
        return "\n".join(lines)


def run_checks(checks: Sequence[tuple[str, str, Callable[[Subject], AuditRow]]], subject: Subject) -> AuditReport:
    """Run checks (id, what is checked, function) on what is audited; one that stops has failed."""
    rows = []
    for check, what, run in checks:
        try:
            rows.append(run(subject)._replace(check=check, what=what))
        except (RosenblattError, ArithmeticError, RuntimeError) as error:
            message = str(error).splitlines()[0]
            rows.append(AuditRow(check, what, type(error).__name__, "-", False, f"the check stopped: {message}"))
    return AuditReport(rows)


def judged(measured: Tensor | float, threshold: float, meaning: str) -> AuditRow:
    """Judge an error by one threshold; NaN fails."""
    value = float(measured)
    return AuditRow("", "", f"{value:.2e}", f"<= {threshold:.0e}", value <= threshold, meaning)


def excess(error: Tensor, limit: Tensor, residual: float, meaning: str) -> AuditRow:
    """Judge errors by their limits, and show the one that is worst relative to its limit."""
    share = torch.nan_to_num((error / limit).detach(), nan=torch.inf).max()
    return AuditRow("", "", f"{float(share) * residual:.2e}", f"<= {residual:.0e}", bool(share <= 1), meaning)
